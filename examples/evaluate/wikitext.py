"""WikiText for evaluation, from the Hub or from a file on disk, and tokenised English put back into running text.

WikiText is tokenised: ` @-@ ` is a hyphen inside a word, and marks are set apart from words. Perplexity is usually
measured on text without these traces, for no model was trained on them. Rare words, which the files of WikiText-2 and
WikiText-103 hold as `<unk>`, become a plain word: models have a control token of that name, or read it as three.
"""

import re
from pathlib import Path

from examples.files import data_file, whole_text
from trainer.sources import read_source

HUB_ID, HUB_CONFIG, HUB_SPLIT = "Salesforce/wikitext", "wikitext-103-raw-v1", "test"
FILE_NAME = "wiki.valid.tokens.xz"

# What the corpus wrote in place of rare words, and what is read instead of it.
UNKNOWN, UNKNOWN_WORD = "<unk>", "unknown"

_HEADING = re.compile(r"((?:= )+)(.*?)((?: =)+)")
# In turn: what is replaced, and by what.
_RULES = [
    (re.compile(r" @([-,.])@(?: |$)"), r"\1"),
    (re.compile(r"``|''"), '"'),
    (re.compile(r" +(\.\.\.|[.,;:!?%°)\]}])(?= |$)"), r"\1"),  # marks join what is before them,
    (re.compile(r"(^| )([(\[{$£]) +"), r"\1\2"),  # or after them
    (re.compile(r" +(n't|'(?:[stdm]|ll|re|ve))\b"), r"\1"),
    (re.compile(r"(^| )' (?=\d0s\b)"), r"\1'"),
    (re.compile(r"(^| |\")' ?([^' ][^']*?) '(?=\W|$)"), r"\1'\2'"),  # quotations before possessives: the same mark
    (re.compile(r"(?<=s) '(?= |$)"), "'"),
    (re.compile(r'" *([^"]*?) *"'), r'"\1"'),
]


def detokenize(text: str) -> str:
    """Turn tokens with spaces between them, as WikiText and lower-cased ROCStories have, into running text.

    Example:
        >>> detokenize('It weighs 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 lb ) , " red @-@ tipped " .')
        'It weighs 0.7 – 2.2 kg (1.5 lb), "red-tipped".'
        >>> detokenize("he did n't see fran 's $ 10 , or the boys ' dog .")
        "he didn't see fran's $10, or the boys' dog."
    """
    text = " ".join(text.split())
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def read_wikitext(folder: Path | None = None, *, headings: bool = False, keep_unknown: bool = False) -> list[str]:
    """Read the paragraphs of WikiText: the Hub's test split of WikiText-103, or the validation file of a folder."""
    if folder is None:
        rows = read_source(HUB_ID, columns=["text"], split=HUB_SPLIT, config_name=HUB_CONFIG)["text"]
        lines = [line for row in rows for line in row.splitlines()]
    else:
        lines = read_text(find_file(folder, FILE_NAME)).splitlines()

    def running(text: str) -> str:
        text = detokenize(text)
        return text if keep_unknown else text.replace(UNKNOWN, UNKNOWN_WORD)

    paragraphs = []
    for line in filter(None, map(str.strip, lines)):
        heading = _HEADING.fullmatch(line)
        if heading is None:
            paragraphs.append(running(line))
        elif headings:
            marks = "=" * heading[1].count("=")
            paragraphs.append(f"{marks} {running(heading[2])} {marks}")
    return paragraphs


def wikitext_form() -> str:
    """Describe the form in which `read_wikitext` returns the text, for records."""
    return f"detokenised, {UNKNOWN} replaced by {UNKNOWN_WORD!r}"


def wikitext_source(folder: Path | None) -> str:
    """Return where WikiText comes from, for records."""
    return f"{HUB_ID}, {HUB_CONFIG}, {HUB_SPLIT}" if folder is None else find_file(folder, FILE_NAME).name


def find_file(folder: Path, name: str) -> Path:
    """Return a file of this name in a folder, or in one of its subfolders."""
    file = data_file(folder, name)
    if not file.is_file():
        raise ValueError(f"{str(folder)!r} has no {name}, nor has a folder in it. Put it there.")
    return file


def read_text(file: Path) -> str:
    """Return all of a text file, plain, `.gz` or `.xz`."""
    with whole_text(file, newline="") as stream:
        return stream.read()
