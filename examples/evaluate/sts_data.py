"""The STS sets of the paper: pairs of sentences with a human score, from the Hub or from files on disk."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets import load_dataset

from examples.corpus.compression import whole_text
from examples.evaluate.data_files import data_file
from examples.evaluate.driver import NotAvailableError


class StsSet(NamedTuple):
    """Where a set is, and what its columns are called."""

    hub_id: str
    file_name: str  # in a local folder
    columns: tuple[str, str, str]  # sentence, sentence, score in the file; by place where it has no header


class StsPair(NamedTuple):
    """Two sentences and how alike people find them."""

    sentence1: str
    sentence2: str
    score: float


_USUAL = ("sentence1", "sentence2", "score")
STS_SETS = {
    "STS12": StsSet("mteb/sts12-sts", "sts12.test.tsv.gz", _USUAL),
    "STS13": StsSet("mteb/sts13-sts", "sts13.test.tsv.gz", _USUAL),
    "STS14": StsSet("mteb/sts14-sts", "sts14.test.tsv.gz", _USUAL),
    "STS15": StsSet("mteb/sts15-sts", "sts15.test.tsv.gz", _USUAL),
    "STS16": StsSet("mteb/sts16-sts", "sts16.test.tsv.gz", _USUAL),
    "STSBenchmark": StsSet("mteb/stsbenchmark-sts", "stsb.test.csv.gz", _USUAL),
    "SICK-R": StsSet("mteb/sickr-sts", "sick.test.tsv.gz", ("sentence_A", "sentence_B", "relatedness_score")),
}


def read_sts(name: str, *, folder: Path | None = None) -> list[StsPair]:
    """The test pairs of a set.

    Args:
        name (`str`): One of `STS_SETS`.
        folder (`Path`, *optional*): Where its file is, or its sub-folder; the Hub if left out.

    Raises:
        ValueError: unknown name, a broken file, or a line without two sentences and a score.
        NotAvailableError: no such file, or the Hub cannot be reached.
    """
    if name not in STS_SETS:
        raise ValueError(f"No set is named {name!r}; expected one of {sorted(STS_SETS)}.")
    source = STS_SETS[name]
    if folder is None:
        try:
            rows = load_dataset(source.hub_id, split="test")
        except OSError as error:
            raise NotAvailableError(f"{source.hub_id} of the Hub: {str(error).splitlines()[0]}") from error
        return [StsPair(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows]
    file = data_file(folder, source.file_name)
    if not file.is_file():
        raise NotAvailableError(f"the folder of the data has no {source.file_name}")
    try:
        return list(_read_file(file, source.columns))
    except csv.Error as error:
        raise ValueError(f"{str(file)!r} cannot be read to its end ({error}). Fetch it again.") from error


def _read_file(file: Path, columns: tuple[str, str, str]) -> Iterator[StsPair]:
    """Pairs of a `.csv` or `.tsv`, plain or `.gz`, with or without a header."""
    is_tsv = ".tsv" in file.suffixes
    with whole_text(file, newline="") as stream:
        # A quotation mark in a tab-separated file belongs to the sentence.
        lines = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE) if is_tsv else csv.reader(stream)
        places = (0, 1, 2)
        for number, cells in enumerate(lines, start=1):
            if number == 1 and set(columns) <= set(cells):
                places = tuple(cells.index(column) for column in columns)  # type: ignore[assignment]
                continue
            try:
                sentence1, sentence2, score = (cells[place] for place in places)
                yield StsPair(sentence1, sentence2, float(score))
            except (IndexError, ValueError) as error:
                raise ValueError(
                    f"Line {number} of {str(file)!r} has no {', '.join(columns)} ({cells!r:.80}). Correct it."
                ) from error


__all__ = ["STS_SETS", "StsPair", "StsSet", "read_sts"]
