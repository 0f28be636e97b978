"""Where raw rows come from: files of one format, plain or compressed, or a dataset of the Hub, streamed."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from datasets import load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi

from examples.corpus.compression import UNREADABLE
from examples.corpus.formats import DelimitedText, Format, JsonLines, ParquetRows, TextLines
from trainer.sources import check_columns, format_of, is_hub_id, local_files

# What a file that is cut short, damaged or of another format raises.
_UNREADABLE = (*UNREADABLE, csv.Error, pa.ArrowException)


class Origin(Protocol):
    """Where raw rows come from."""

    def check(self, columns: list[str]) -> None:
        """Refuse an origin that lacks a column."""

    def rows(self, columns: list[str]) -> Iterator[tuple[str, int, Any]]:
        """Raw rows, each with its file and its line from 1."""

    def record(self, raw: Any) -> Mapping[str, Any]:
        """The cells of a raw row by column."""

    def count(self) -> int | None:
        """Rows in all, where that can be told without reading them."""

    def fingerprint(self) -> dict[str, Any]:
        """What tells this state of the origin from another."""


@dataclass(frozen=True)
class Files:
    """Local files that share a format, in order."""

    files: list[Path]
    format: Format

    def check(self, columns: list[str]) -> None:
        """See `Origin`."""
        for file in self.files:
            try:
                self.format.check(file, columns)
            except _UNREADABLE as error:
                raise ValueError(
                    f"{str(file)!r} cannot be read ({error}). Is it whole, and what its name says?"
                ) from error

    def rows(self, columns: list[str]) -> Iterator[tuple[str, int, Any]]:
        """See `Origin`."""
        for file in self.files:
            line = 0
            try:
                for line, raw in self.format.rows(file, columns):
                    yield str(file), line, raw
            except _UNREADABLE as error:
                raise ValueError(
                    f"{str(file)!r} cannot be read beyond line {line} ({error}): it is damaged or cut short. "
                    "Restore it, or pass `--limit` to stop before it. Either is another corpus, which needs "
                    "a new run: delete the work folder beside the output, OUTPUT.parts, first."
                ) from error

    def record(self, raw: Any) -> Mapping[str, Any]:
        """See `Origin`."""
        return self.format.record(raw)

    def count(self) -> int | None:
        """See `Origin`."""
        counts = [self.format.count(file) for file in self.files]
        return None if None in counts else sum(count or 0 for count in counts)

    def fingerprint(self) -> dict[str, Any]:
        """See `Origin`: bytes and time of the last change of each file."""
        return describe_files(self.files)


@dataclass(frozen=True)
class HubDataset:
    """One split of a dataset of the Hub at one revision, streamed."""

    name: str
    config_name: str | None
    split: str
    revision: str | None

    def check(self, columns: list[str]) -> None:
        """See `Origin`."""
        first = next(self.rows(columns), None)
        if first is not None:
            check_columns(self.name, columns, list(first[2]))

    def rows(self, columns: list[str]) -> Iterator[tuple[str, int, Any]]:
        """See `Origin`."""
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
        """See `Origin`."""
        return raw

    def count(self) -> int | None:
        """See `Origin`."""
        return None

    def fingerprint(self) -> dict[str, Any]:
        """See `Origin`."""
        return {"texts' revision": self.revision}


def describe_files(files: list[Path]) -> dict[str, Any]:
    """Size and time of the last change of each file, under its full path."""
    states = {file.resolve(): file.stat() for file in files}
    return {str(file): f"{state.st_size} bytes of {state.st_mtime_ns} ns" for file, state in states.items()}


def find_origin(source: str | list[str], *, split: str, config_name: str | None) -> Origin:
    """Files where there are some, else a dataset of the Hub at its present revision.

    Args:
        source (`str` or `list[str]`): Files, folders, glob patterns, or one Hub id.
        split, config_name: Of a Hub dataset.

    Raises:
        ValueError: nothing there, formats mixed, or files that cannot be streamed.
    """
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
