"""Read short stories sentence by sentence: ROCStories, Story Cloze and TinyStories.

ROCStories comes from one of its mirrors on the Hub, `mintujupally/ROCStories`, with one story per row, which is split
into sentences. The file of a folder is lower-cased and tokenized, and is converted to running text in lower case.
"""

import csv
import io
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from examples.evaluate.parts.wikitext import detokenize, find_file, read_text
from trainer.metrics import split_sentences
from trainer.sources import read_source

Corpus = Literal["rocstories", "story_cloze", "tinystories"]
CORPORA: tuple[Corpus, ...] = get_args(Corpus)
FILE_NAMES: dict[str, str] = {
    "rocstories": "rocstories_dev.titlesepkeysepstory.txt.gz",
    "story_cloze": "storycloze_spring2016_val.csv.gz",
    "tinystories": "tinystories_train_head_2MiB.txt.xz",
}
# Id and split on the Hub; Story Cloze is available on request only.
HUB_SOURCES = {
    "rocstories": ("mintujupally/ROCStories", "test"),
    "tinystories": ("roneneldan/TinyStories", "validation"),
}
# Names of their figures in tables; the paper has those of ROCStories.
TITLES: dict[str, str] = {"rocstories": "ROCStories", "story_cloze": "Story Cloze", "tinystories": "TinyStories"}
SENTENCES = 5
_CLOZE_COLUMNS = (
    "AnswerRightEnding",
    *(f"InputSentence{k}" for k in range(1, SENTENCES)),
    *("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"),
)


class ClozeStory(NamedTuple):
    """Four sentences, a right fifth one and a wrong fifth one."""

    first: list[str]
    right: str
    wrong: str


def read_stories(folder: Path | None = None, *, corpus: Corpus = "rocstories") -> list[list[str]]:
    """Return the sentences of each story: five per story, except for TinyStories."""
    if corpus not in CORPORA:
        raise ValueError(f"No stories are named {corpus!r}; expected one of {list(CORPORA)}.")
    if folder is None:
        stories_source(folder, corpus=corpus)
        hub_id, split = HUB_SOURCES[corpus]
        stories = [split_sentences(text) for text in read_source(hub_id, columns=["text"], split=split)["text"]]
        return stories if corpus == "tinystories" else [story for story in stories if len(story) == SENTENCES]
    file = find_file(folder, FILE_NAMES[corpus])
    if corpus == "story_cloze":
        return [[*story.first, story.right] for story in read_story_cloze(file)]
    if corpus == "tinystories":
        return [split_sentences(text) for text in read_text(file).split("<|endoftext|>") if text.strip()]
    return _read_rocstories(file)


def read_story_cloze(file: Path) -> list[ClozeStory]:
    """Read the first four sentences, the right ending and the wrong one of each story."""
    stories = []
    rows = csv.DictReader(io.StringIO(read_text(file), newline=""))
    try:
        for row in rows:
            right, *sentences = (row[column] for column in _CLOZE_COLUMNS)
            if right not in ("1", "2") or None in sentences:
                raise ValueError(
                    f"The row that ends with line {rows.line_num} of {str(file)!r} has the right ending {right!r} and "
                    f"{sum(part is not None for part in sentences)} sentences; expected '1' or '2', and 6. Correct it."
                )
            *first, ending_1, ending_2 = sentences
            stories.append(ClozeStory(first, *((ending_1, ending_2) if right == "1" else (ending_2, ending_1))))
    except KeyError as error:
        raise ValueError(f"{str(file)!r} has no column {error} of Story Cloze. Get it again.") from error
    except csv.Error as error:
        raise ValueError(f"{str(file)!r} cannot be read beyond line {rows.line_num} ({error}). Correct it.") from error
    return stories


def stories_source(folder: Path | None, *, corpus: Corpus = "rocstories") -> tuple[str, str]:
    """Return source and form of the stories, for records."""
    if folder is not None:
        form = "lower case, detokenised" if corpus == "rocstories" else "cased"
        return find_file(folder, FILE_NAMES[corpus]).name, form
    if corpus not in HUB_SOURCES:
        raise ValueError(f"{corpus!r} is not on the Hub; pass a folder that has {FILE_NAMES[corpus]}.")
    return ", ".join(HUB_SOURCES[corpus]), "cased"


def derange(number: int, *, seed: int) -> list[int]:
    """Return a different text for each of several: the next one in a random order."""
    order = np.random.default_rng(seed).permutation(number)
    other = np.empty(number, dtype=int)
    other[order] = np.roll(order, 1)
    return [int(index) for index in other]


def _read_rocstories(file: Path) -> list[list[str]]:
    """Parse lines of `title <EOT> keywords <EOL> </s> sentence </s> sentence ...`."""
    stories = []
    lines = read_text(file).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        sentences = [detokenize(sentence) for sentence in line.split("</s>")[1:]]
        if len(sentences) != SENTENCES or not all(sentences):
            raise ValueError(
                f"Line {number} of {str(file)!r} has {len(sentences)} sentences after `</s>`; expected {SENTENCES}: "
                f"{line!r:.80}. Correct it."
            )
        stories.append(sentences)
    return stories
