"""Stream a corpus in chunks of texts from local files.

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

from examples.corpus.formats import CorruptRow, DelimitedText, Format, JsonLines, ParquetRows, TextLines
from examples.files import UNREADABLE
from trainer.sources import format_of, local_files

# Errors of a file that is truncated, damaged or of another format.
_UNREADABLE = (*UNREADABLE, csv.Error, pa.ArrowException)


def describe_files(files: list[Path]) -> dict[str, Any]:
    """Return size and modification time of each file by its full path."""
    states = {file.resolve(): file.stat() for file in files}
    return {str(file): f"{state.st_size} bytes of {state.st_mtime_ns} ns" for file, state in states.items()}


def format_for(files: list[Path]) -> Format:
    """Return the format that the files share."""
    builder, options = format_of(files)
    packed = [str(file) for file in files if builder == "parquet" and file.suffix.lower() != ".parquet"]
    if packed:
        raise ValueError(f"{packed[0]!r} is compressed as a whole and cannot be streamed. Decompress it.")
    readers: dict[str, Format] = {"text": TextLines(), "json": JsonLines(), "parquet": ParquetRows()}
    delimited = DelimitedText(delimiter=options.get("sep", ","), quoting=options.get("quoting", csv.QUOTE_MINIMAL))
    return readers.get(builder, delimited)


class Complaint(NamedTuple):
    """Describe what is wrong with a row."""

    row: int  # in the corpus, from 0
    file: str | None  # known while the row is read
    line: int | None  # in the file, from 1
    reason: str


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive rows of a corpus that are encoded together."""

    index: int
    first_row: int
    num_rows: int
    texts: list[str] = field(default_factory=list)  # texts that can be encoded
    offsets: list[int] = field(default_factory=list)  # their rows, counted from `first_row`
    ids: list[str | None] = field(default_factory=list)  # of all rows, if ids are requested
    complaints: list[Complaint] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Iterate over the rows of files that share a format, in order, as texts."""

    files: list[Path]
    format: Format
    text_column: str = "text"
    id_column: str | None = None
    limit: int | None = None

    @property
    def columns(self) -> list[str]:
        """Return the columns that are read, without duplicates."""
        return list(dict.fromkeys([self.text_column, *([] if self.id_column is None else [self.id_column])]))

    def check(self) -> None:
        """Refuse a corpus without rows, and files whose beginnings lack a column."""
        for file in self.files:
            try:
                self.format.check(file, self.columns)
            except _UNREADABLE as error:
                raise ValueError(
                    f"{str(file)!r} cannot be read ({error}). Is it whole, and what its name says?"
                ) from error
        if next(self.rows(), None) is None:
            raise ValueError(
                f"{self.files[0].name!r} and the files after it have no row. Give files with at least one."
            )

    def rows(self) -> Iterator[tuple[str, int, Any]]:
        """Yield raw rows with their file and line (from 1), up to the limit."""
        return itertools.islice(self._all_rows(), self.limit)

    def _all_rows(self) -> Iterator[tuple[str, int, Any]]:
        for file in self.files:
            line = 0
            try:
                for line, raw in self.format.rows(file, self.columns):
                    yield str(file), line, raw
            except _UNREADABLE as error:
                raise ValueError(
                    f"{str(file)!r} cannot be read beyond line {line} ({error}): it is damaged or cut short. "
                    "Restore it, or pass `--limit` to stop before it."
                ) from error

    def count(self) -> int:
        """Count the rows by reading them, so that a damaged file is refused before anything is encoded."""
        return sum(1 for _ in self.rows())

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
        """Convert raw rows to texts and ids."""
        chunk = Chunk(index=index, first_row=first_row, num_rows=len(raw_rows))
        for offset, (file, line, raw) in enumerate(raw_rows):
            record: Mapping[str, Any] = {}
            try:
                record = self.format.record(raw)
                chunk.texts.append(_text_of(record, self.text_column))
                chunk.offsets.append(offset)
            except CorruptRow as error:
                chunk.complaints.append(Complaint(first_row + offset, file, line, str(error)))
            if self.id_column is not None:
                chunk.ids.append(_id_of(record, self.id_column))
        return chunk


def open_corpus(source: list[str], *, text_column: str, id_column: str | None, limit: int | None) -> Corpus:
    """Find the files of a corpus and check that they can be read."""
    files = local_files(source, name="texts")
    corpus = Corpus(files=files, format=format_for(files), text_column=text_column, id_column=id_column, limit=limit)
    corpus.check()
    return corpus


def _text_of(record: Mapping[str, Any], column: str) -> str:
    """Return the text of a record.

    Raises:
        CorruptRow: If there is none, or none that a tokenizer can read.
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
    """Return the id of a record as text: strings unchanged, other values as JSON, null as `None`."""
    value = record.get(column)
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
