"""Read the rows of one file, with at most a row or a batch of rows in memory.

A format first yields raw rows, which are cheap to skip, and parses only those that are wanted.
"""

import codecs
import csv
import io
import itertools
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from examples.files import open_bytes
from trainer.sources import check_columns

# Number of lines of a JSONL file in which columns are looked for.
_LINES_LOOKED_AT = 100
_ROWS_PER_BATCH = 256
_BYTES_AT_ONCE = 1 << 20
# A longer cell means that an earlier quotation mark was not closed.
_LONGEST_CELL = 1 << 26
_ARRAY_BEGINS = re.compile(rb"\s*\[\s*(\{|$)")


class CorruptRow(ValueError):
    """Signal one row that cannot be read; the rows around it can."""


class TextLines:
    """Read plain text: each line is a row, and an empty line is an empty text. The only column is `text`."""

    def check(self, file: Path, columns: list[str]) -> None:
        """Refuse a file that lacks a column."""
        check_columns(str(file), columns, ["text"])

    def rows(self, file: Path, columns: list[str]) -> Iterator[tuple[int, bytes]]:
        """Yield lines without their ends, numbered from 1; only a newline ends a line."""
        with open_bytes(file) as stream:
            for number, line in enumerate(stream, start=1):
                yield number, (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).rstrip(b"\r\n")

    def record(self, raw: bytes) -> Mapping[str, Any]:
        """Return the cells of a raw row by column."""
        return {"text": _decode(raw)}


class JsonLines(TextLines):
    """Read one JSON object per line. Every line is a row, so that line n of a file is its row n."""

    def check(self, file: Path, columns: list[str]) -> None:
        """Refuse a file if no object in its first lines has these columns."""
        present: dict[str, None] = {}
        for number, raw in itertools.islice(self.rows(file, columns), _LINES_LOOKED_AT):
            if number == 1 and _ARRAY_BEGINS.match(raw):
                raise ValueError(
                    f"{str(file)!r} begins with '[': it is one JSON array, which cannot be read row by row. "
                    "Write one object a line (JSON Lines)."
                )
            try:
                present |= dict.fromkeys(self.record(raw))
            except CorruptRow:
                continue
        if present:
            check_columns(str(file), columns, list(present))

    def record(self, raw: bytes) -> Mapping[str, Any]:
        """Return the object of a line."""
        try:
            record = json.loads(_decode(raw))
        except (ValueError, RecursionError) as error:  # also huge numbers and deeply nested brackets
            raise CorruptRow(f"not JSON that can be read ({error})") from error
        if not isinstance(record, dict):
            raise CorruptRow(f"a JSON {type(record).__name__}, not an object")
        return record


class DelimitedText:
    """Read comma- or tab-separated values below a line of column names.

    A line that begins no record, for example because its quotation mark is never closed, is a row that cannot be read;
    the next line begins a new record.
    """

    def __init__(self, *, delimiter: str, quoting: int) -> None:
        self.delimiter = delimiter
        self.quoting = quoting

    def check(self, file: Path, columns: list[str]) -> None:
        """Refuse a file whose first line lacks a column."""
        with open_bytes(file) as stream:
            _, header = next(self._records(stream), (1, None))
        if isinstance(header, str):
            raise ValueError(f"The first line of {str(file)!r}, of column names, is {header}. Correct it.")
        if header is not None:
            check_columns(str(file), columns, header)

    def rows(self, file: Path, columns: list[str]) -> Iterator[tuple[int, tuple[list[str], list[str] | str]]]:
        """Yield the header with the cells of each row, or with the reason why it cannot be read; skip blank lines."""
        with open_bytes(file) as stream:
            records = self._records(stream)
            _, header = next(records, (1, []))
            assert not isinstance(header, str), "`check` came first"
            for line, cells in records:
                if cells:
                    yield line, (header, cells)

    def record(self, raw: tuple[list[str], list[str] | str]) -> Mapping[str, Any]:
        """Return the cells of a row by column, without those that are missing at its end."""
        header, cells = raw
        if isinstance(cells, str):
            raise CorruptRow(cells)
        if len(cells) > len(header):
            raise CorruptRow(f"{len(cells)} cells under {len(header)} column names; is one with a comma not quoted?")
        return dict(zip(header, cells, strict=False))

    def _records(self, stream: BinaryIO) -> Iterator[tuple[int, list[str] | str]]:
        """Yield the first line number of each record with its cells, or with the reason why no record begins there."""
        csv.field_size_limit(_LONGEST_CELL)  # the default, 128 KiB, is less than a long document
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        put_back: deque[str] = deque()
        taken: list[str] = []  # lines read by the current record

        def next_lines() -> Iterator[str]:
            while line := put_back.popleft() if put_back else lines.readline():
                taken.append(line)
                yield line

        def new_reader() -> Any:
            dialect: Any = {"delimiter": self.delimiter, "quoting": self.quoting, "strict": True}
            return csv.reader(next_lines(), **dialect)

        reader, number = new_reader(), 1
        while True:
            taken.clear()
            try:
                cells: list[str] | str = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = f"no row of separated values ({error}); is a quotation mark not closed, or not doubled?"
                put_back.extendleft(reversed(taken[1:]))
                del taken[1:]
                reader = new_reader()
            yield number, cells
            number += len(taken)


class ParquetRows:
    """Read Parquet in batches of a few hundred rows; only the requested columns are read."""

    def check(self, file: Path, columns: list[str]) -> None:
        """Refuse a file that lacks a column, or whose text column (the first) does not hold strings."""
        schema = pq.read_schema(file)
        check_columns(str(file), columns, schema.names)
        kind = schema.field(columns[0]).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(
                f"Column {columns[0]!r} of {str(file)!r} has type {kind}; expected strings. Name another."
            )

    def rows(self, file: Path, columns: list[str]) -> Iterator[tuple[int, tuple[pa.RecordBatch, int]]]:
        """Yield each row, numbered from 1, as its batch and its index in the batch."""
        with pq.ParquetFile(file, buffer_size=_BYTES_AT_ONCE) as table:
            row = 0
            for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH, columns=columns):
                batch = pa.record_batch([_undecoded(column) for column in batch.columns], batch.schema.names)
                for place in range(batch.num_rows):
                    row += 1
                    yield row, (batch, place)

    def record(self, raw: tuple[pa.RecordBatch, int]) -> Mapping[str, Any]:
        """Return the cells of a row by column."""
        batch, place = raw
        cells = {name: column[place].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        return {name: _decode(cell) if isinstance(cell, bytes) else cell for name, cell in cells.items()}


def _decode(raw: bytes) -> str:
    """Decode a row; invalid UTF-8 becomes a lone surrogate, which marks its text as corrupt."""
    return raw.decode("utf-8", "surrogateescape")


def _undecoded(column: pa.Array) -> pa.Array:
    """Cast strings to bytes, so that one with invalid UTF-8 does not break its batch."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    undecoded = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    return column.cast(undecoded.get(column.type, column.type))


Format = TextLines | DelimitedText | ParquetRows
