"""Read rows from local files of one format, plain or compressed, or from a dataset of the Hub.

The `datasets` library reads, decompresses and caches. This module chooses the reader of a file, and rejects what
cannot work before it is read in full.
"""

import csv
import glob
import gzip
import lzma
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationCastError, DatasetGenerationError, DatasetNotFoundError

from modeling_magnet.tokenization_magnet import check_texts

from .samplers import check_row_source

Source = str | Path | Sequence[str | Path]

# Suffix -> builder of the `datasets` library and its options. Cells such as "NA" are words, not missing values.
# Without `index_col`, rows with a surplus cell would be read shifted by a column. In `.tsv` files, quotation marks
# belong to the text.
_CSV_OPTIONS: dict[str, Any] = {"keep_default_na": False, "index_col": False}
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {}),
    ".tokens": ("text", {}),  # WikiText's own suffix: one paragraph or heading per line
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", _CSV_OPTIONS),
    ".tsv": ("csv", {**_CSV_OPTIONS, "sep": "\t", "quoting": csv.QUOTE_NONE}),
}
# The beginning of pandas' warning that it drops surplus cells.
_CELLS_LOST = "Length of header or names does not match"
_COMPRESSIONS = (".gz", ".xz")
# Exceptions of damaged files, and of files that cannot be read.
_DAMAGED = (ValueError, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
_UNREADABLE = (*_DAMAGED, OSError)


def read_source(
    source: Source, *, columns: Sequence[str] = (), split: str = "train", config_name: str | None = None
) -> Dataset:
    """Read all columns of local files or of a Hub dataset, as `load_texts` describes its source.

    Args:
        source (`str`, `Path` or a list of these): As for `load_texts`.
        columns (`Sequence[str]`): Columns of text that must be there; checked before files are read in full.
        split, config_name: As for `load_texts`.

    Returns:
        `datasets.Dataset`: the rows, unchanged.

    Raises:
        ValueError: if the source does not exist, mixes formats, is empty or lacks one of the columns.
    """
    source = str(source) if isinstance(source, Path) else source
    if isinstance(source, str) and is_hub_id(source):
        rows = _read_hub(source, split=split, config_name=config_name)
    else:
        files = local_files(source)
        builder, options = format_of(files)
        if split.partition("[")[0] != "train" or config_name is not None:
            raise ValueError(
                f"`split` is {split!r} and `config_name` {config_name!r}, but `source` {source!r} is made of files, "
                "which have one split, 'train' (or a slice such as 'train[:10%]'), and no configurations. "
                "Leave both out, or pass the id of a Hub dataset."
            )
        data_files = [glob.escape(str(file)) for file in files]  # the library would read "[1]" in a name as a pattern
        first_row = _first_row(builder, data_files, options)
        if not first_row:
            raise ValueError(f"`source` is {source!r}: these files hold no row. Give files with at least one.")
        check_columns(source, columns, list(first_row))
        rows = _read_files(builder, data_files, options, split=split)
    check_columns(source, columns, rows.column_names)
    check_are_text(source, columns, rows)
    return rows


def check_are_text(source: Source, columns: Sequence[str], rows: Dataset) -> None:
    """Raise for columns that do not hold strings, naming those that do."""
    for column in columns:
        if not is_text(rows.features[column]):
            raise ValueError(
                f"Column {column!r} of {_said(source)!r} has type {rows.features[column]}; expected strings. Name one "
                f"of its columns of text: {[name for name in rows.column_names if is_text(rows.features[name])]}."
            )


@contextmanager
def naming_bytes(source: Source) -> Iterator[None]:
    """Name the source in the error for invalid UTF-8, which Parquet files raise only when their strings are used."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{_said(source)!r} has a string that is not UTF-8 ({error}). Write it anew, or leave it out."
        ) from error


def is_text(feature: Any) -> bool:
    """Whether a column of this feature type holds strings."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def as_texts(texts: Any) -> Dataset:
    """Make a data set with a column `text` of a list of strings; return a `datasets.Dataset` unchanged.

    Raises:
        ValueError: for a stream, a single string, a `DatasetDict`, an empty list, or items that are not strings.
    """
    if isinstance(texts, Dataset):
        return texts
    if isinstance(texts, str):
        raise ValueError(
            f"`texts` is one string ({texts!r:.60}); expected a list. Pass `[text]`, or `load_texts(file)`."
        )
    check_row_source(texts, name="texts")
    checked = check_texts(texts, name="texts")
    if not checked:
        raise ValueError("`texts` is empty; expected at least one string.")
    return Dataset.from_dict({"text": checked}, features=Features({"text": Value("string")}))


def check_limit(limit: int | None) -> None:
    """Raise for a `limit` that would leave nothing."""
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` is {limit}; expected at least 1. Leave it out to read everything.")


def is_hub_id(source: str | Path) -> bool:
    """Whether this is spelled like a Hub id (`name` or `owner/name`) and is not a local path."""
    spelled_like_one = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", str(source)) is not None
    return spelled_like_one and not Path(source).exists() and _data_suffix(Path(source)) not in _FORMATS


def _read_hub(name: str, *, split: str, config_name: str | None) -> Dataset:
    """Read one split of a Hub dataset, with one error for everything that can prevent it."""
    try:
        return load_dataset(name, config_name, split=split)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"`source` is {name!r}: there is no such file or folder here, and as a Hub dataset it cannot be read "
            f"({error}). Check the spelling, the connection and the access token, or pass a path."
        ) from error


def local_files(source: Source, *, name: str = "source") -> list[Path]:
    """List the files of a path, folder, pattern or list of paths in a fixed order.

    Args:
        source (`str`, `Path` or a list of these): As for `load_texts`.
        name (`str`, defaults to `"source"`): Name of the argument, for messages.
    """
    if not isinstance(source, (str, Path)):
        if not source:
            raise ValueError(f"`{name}` is an empty list; expected files. Pass at least one path.")
        return [file for entry in source for file in local_files(entry, name=name)]
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _data_suffix(file) in _FORMATS)
    else:
        files = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if not files:
        raise ValueError(
            f"`{name}` is {str(source)!r}: no data file there (working folder {str(Path.cwd())!r}). Give an existing "
            f"file, folder or pattern of {_supported()} files, or the id of a Hub dataset."
        )
    return files


def format_of(files: Sequence[Path]) -> tuple[str, dict[str, Any]]:
    """Return the builder and options that all these files share."""
    unknown = [str(file) for file in files if _data_suffix(file) not in _FORMATS]
    if unknown:
        raise ValueError(
            f"`source` holds {unknown[:3]}, whose type is unknown; expected {_supported()}. Convert them."
        )
    suffixes = sorted({_data_suffix(file) for file in files})
    formats = [_FORMATS[suffix] for suffix in suffixes]
    if any(left != right for left, right in pairwise(formats)):
        raise ValueError(
            f"`source` mixes {', '.join(suffixes)} files; files read together must share one format. Narrow it down "
            f"with a pattern such as '*{suffixes[0]}*', or read them one after the other."
        )
    return formats[0]


def _first_row(builder: str, data_files: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Read the first row without the rest; return an empty one if there is none."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_CELLS_LOST)
            rows = load_dataset(builder, data_files=data_files, split="train", streaming=True, **options)
            return next(iter(rows), {})
    except StopIteration:  # an empty JSON file
        return {}
    except (*_UNREADABLE, Warning) as error:
        raise ValueError(
            f"`source` begins with {data_files[0]!r}, which cannot be read as {builder} ({error}). "
            "Check that the file is whole, is UTF-8 and is what its suffix says."
        ) from error


def _read_files(builder: str, data_files: list[str], options: dict[str, Any], *, split: str) -> Dataset:
    """Read all rows of the files."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_CELLS_LOST)
            return load_dataset(builder, data_files=data_files, split=split, **options)
    except (DatasetGenerationError, *_DAMAGED) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(error, DatasetGenerationCastError):  # rows with other columns than earlier ones
            cause = error
        elif not isinstance(cause, (*_DAMAGED, Warning)):  # a full disk, say
            raise
        raise ValueError(
            f"`source` begins with {data_files[0]!r} and cannot be read to its end as {builder} ({cause}). Check that "
            "each row has a cell for each column name, and that quotation marks are closed."
        ) from error


def _said(source: Source) -> Source:
    """Return a source as messages show it."""
    return str(source) if isinstance(source, Path) else source


def _data_suffix(path: Path) -> str:
    """Return `.jsonl` for `a.jsonl` and for `a.jsonl.xz`."""
    return Path(path.stem if path.suffix.lower() in _COMPRESSIONS else path.name).suffix.lower()


def _supported() -> str:
    """Return the readable suffixes, for messages."""
    return f"{', '.join(_FORMATS)} (plain, {' or '.join(_COMPRESSIONS)})"


def check_columns(source: Source, columns: Sequence[str], present: Sequence[str]) -> None:
    """Raise for a source that lacks one of the columns, naming those it has."""
    missing = [column for column in columns if column not in present]
    if missing:
        raise ValueError(
            f"{source!r} has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, present))}. Name one of these."
        )


__all__ = [
    "Source",
    "as_texts",
    "check_are_text",
    "check_columns",
    "check_limit",
    "format_of",
    "is_hub_id",
    "is_text",
    "local_files",
    "naming_bytes",
    "read_source",
]
