"""Read CoNLL-2003: sentences whose words have a part of speech, a chunk tag and an entity tag.

The files of the shared task use IOB1 (`B-` only between two adjacent spans of a type), the copy on the Hub uses IOB2
(`B-` at every beginning). Both are converted to IOB2, as in LLM2Vec, because an accuracy over tags depends on it.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, load_dataset

from examples.files import data_file, open_text

HUB_ID = "lhoestq/conll2003"
TASKS = ("chunking", "ner", "pos")
# Names of the splits in the files, with their names on the Hub.
SPLITS = {"train": "train", "testa": "validation", "testb": "test"}
_COLUMNS = {"chunking": "chunk_tags", "ner": "ner_tags", "pos": "pos_tags"}
_DOCUMENT_START = "-DOCSTART-"


class TaggedSentence(NamedTuple):
    """Words with one tag per task; spans are in IOB2."""

    words: list[str]
    chunking: list[str]
    ner: list[str]
    pos: list[str]

    def tags(self, task: str) -> list[str]:
        """Return the tags of one of `TASKS`."""
        tags: list[str] = getattr(self, task)
        return tags


def split_file(folder: Path, split: str) -> Path:
    """Return the path of a split's file, in the folder or a subfolder."""
    return data_file(folder, f"eng.{split}.gz")


def split_to_test(folder: Path | None) -> str:
    """Return the split that probes are tested on: `testb` as in the paper, `testa` if the folder has no `testb`."""
    return "testb" if folder is None or split_file(folder, "testb").is_file() else "testa"


def missing_files(folder: Path) -> list[str]:
    """List missing files as complaints."""
    needed = ("train", split_to_test(folder))
    files = [split_file(folder, split).name for split in needed if not split_file(folder, split).is_file()]
    return [
        f"`--data` {str(folder)!r} has no {name}. Put it there, or leave `--data` out for the Hub." for name in files
    ]


def read_conll(split: str, *, folder: Path | None = None) -> list[TaggedSentence]:
    """Read the sentences of a split, without the lines that begin a document.

    Source: Tjong Kim Sang and De Meulder 2003; section 4.1 of the paper.
    """
    if split not in SPLITS:
        raise ValueError(f"No split is named {split!r}; expected one of {sorted(SPLITS)}.")
    if folder is None:
        return sentences_of(load_dataset(HUB_ID, split=SPLITS[split]))
    file = split_file(folder, split)
    if not file.is_file():
        raise ValueError(f"{str(folder)!r} has no {file.name}, where the split {split} is looked for. Put it there.")
    with open_text(file) as lines:
        return list(read_lines(lines, name=str(file)))


def read_lines(lines: Iterable[str], *, name: str) -> Iterator[TaggedSentence]:
    """Yield sentences from lines of `word POS chunk entity`; an empty line ends a sentence."""
    rows: list[list[str]] = []
    for number, line in enumerate(lines, start=1):
        cells = line.split()
        if not cells or cells[0] == _DOCUMENT_START:
            if rows:
                yield _sentence(rows)
            rows = []
            continue
        if len(cells) != 4 or not all(_is_span_tag(tag) for tag in cells[2:]):
            raise ValueError(
                f"Line {number} of {name!r} is {line.rstrip()!r:.80}; expected a word, its part of speech, chunk tag "
                "and entity tag, such as 'EU NNP I-NP I-ORG'. Correct it."
            )
        rows.append(cells)
    if rows:
        yield _sentence(rows)


def sentences_of(data: Dataset) -> list[TaggedSentence]:
    """Read sentences from rows of the Hub's copy, whose tags are numbers that index names in the features."""
    names = {task: data.features[column].feature.names for task, column in _COLUMNS.items()}
    columns: dict[str, Sequence[Any]] = {task: data[column] for task, column in _COLUMNS.items()}
    sentences = []
    for index, words in enumerate(data["tokens"]):
        if not words or words[0] == _DOCUMENT_START:
            continue
        tags = {task: [names[task][number] for number in columns[task][index]] for task in TASKS}
        spans = {task: to_iob2(tags[task]) for task in ("chunking", "ner")}
        sentences.append(TaggedSentence(words=list(words), pos=tags["pos"], **spans))
    return sentences


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Convert the tags of one sentence to IOB2, with `B-` at the beginning of every span.

    Example:
        >>> to_iob2(["I-LOC", "B-LOC", "I-LOC", "I-PER", "O", "I-PER"])
        ['B-LOC', 'B-LOC', 'I-LOC', 'B-PER', 'O', 'B-PER']
    """
    return [
        f"B-{tag[2:]}" if tag.startswith("I-") and before[2:] != tag[2:] else tag
        for before, tag in zip(["O", *tags], tags, strict=False)
    ]


def _is_span_tag(tag: str) -> bool:
    """Return whether a tag is `O`, `I-X` or `B-X`."""
    return tag == "O" or (tag[:2] in ("I-", "B-") and len(tag) > 2)


def _sentence(rows: Sequence[Sequence[str]]) -> TaggedSentence:
    """Make a sentence from the cells of its lines."""
    words, pos, chunks, entities = (list(column) for column in zip(*rows, strict=True))
    return TaggedSentence(words=words, pos=pos, chunking=to_iob2(chunks), ner=to_iob2(entities))
