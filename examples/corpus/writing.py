"""Keep the finished chunks of a run in a work folder, and merge them into the output.

- `OUTPUT.parts/manifest.json`: arguments, inputs and versions; another run must not go on with these chunks
- `OUTPUT.parts/00000012.json`: ids and complaints of a chunk, where it has some
- `OUTPUT.parts/00000012.npy`: its vectors; written last, so that its presence says that the chunk is finished

Every file is written aside, forced to the disk and moved into place, so that a kill at any moment leaves it whole or
absent. Needs a POSIX system.
"""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from examples.corpus.reading import Chunk, Complaint
from trainer.whole_files import whole_file

_DIFFERENCES_TOLD = 5


class PartsFolder:
    """The work folder beside an output."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".parts")

    @contextmanager
    def opened(self, manifest: Mapping[str, Any]) -> Iterator[bool]:
        """Make the folder, or go on with it; nobody else can until the context is left."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "lock", "ab")
        except OSError as error:
            raise ValueError(
                f"`output` is {str(self.output)!r}, beside which nothing can be written ({error}). Choose another."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # however this process ends, the system unlocks it
            except BlockingIOError as error:
                raise ValueError(
                    f"Another run is at work in {str(self.path)!r}. Wait for it, or choose another `output`."
                ) from error
            for leftover in self.path.glob("*.unfinished"):
                leftover.unlink()
            yield self._begin(json.loads(json.dumps(manifest)))

    def begun_with(self, argument: str) -> Any:
        """Return an argument's value in the run whose finished chunks are here; `None` where there are none."""
        file = self.path / "manifest.json"
        return json.loads(file.read_bytes()).get(f"`{argument}`") if file.exists() and self.finished() else None

    def finished(self) -> dict[int, int]:
        """Return rows of each finished chunk by its index; a file that is not whole is not a chunk."""
        rows = {}
        for file in self.path.glob("*.npy"):
            with open(file, "rb") as stream, suppress(ValueError):
                shape, dtype = read_npy_header(stream)
                if file.stat().st_size == stream.tell() + math.prod(shape) * dtype.itemsize:
                    rows[int(file.stem)] = shape[0]
        return rows

    def write(self, chunk: Chunk, vectors: np.ndarray) -> None:
        """Keep a finished chunk.

        Args:
            vectors (`numpy.ndarray` of shape `(chunk.num_rows, width)`): Contiguous.
        """
        if chunk.ids or chunk.complaints:
            details = {"ids": chunk.ids, "complaints": chunk.complaints}
            with whole_file(self._details_file(chunk.index)) as file:
                file.write(json.dumps(details).encode())
        with whole_file(self.vectors_file(chunk.index)) as file:
            write_npy_header(file, shape=vectors.shape, dtype=vectors.dtype)
            file.write(vectors.view(np.uint8).data)

    def vectors_file(self, index: int) -> Path:
        """Return where the vectors of a chunk are."""
        return self.path / f"{index:08d}.npy"

    def ids(self, index: int) -> list[str | None]:
        """Return the ids of a finished chunk, one per row; empty where none were wanted."""
        ids: list[str | None] = self._details(index).get("ids", [])
        return ids

    def complaints(self, index: int) -> list[Complaint]:
        """Return what was wrong with rows of a finished chunk."""
        return [Complaint(*complaint) for complaint in self._details(index).get("complaints", [])]

    def remove(self) -> None:
        """Remove the folder: its chunks, then in one step its name, so that it is never there without its manifest."""
        for file in self.path.glob("[0-9]*"):
            file.unlink()
        gone = self.path.with_name(f"{self.path.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)  # of a run that was killed just here
        os.replace(self.path, gone)
        shutil.rmtree(gone, ignore_errors=True)  # a network file system keeps an open lock under another name

    def _begin(self, wanted: dict[str, Any]) -> bool:
        """Check the manifest, or write it where there is nothing to lose yet."""
        file = self.path / "manifest.json"
        begun: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
        differences = [
            f"{name} was {begun.get(name)!r} and is now {wanted.get(name)!r}"
            for name in sorted(begun.keys() | wanted.keys())
            if begun.get(name) != wanted.get(name)
        ]
        if not differences:
            return True
        if self.finished():
            more = len(differences) - _DIFFERENCES_TOLD
            told = differences[:_DIFFERENCES_TOLD] + ([f"and {more} more differences"] if more > 0 else [])
            raise ValueError(
                f"{str(self.path)!r} holds chunks of a run with other arguments or inputs: {'; '.join(told)}. "
                "Repeat the command that began it, delete the folder to start afresh, or choose another `output`."
            )
        with whole_file(file) as stream:
            stream.write(json.dumps(wanted, indent=1).encode())
        return False

    def _details_file(self, index: int) -> Path:
        """Return where ids and complaints of a chunk are."""
        return self.path / f"{index:08d}.json"

    def _details(self, index: int) -> dict[str, Any]:
        """Return ids and complaints of a finished chunk."""
        file = self._details_file(index)
        return json.loads(file.read_bytes()) if file.exists() else {}


def write_npy_header(file: BinaryIO, *, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Begin a `.npy` file."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and dtype of a `.npy` file that `write_npy_header` began, and leave the file at its data."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


SUFFIXES = (".npy", ".parquet")
_BYTES_AT_ONCE = 1 << 20


def merge_parts(parts: PartsFolder, rows: Sequence[int], *, width: int, dtype: str, with_ids: bool) -> None:
    """Write the output file, which appears whole or not at all."""
    with whole_file(parts.output, aside=parts.path) as file:
        if parts.output.suffix == ".npy":
            _merge_npy(file, parts, rows, width=width, dtype=np.dtype(dtype))
        else:
            _merge_parquet(file, parts, rows, width=width, dtype=np.dtype(dtype), with_ids=with_ids)


def _merge_npy(file: Any, parts: PartsFolder, rows: Sequence[int], *, width: int, dtype: np.dtype) -> None:
    """Write one header, then the data of all chunks; a memory map would end in SIGBUS on a full disk."""
    write_npy_header(file, shape=(sum(rows), width), dtype=dtype)
    for index in range(len(rows)):
        with open(parts.vectors_file(index), "rb") as part:
            read_npy_header(part)
            shutil.copyfileobj(part, file, _BYTES_AT_ONCE)


def _merge_parquet(
    file: Any, parts: PartsFolder, rows: Sequence[int], *, width: int, dtype: np.dtype, with_ids: bool
) -> None:
    """Write the columns `row`, `id` where there are ids, and `embedding`; each chunk is a row group."""
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
