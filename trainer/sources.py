"""Read rows from local files of one format, plain or compressed, or from a dataset of the Hub.

The `datasets` library reads, decompresses and caches. This module selects the reader of a file.
"""

import csv
import glob
import re
import warnings
from collections.abc import Callable, Mapping, Sequence, Sized
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationCastError, DatasetGenerationError, DatasetNotFoundError
from torch.utils.data import IterableDataset

from modeling_magnet.tokenization_magnet import check_texts

Source = str | Path | Sequence[str | Path]

# Suffix -> builder of the `datasets` library and its options. Cells such as "NA" are text, not missing values. Without
# `index_col`, rows with an extra cell would be shifted by a column. In `.tsv` files, quotation marks are text.
_CSV_OPTIONS: dict[str, Any] = {"keep_default_na": False, "index_col": False}
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {}),
    ".tokens": ("text", {}),  # suffix of WikiText: one paragraph or heading per line
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", _CSV_OPTIONS),
    ".tsv": ("csv", {**_CSV_OPTIONS, "sep": "\t", "quoting": csv.QUOTE_NONE}),
}
# Begins the warning of pandas that it drops extra cells.
_CELLS_LOST = "Length of header or names does not match"
_COMPRESSIONS = (".gz", ".xz")


class RowSource(Sized, Protocol):
    """Anything with a length whose items are dicts, such as a `datasets.Dataset` or a list."""

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def row_source_complaint(rows: Any, *, name: str) -> str | None:
    """Describe why the argument `name` cannot be a data set of rows; return `None` if it can."""
    kind = f"{type(rows).__module__.partition('.')[0]}.{type(rows).__name__}"
    if isinstance(rows, Mapping):
        return f"`{name}` is {kind} of {sorted(map(str, rows))}; pass one of them."
    if hasattr(rows, "__len__") and hasattr(rows, "__getitem__") and not isinstance(rows, IterableDataset):
        return None
    return (
        f"`{name}` is {kind}, but rows are drawn by index, so that runs can be repeated. Pass a `datasets.Dataset` or "
        "a list; read a stream first: `Dataset.from_list(list(stream.take(100_000)))`."
    )


def read_source(
    source: Source, *, columns: Sequence[str] = (), split: str = "train", config_name: str | None = None
) -> Dataset:
    """Read all columns of local files or of a Hub dataset; see `load_texts` for the source, split and configuration.

    `columns` are required columns of text.

    Raises:
        ValueError: If the source does not exist, mixes formats, is empty or lacks one of the columns.
    """
    if not isinstance(source, (str, Path)) and len(source) == 1:
        (source,) = source
    source = str(source) if isinstance(source, Path) else source
    if isinstance(source, str) and is_hub_id(source):
        try:
            rows = load_dataset(source, config_name, split=split)
        except (DatasetNotFoundError, ConnectionError) as error:
            raise ValueError(
                f"`source` is {source!r}, which is not a local file or folder and cannot be read as a Hub dataset "
                f"({error}). Check the spelling, the connection and the access token, or pass a path."
            ) from error
    else:
        files = local_files(source)
        builder, options = format_of(files)
        if split.partition("[")[0] != "train" or config_name is not None:
            raise ValueError(
                f"`split` is {split!r} and `config_name` {config_name!r}, but the files of `source` {source!r} have "
                "one split, 'train' (or a slice such as 'train[:10%]'), and no configurations. Omit both."
            )
        rows = _read_files(builder, files, options, split=split)
    check_columns(source, columns, rows.column_names)
    check_are_text(source, columns, rows)
    return rows


def check_columns(source: Source, columns: Sequence[str], present: Sequence[str]) -> None:
    """Raise if a source lacks one of the columns, naming those that it has."""
    missing = [column for column in columns if column not in present]
    if missing:
        raise ValueError(
            f"{source!r} has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, present))}. Pass one of these."
        )


def check_are_text(source: Source, columns: Sequence[str], rows: Dataset) -> None:
    """Raise for columns that are not text, naming those that are."""
    for column in columns:
        if not is_text(rows.features[column]):
            raise ValueError(
                f"Column {column!r} of {str(source)!r} has type {rows.features[column]}; expected strings. Pass one "
                f"of its columns of text: {[name for name in rows.column_names if is_text(rows.features[name])]}."
            )


