"""Read WikiText from the Hub or a file on disk, and convert tokenized English to running text.

In WikiText, ` @-@ ` is a hyphen inside a word, and punctuation is separated from words. Perplexity is usually measured
on text without these traces, because models were not trained on them. Rare words, which are `<unk>` in the files of
WikiText-2 and WikiText-103, become an ordinary word: models have a control token of that name, or split it into three.
"""

import re
from pathlib import Path

from examples.files import data_file, open_text
from trainer.sources import read_source

HUB_ID, HUB_CONFIG, HUB_SPLIT = "Salesforce/wikitext", "wikitext-103-raw-v1", "test"
FILE_NAME = "wiki.valid.tokens.xz"

# The corpus's placeholder of rare words, and its replacement.
UNKNOWN, UNKNOWN_WORD = "<unk>", "unknown"

_HEADING = re.compile(r"((?:= )+)(.*?)((?: =)+)")
# Patterns and replacements, applied in order.
_RULES = [
    (re.compile(r" @([-,.])@(?: |$)"), r"\1"),
    (re.compile(r"``|''"), '"'),
    (re.compile(r" +(\.\.\.|[.,;:!?%°)\]}])(?= |$)"), r"\1"),  # punctuation that attaches to the left
    (re.compile(r"(^| )([(\[{$£]) +"), r"\1\2"),  # or to the right
    (re.compile(r" +(n't|'(?:[stdm]|ll|re|ve))\b"), r"\1"),
    (re.compile(r"(^| )' (?=\d0s\b)"), r"\1'"),
    # Quotations come before possessives, which use the same mark.
    (re.compile(r"(^| |\")' ?([^' ][^']*?) '(?=\W|$)"), r"\1'\2'"),
    (re.compile(r"(?<=s) '(?= |$)"), "'"),
    (re.compile(r'" *([^"]*?) *"'), r'"\1"'),
]


def detokenize(text: str) -> str:
    """Convert space-separated tokens, as in WikiText and lower-cased ROCStories, to running text.

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
    """Return the source of WikiText, for records."""
    return f"{HUB_ID}, {HUB_CONFIG}, {HUB_SPLIT}" if folder is None else find_file(folder, FILE_NAME).name


def find_file(folder: Path, name: str) -> Path:
    """Find a file of this name in a folder or one of its subfolders."""
    file = data_file(folder, name)
    if not file.is_file():
        raise ValueError(f"{str(folder)!r} has no {name}, nor has a folder in it. Put it there.")
    return file


def read_text(file: Path) -> str:
    """Read a text file, plain, `.gz` or `.xz`."""
    with open_text(file, newline="") as stream:
        return stream.read()
