"""Stream a corpus in chunks of texts, from local files or a dataset of the Hub.

Every row of the source is a row of the corpus and keeps its number, even if it cannot be read.
"""

import csv
import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi

from examples.corpus.formats import CorruptRow, DelimitedText, Format, JsonLines, ParquetRows, TextLines
from examples.files import UNREADABLE
from trainer.sources import check_columns, check_limit, format_of, is_hub_id, local_files

# What a file that is cut short, damaged or of another format raises.
_UNREADABLE = (*UNREADABLE, csv.Error, pa.ArrowException)


@dataclass(frozen=True)
class Files:
    """Local files that share a format, in order."""

    files: list[Path]
    format: Format

    def check(self, columns: list[str]) -> None:
        """Refuse files that lack a column."""
        for file in self.files:
            try:
                self.format.check(file, columns)
            except _UNREADABLE as error:
                raise ValueError(
                    f"{str(file)!r} cannot be read ({error}). Is it whole, and what its name says?"
                ) from error

    def rows(self, columns: list[str]) -> Iterator[tuple[str, int, Any]]:
        """Yield raw rows, each with its file and its line from 1."""
        for file in self.files:
            line = 0
            try:
                for line, raw in self.format.rows(file, columns):
                    yield str(file), line, raw
            except _UNREADABLE as error:
                raise ValueError(
                    f"{str(file)!r} cannot be read beyond line {line} ({error}): it is damaged or cut short. "
                    "Restore it, or pass `--limit` to stop before it."
                ) from error

    def record(self, raw: Any) -> Mapping[str, Any]:
        """Return the cells of a raw row by column."""
        return self.format.record(raw)

    def fingerprint(self) -> dict[str, Any]:
        """Return what distinguishes this state of the files from another."""
        return describe_files(self.files)


@dataclass(frozen=True)
class HubDataset:
    """One split of a dataset of the Hub at one revision, streamed."""

    name: str
    config_name: str | None
    split: str
    revision: str | None

    def check(self, columns: list[str]) -> None:
        """Refuse a dataset that lacks a column."""
        first = next(self.rows(columns), None)
        if first is not None:
            check_columns(self.name, columns, list(first[2]))

    def rows(self, columns: list[str]) -> Iterator[tuple[str, int, Any]]:
        """Yield rows, each with the name of the dataset and its number from 1."""
        try:
            rows = load_dataset(self.name, self.config_name, split=self.split, revision=self.revision, streaming=True)
        except (DatasetNotFoundError, ConnectionError, ValueError) as error:
            raise ValueError(
                f"The Hub dataset {self.name!r} with split {self.split!r} and configuration {self.config_name!r} "
                f"cannot be streamed ({error}). Check the spelling; a split cannot be sliced, use `--limit`."
            ) from error
        for number, row in enumerate(rows, start=1):
            yield self.name, number, row

    def record(self, raw: Any) -> Mapping[str, Any]:
        """Return a row, which has its cells by column already."""
        return raw

    def fingerprint(self) -> dict[str, Any]:
        """Return what distinguishes this state of the dataset from another."""
        return {"texts' revision": self.revision}


def describe_files(files: list[Path]) -> dict[str, Any]:
    """Return size and time of the last change of each file, under its full path."""
    states = {file.resolve(): file.stat() for file in files}
    return {str(file): f"{state.st_size} bytes of {state.st_mtime_ns} ns" for file, state in states.items()}


def find_origin(source: str | list[str], *, split: str, config_name: str | None) -> Files | HubDataset:
    """Return files where there are some, else a dataset of the Hub at its present revision."""
    if isinstance(source, list) and len(source) == 1:
        (source,) = source
    if isinstance(source, str) and is_hub_id(source):
        try:
            revision = HfApi().dataset_info(source).sha
        except Exception as error:  # of whatever library the Hub's client speaks HTTP with
            raise ValueError(
                f"The corpus is {source!r}: there is no such file or folder here, and as a Hub dataset it cannot be "
                f"reached ({error}). Check the spelling, the connection and the access token, or pass a path."
            ) from error
        return HubDataset(source, config_name, split, revision)
    if split != "train" or config_name is not None:
        raise ValueError(
            f"The split is {split!r} and the configuration {config_name!r}, but the corpus {source!r} is made of "
            "files, which have neither. Leave both out, or pass the id of a Hub dataset."
        )
    files = local_files(source, name="texts")
    builder, options = format_of(files)
    packed = [str(file) for file in files if builder == "parquet" and file.suffix.lower() != ".parquet"]
    if packed:
        raise ValueError(f"{packed[0]!r} is compressed as a whole and cannot be streamed. Decompress it.")
    readers: dict[str, Format] = {"text": TextLines(), "json": JsonLines(), "parquet": ParquetRows()}
    delimited = DelimitedText(delimiter=options.get("sep", ","), quoting=options.get("quoting", csv.QUOTE_MINIMAL))
    return Files(files, readers.get(builder, delimited))