def map_texts(
    rows: Dataset,
    function: Callable[..., dict[str, list[str]]],
    *,
    columns: Sequence[str],
    source: Source,
    empty: str,
    limit: int | None,
    desc: str,
    **options: Any,
) -> Dataset:
    """Map batches of rows to rows of text, and keep the first `limit`; raise the error `empty` if none are left.

    `function` maps a batch and `options` to lists of strings by column.
    """
    features = Features({column: Value("string") for column in columns})
    try:
        names = rows.column_names
        texts = rows.map(function, batched=True, fn_kwargs=options, remove_columns=names, features=features, desc=desc)
    except UnicodeDecodeError as error:  # Parquet files raise it only when the string is used
        raise ValueError(f"{str(source)!r} has a string that is not UTF-8 ({error}). Correct or drop it.") from error
    if not len(texts):
        raise ValueError(empty)
    return texts if limit is None else texts.select(range(min(limit, len(texts))))


def is_text(feature: Any) -> bool:
    """Return whether a column of this feature type holds strings."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def as_texts(texts: Any) -> Dataset:
    """Convert a list of strings to a data set with a column `text`; return a `datasets.Dataset` unchanged.

    Raises:
        ValueError: If this is a stream, a single string, a `DatasetDict` or an empty list, or an item is not a string.
    """
    if isinstance(texts, Dataset):
        return texts
    if isinstance(texts, str):
        raise ValueError(f"`texts` is a string ({texts!r:.60}); pass a list, `[text]`, or `load_texts(file)`.")
    if (complaint := row_source_complaint(texts, name="texts")) is not None:
        raise ValueError(complaint)
    checked = check_texts(texts, name="texts")
    if not checked:
        raise ValueError("`texts` is empty; expected at least one string. Pass some texts.")
    return Dataset.from_dict({"text": checked}, features=Features({"text": Value("string")}))


def check_limit(limit: int | None) -> None:
    """Raise for a `limit` below 1."""
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` is {limit}; expected at least 1. Omit it to read everything.")


def is_hub_id(source: str | Path) -> bool:
    """Return whether a source has the form of a Hub id (`name` or `owner/name`) and is not a local path."""
    has_form = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", str(source)) is not None
    return has_form and not Path(source).exists() and _data_suffix(Path(source)) not in _FORMATS


def local_files(source: Source, *, name: str = "source") -> list[Path]:
    """List the files of a path, folder, pattern or list of paths in a fixed order; `name` is the argument's name."""
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
            f"`{name}` is {str(source)!r}: no data file found (working folder {str(Path.cwd())!r}). Pass an existing "
            f"file, folder or pattern of {_supported()} files, or the id of a Hub dataset."
        )
    return files


def format_of(files: Sequence[Path]) -> tuple[str, dict[str, Any]]:
    """Return the builder and options that all these files share."""
    unknown = [str(file) for file in files if _data_suffix(file) not in _FORMATS]
    if unknown:
        raise ValueError(f"`source` has files of unknown type, {unknown[:3]}; expected {_supported()}. Convert them.")
    suffixes = sorted({_data_suffix(file) for file in files})
    formats = [_FORMATS[suffix] for suffix in suffixes]
    if any(left != right for left, right in pairwise(formats)):
        raise ValueError(
            f"`source` mixes {', '.join(suffixes)} files; files read together must share one format. Narrow it down "
            f"with a pattern such as '*{suffixes[0]}*', or read each format separately."
        )
    return formats[0]


def _read_files(builder: str, files: Sequence[Path], options: dict[str, Any], *, split: str) -> Dataset:
    """Read all rows of the files."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_CELLS_LOST)
            data_files = [glob.escape(str(file)) for file in files]  # "[1]" in a name would be a pattern
            return load_dataset(builder, data_files=data_files, split=split, **options)
    except (DatasetGenerationError, OSError, ValueError, StopIteration) as error:  # the last for an empty JSON file
        # For rows with other columns the exception itself is informative, otherwise its cause.
        cause = error if isinstance(error, DatasetGenerationCastError) else error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno is not None:  # not of the content, such as a full disk
            raise
        raise ValueError(
            f"`source` begins with {str(files[0])!r}, which cannot be read as {builder} ({cause}). Check that it is "
            "whole, not empty and UTF-8, has a cell for each column name in each row, and closes quotation marks."
        ) from error


def _data_suffix(path: Path) -> str:
    """Return `.jsonl` for `a.jsonl` and for `a.jsonl.xz`."""
    return Path(path.stem if path.suffix.lower() in _COMPRESSIONS else path.name).suffix.lower()


def _supported() -> str:
    """Return the readable suffixes, for messages."""
    return f"{', '.join(_FORMATS)} (plain, {' or '.join(_COMPRESSIONS)})"
