"""A corpus -> chunks of texts, streamed.

Every row of the source is a row of the corpus and keeps its number, also one that cannot be read.
"""

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from examples.corpus.formats import CorruptRow
from examples.corpus.origins import Files, Origin, find_origin
from trainer.sources import check_limit


class Complaint(NamedTuple):
    """What is wrong with a row."""

    row: int  # of the corpus, from 0
    file: str | None  # known while the row is read
    line: int | None  # of the file, from 1
    reason: str


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive rows of a corpus, encoded together. One of no rows stands behind the last and ends the corpus."""

    index: int
    first_row: int
    num_rows: int
    texts: list[str] = field(default_factory=list)  # those that can be encoded
    places: list[int] = field(default_factory=list)  # where they belong, counted from `first_row`
    ids: list[str | None] = field(default_factory=list)  # of all rows, where ids are wanted
    complaints: list[Complaint] = field(default_factory=list)

    def without_texts(self) -> "Chunk":
        """What is still needed once the texts are encoded."""
        return replace(self, texts=[], places=[])


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The rows of an origin as texts.

    Args:
        origin (`Origin`): Where they come from.
        text_column (`str`): The column of the text.
        id_column (`str`, *optional*): A column to keep.
        limit (`int`, *optional*): Read this many rows at most, those that cannot be read included.
    """

    origin: Origin
    text_column: str = "text"
    id_column: str | None = None
    limit: int | None = None

    @property
    def columns(self) -> list[str]:
        """Those that are read, each once."""
        return list(dict.fromkeys([self.text_column, *([] if self.id_column is None else [self.id_column])]))

    def count(self) -> int | None:
        """Rows in all, where that can be told without reading them."""
        rows = self.origin.count()
        return rows if self.limit is None or rows is None else min(rows, self.limit)

    def count_by_reading(self, goes_on: Callable[[], bool]) -> int | None:
        """Rows in all, read once and not understood; `None` where that is not to be, or fails.

        Args:
            goes_on (`Callable`): Asked before each row.
        """
        if not isinstance(self.origin, Files):  # what would be read is on another machine
            return None
        number = 0
        try:
            for _ in itertools.islice(self.origin.rows(self.columns), self.limit):
                if not goes_on():
                    return None
                number += 1
        except (OSError, ValueError):  # whoever reads the texts will say so
            return None
        return number

    def chunk(self, index: int, first_row: int, raw_rows: list[tuple[str, int, Any]]) -> Chunk:
        """Make texts and ids of raw rows.

        Args:
            index (`int`): Of the chunk.
            first_row (`int`): Number of the first row in the corpus.
            raw_rows (`list`): As the origin gives them.
        """
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


@dataclass(frozen=True)
class ChunkStream:
    """All chunks of a corpus in order, then an empty one. Each iteration reads the corpus anew; it can be pickled.

    Args:
        corpus (`Corpus`): What to read.
        chunk_size (`int`): Rows of a chunk, >= 1; the last may have fewer.
        skip (`Collection[int]`): Indices of chunks to leave out; their rows are passed over unread.
    """

    corpus: Corpus
    chunk_size: int
    skip: Collection[int] = ()

    def __iter__(self) -> Iterator[Chunk]:
        """Read the corpus.

        Raises:
            ValueError: a file that cannot be read to its end.
        """
        rows = itertools.islice(self.corpus.origin.rows(self.corpus.columns), self.corpus.limit)
        first_row = 0
        for index in itertools.count():
            raw_rows = list(itertools.islice(rows, self.chunk_size))
            if not raw_rows or index not in self.skip:
                yield self.corpus.chunk(index, first_row, raw_rows)
            if not raw_rows:
                return
            first_row += len(raw_rows)


def open_corpus(
    source: str | list[str],
    *,
    text_column: str = "text",
    id_column: str | None = None,
    split: str = "train",
    config_name: str | None = None,
    limit: int | None = None,
) -> Corpus:
    """Find the rows of a corpus and check that it can be read; nothing is read beyond the first rows of each file.

    Args:
        source (`str` or `list[str]`): Files, folders and glob patterns as for `trainer.load_texts`, or one Hub id.
        text_column (`str`): The column of the text; `"text"` for plain text files.
        id_column (`str`, *optional*): A column to keep beside the vectors.
        split, config_name: Of a Hub dataset.
        limit (`int`, *optional*): Read this many rows at most, >= 1.

    Returns:
        `Corpus`: of at least one row.

    Raises:
        ValueError: nothing there, formats mixed, a column missing, no row, or a file that cannot be streamed.
    """
    check_limit(limit)
    origin = find_origin(source, split=split, config_name=config_name)
    corpus = Corpus(origin=origin, text_column=text_column, id_column=id_column, limit=limit)
    origin.check(corpus.columns)
    if next(origin.rows(corpus.columns), None) is None:
        raise ValueError(f"The corpus {source!r} holds no row. Give files with at least one.")
    return corpus


def _text_of(record: Mapping[str, Any], column: str) -> str:
    """The text of a record.

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
            f"column {column!r} is not Unicode: a lone surrogate or a byte that is no UTF-8 at character "
            f"{error.start + 1}"
        ) from error
    return text


def _id_of(record: Mapping[str, Any], column: str) -> str | None:
    """The id of a record as text: a string as it is, anything else as JSON, nothing as null."""
    value = record.get(column)
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
