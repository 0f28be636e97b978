"""Keep the finished chunks of a run in a work folder, and merge them into the output.

- `OUTPUT.parts/chunks.jsonl`: a log with a row for each finished chunk, and beside it what the run depends on
- `OUTPUT.parts/00000012.npy`: the vectors of a chunk; its row in the log is written after them
- `OUTPUT.parts/00000012.ids.json`: the ids of its rows, if ids are kept

A kill at any moment leaves each file whole or absent. Needs a POSIX system.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from examples.corpus.reading import Chunk
from trainer.files import append_rows, atomic_write, resume_rows, write_json

SUFFIXES = (".npy", ".parquet")
_BYTES_AT_ONCE = 1 << 20


class WorkFolder:
    """Manage the work folder beside an output.

    Attributes:
        chunks (`dict[int, dict]`): Rows of the log by the index of their chunk, once the folder is open.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.report = output.with_name(output.name + ".json")
        self.path = output.with_name(output.name + ".parts")
        self.log = self.path / "chunks.jsonl"
        self.chunks: dict[int, dict[str, Any]] = {}

    def is_begun(self) -> bool:
        """Return whether a run has finished a chunk."""
        return self.log.exists() and self.log.stat().st_size > 0

    @property
    def num_rows(self) -> int:
        """Count the rows of all finished chunks."""
        return sum(chunk["rows"] for chunk in self.chunks.values())

    @contextmanager
    def opened(self, run: Mapping[str, Any]) -> Iterator[None]:
        """Create the folder, or resume the run in it; hold an exclusive lock until the context is left."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "lock", "ab")
        except OSError as error:
            raise ValueError(
                f"`--output` is {str(self.output)!r}, beside which nothing can be written ({error}). Choose another."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released however this process ends
            except BlockingIOError as error:
                raise ValueError(
                    f"Another run is at work in {str(self.path)!r}. Wait for it, or choose another `--output`."
                ) from error
            for leftover in self.path.glob("*.unfinished"):
                leftover.unlink()
            self.chunks = {row["chunk"]: row for row in resume_rows(self.log, settings=run)}
            yield

    def keep(self, chunk: Chunk, vectors: np.ndarray) -> None:
        """Save a finished chunk.

        Args:
            vectors (`numpy.ndarray` of shape `(chunk.num_rows, width)`): Contiguous.
        """
        if chunk.ids:
            write_json(self.ids_file(chunk.index), chunk.ids)
        with atomic_write(self.vectors_file(chunk.index)) as file:
            # Not `np.save`: if the disk is full, its error lacks the number and the cause.
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(vectors))
            file.write(vectors.view(np.uint8).data)
        row = {"chunk": chunk.index, "rows": chunk.num_rows, "complaints": chunk.complaints}
        append_rows(self.log, [row])
        self.chunks[chunk.index] = json.loads(json.dumps(row))

    def vectors_file(self, index: int) -> Path:
        """Return the path of the vectors of a chunk."""
        return self.path / f"{index:08d}.npy"

    def ids_file(self, index: int) -> Path:
        """Return the path of the ids of a chunk."""
        return self.path / f"{index:08d}.ids.json"

    def remove(self) -> None:
        """Remove the folder: first its chunks, then its name in one step, so that it never exists without its log."""
        for file in self.path.glob("[0-9]*"):
            file.unlink()
        gone = self.path.with_name(f"{self.path.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)  # left by a run that was killed at this point
        os.replace(self.path, gone)
        shutil.rmtree(gone, ignore_errors=True)  # a network file system keeps an open lock under another name


def merge_parts(folder: WorkFolder, *, width: int, dtype: str, with_ids: bool) -> None:
    """Write the output file atomically."""
    with atomic_write(folder.output, temporary_folder=folder.path) as file:
        if folder.output.suffix == ".npy":
            _merge_npy(file, folder, width=width, dtype=np.dtype(dtype))
        else:
            _merge_parquet(file, folder, width=width, dtype=np.dtype(dtype), with_ids=with_ids)


def _merge_npy(file: BinaryIO, folder: WorkFolder, *, width: int, dtype: np.dtype) -> None:
    """Write one header, then the data of all chunks. A memory map would raise SIGBUS on a full disk."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (folder.num_rows, width)}
    np.lib.format.write_array_header_1_0(file, header)
    for index in range(len(folder.chunks)):
        with open(folder.vectors_file(index), "rb") as part:
            np.lib.format.read_magic(part)
            np.lib.format.read_array_header_1_0(part)
            shutil.copyfileobj(part, file, _BYTES_AT_ONCE)


def _merge_parquet(file: BinaryIO, folder: WorkFolder, *, width: int, dtype: np.dtype, with_ids: bool) -> None:
    """Write the columns `row`, `id` (if ids are kept) and `embedding`; each chunk is a row group."""
    embedding = pa.list_(pa.from_numpy_dtype(dtype), width)
    columns = {"row": pa.int64(), **({"id": pa.string()} if with_ids else {}), "embedding": embedding}
    first_row = 0
    # Vectors neither compress nor repeat, so encodings would only cost time.
    with pq.ParquetWriter(file, pa.schema(columns), compression="none", use_dictionary=False) as writer:
        for index in range(len(folder.chunks)):
            vectors = np.load(folder.vectors_file(index))
            arrays: list[pa.Array] = [pa.array(np.arange(first_row, first_row + len(vectors)))]
            if with_ids:
                arrays.append(pa.array(json.loads(folder.ids_file(index).read_bytes()), pa.string()))
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=embedding))
            writer.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(columns)))
            first_row += len(vectors)
