"""Finished chunks -> the output file, one chunk after another, so that memory holds one of them at most."""

import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from examples.corpus.writing import PartsFolder, read_npy_header, whole_file, write_npy_header

SUFFIXES = (".npy", ".parquet")
_BYTES_AT_ONCE = 1 << 20


def merge_parts(parts: PartsFolder, rows: Sequence[int], *, width: int, dtype: str, with_ids: bool) -> None:
    """Write the output file, which appears whole or not at all.

    Args:
        parts (`PartsFolder`): All chunks are finished.
        rows (`Sequence[int]`): Rows of each chunk.
        width (`int`): Numbers of a vector.
        dtype (`str`): Of a vector, as NumPy names it.
        with_ids (`bool`): Whether there are ids, which only parquet keeps.

    Raises:
        OSError: the file cannot be written; the chunks are kept.
    """
    with whole_file(parts.output, aside=parts.path) as file:
        if parts.output.suffix == ".npy":
            _merge_npy(file, parts, rows, width=width, dtype=np.dtype(dtype))
        else:
            _merge_parquet(file, parts, rows, width=width, dtype=np.dtype(dtype), with_ids=with_ids)


def _merge_npy(file: Any, parts: PartsFolder, rows: Sequence[int], *, width: int, dtype: np.dtype) -> None:
    """One header, then the data of all chunks. Not through a memory map: on a full disk that ends in SIGBUS."""
    write_npy_header(file, shape=(sum(rows), width), dtype=dtype)
    for index in range(len(rows)):
        with open(parts.vectors_file(index), "rb") as part:
            read_npy_header(part)
            shutil.copyfileobj(part, file, _BYTES_AT_ONCE)


def _merge_parquet(
    file: Any, parts: PartsFolder, rows: Sequence[int], *, width: int, dtype: np.dtype, with_ids: bool
) -> None:
    """Columns `row`, `id` where there are ids, and `embedding`; each chunk is a row group."""
    embedding = pa.list_(pa.from_numpy_dtype(dtype), width)
    columns = {"row": pa.int64(), **({"id": pa.string()} if with_ids else {}), "embedding": embedding}
    first_row = 0
    # Vectors neither compress nor repeat.
    with pq.ParquetWriter(file, pa.schema(columns), compression="none", use_dictionary=False) as writer:
        for index, num_rows in enumerate(rows):
            vectors = np.load(parts.vectors_file(index))
            arrays: list[pa.Array] = [pa.array(np.arange(first_row, first_row + num_rows))]
            if with_ids:
                arrays.append(pa.array(parts.ids(index), pa.string()))
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=embedding))
            writer.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(columns)))
            first_row += num_rows