class Complaint(NamedTuple):
    """What is wrong with a row."""

    row: int  # of the corpus, from 0
    file: str | None  # known while the row is read
    line: int | None  # of the file, from 1
    reason: str


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive rows of a corpus, encoded together."""

    index: int
    first_row: int
    num_rows: int
    texts: list[str] = field(default_factory=list)  # those that can be encoded
    places: list[int] = field(default_factory=list)  # where they belong, counted from `first_row`
    ids: list[str | None] = field(default_factory=list)  # of all rows, where ids are wanted
    complaints: list[Complaint] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The rows of an origin as texts."""

    origin: Files | HubDataset
    text_column: str = "text"
    id_column: str | None = None
    limit: int | None = None

    @property
    def columns(self) -> list[str]:
        """Those that are read, each once."""
        return list(dict.fromkeys([self.text_column, *([] if self.id_column is None else [self.id_column])]))

    def rows(self) -> Iterator[tuple[str, int, Any]]:
        """Yield raw rows, each with its file and line, up to the limit."""
        return itertools.islice(self.origin.rows(self.columns), self.limit)

    def count(self) -> int | None:
        """Count the rows of local files by reading them; a damaged file is refused before anything is encoded."""
        return sum(1 for _ in self.rows()) if isinstance(self.origin, Files) else self.limit

    def chunks(self, chunk_size: int, *, skip: Collection[int] = ()) -> Iterator[Chunk]:
        """Yield all chunks in order, except those whose index is in `skip`."""
        rows, first_row = self.rows(), 0
        for index in itertools.count():
            raw_rows = list(itertools.islice(rows, chunk_size))
            if not raw_rows:
                return
            if index not in skip:
                yield self.chunk(index, first_row, raw_rows)
            first_row += len(raw_rows)

    def chunk(self, index: int, first_row: int, raw_rows: list[tuple[str, int, Any]]) -> Chunk:
        """Make texts and ids of raw rows."""
        chunk = Chunk(index=index, first_row=first_row, num_rows=len(raw_rows))
        for place, (file, line, raw) in enumerate(raw_rows):
            record: Mapping[str, Any] = {}
            try:
                record = self.origin.record(raw)
                chunk.texts.append(_text_of(record, self.text_column))
                chunk.places.append(place)
            except CorruptRow as error:
                chunk.complaints.append(Complaint(first_row + place, file, line, str(error)))
            if self.id_column is not None:
                chunk.ids.append(_id_of(record, self.id_column))
        return chunk


def open_corpus(
    source: str | list[str],
    *,
    text_column: str = "text",
    id_column: str | None = None,
    split: str = "train",
    config_name: str | None = None,
    limit: int | None = None,
) -> Corpus:
    """Find the rows of a corpus and check that it can be read; nothing is read beyond the first rows of each file."""
    check_limit(limit)
    origin = find_origin(source, split=split, config_name=config_name)
    corpus = Corpus(origin=origin, text_column=text_column, id_column=id_column, limit=limit)
    origin.check(corpus.columns)
    if next(corpus.rows(), None) is None:
        raise ValueError(f"The corpus {source!r} holds no row. Give files with at least one.")
    return corpus


def _text_of(record: Mapping[str, Any], column: str) -> str:
    """Return the text of a record.

    Raises:
        CorruptRow: there is none, or nothing a tokenizer can read.
    """
    if column not in record:
        raise CorruptRow(f"no column {column!r}")
    text = record[column]
    if not isinstance(text, str):
        kind = "null" if text is None else f"of type {type(text).__name__}, not a string"
        raise CorruptRow(f"column {column!r} is {kind}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorruptRow(
            f"column {column!r} is not Unicode: a lone surrogate or a byte that is not UTF-8 at character "
            f"{error.start + 1}"
        ) from error
    return text


def _id_of(record: Mapping[str, Any], column: str) -> str | None:
    """Return the id of a record as text: a string as it is, anything else as JSON, nothing as null."""
    value = record.get(column)
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


__all__ = ["Chunk", "Complaint", "Corpus", "HubDataset", "describe_files", "open_corpus"]
