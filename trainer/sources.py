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
from collections.abc import Callable, Sequence
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
# Exceptions of damaged files, and of numbers beyond 64 bits.
_DAMAGED = (ValueError, OverflowError, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)


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
    if not isinstance(source, (str, Path)) and len(source) == 1:
        (source,) = source
    source = str(source) if isinstance(source, Path) else source
    if isinstance(source, str) and is_hub_id(source):
        try:
            rows = load_dataset(source, config_name, split=split)
        except (DatasetNotFoundError, ConnectionError) as error:
            raise ValueError(
                f"`source` is {source!r}: there is no such file or folder here, and as a Hub dataset it cannot be "
                f"read ({error}). Check the spelling, the connection and the access token, or pass a path."
            ) from error
    else:
        files = local_files(source)
        builder, options = format_of(files)
        if split.partition("[")[0] != "train" or config_name is not None:
            raise ValueError(
                f"`split` is {split!r} and `config_name` {config_name!r}, but the files of `source` {source!r} have "
                "one split, 'train' (or a slice such as 'train[:10%]'), and no configurations. Leave both out."
            )
        data_files = [glob.escape(str(file)) for file in files]  # the library would read "[1]" in a name as a pattern
        check_columns(source, columns, list(_first_row(builder, data_files, options)))
        rows = _read_files(builder, data_files, options, split=split)
    check_columns(source, columns, rows.column_names)
    check_are_text(source, columns, rows)
    return rows


def check_are_text(source: Source, columns: Sequence[str], rows: Dataset) -> None:
    """Raise for columns that do not hold strings, naming those that do."""
    for column in columns:
        if not is_text(rows.features[column]):
            raise ValueError(
                f"Column {column!r} of {str(source)!r} has type {rows.features[column]}; expected strings. Name one "
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
    """Make rows of text by a function of batches, and keep the first `limit`; raise the error `empty` for none.

    `function` maps a batch and `options` to lists of strings by column.
    """
    features = Features({column: Value("string") for column in columns})
    try:
        made = rows.map(
            function,
            batched=True,
            fn_kwargs=options,
            remove_columns=rows.column_names,
            features=features,
            desc=desc,
        )
    except UnicodeDecodeError as error:  # Parquet files raise it only when the string is used
        raise ValueError(
            f"{str(source)!r} has a string that is not UTF-8 ({error}). Write it anew, or leave it out."
        ) from error
    if not len(made):
        raise ValueError(empty)
    return made if limit is None else made.select(range(min(limit, len(made))))


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
    """Read the first row without the rest."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_CELLS_LOST)
            rows = load_dataset(builder, data_files=data_files, split="train", streaming=True, **options)
            row: dict[str, Any] = next(iter(rows), {})
    except StopIteration:  # an empty JSON file
        row = {}
    except (*_DAMAGED, OSError, Warning) as error:
        raise ValueError(
            f"`source` begins with {data_files[0]!r}, which cannot be read as {builder} ({error}). "
            "Check that the file is whole, is UTF-8 and is what its suffix says."
        ) from error
    if not row:
        raise ValueError(f"`source` begins with {data_files[0]!r}: its files hold no row. Give some with one.")
    return row


def _read_files(builder: str, data_files: list[str], options: dict[str, Any], *, split: str) -> Dataset:
    """Read all rows of the files."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_CELLS_LOST)
            return load_dataset(builder, data_files=data_files, split=split, **options)
    except (DatasetGenerationError, *_DAMAGED) as error:
        # The exception itself says what is wrong with rows of other columns; else its cause does.
        has_cause = isinstance(error, DatasetGenerationError) and not isinstance(error, DatasetGenerationCastError)
        cause = error.__cause__ if has_cause else error
        if has_cause and not isinstance(cause, (*_DAMAGED, Warning)):  # a full disk, say
            raise
        raise ValueError(
            f"`source` begins with {data_files[0]!r} and cannot be read to its end as {builder} ({cause}). Check that "
            "each row has a cell for each column name, and that quotation marks are closed."
        ) from error


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
