"""Encode chunks on a Ray cluster, through Ray Data: one reader on this node, a model in each of several actors.

A row of Ray's data set is a whole pickled chunk, so that however Ray splits its blocks, the same texts are encoded
together as by the local engine.
"""

import os
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from examples.corpus.encoding import ChunkEncoder, EncodingOptions, ModelFacts
from examples.corpus.reading import Chunk

_REPOSITORY = Path(__file__).resolve().parents[2]


def import_ray() -> Any:
    """Import Ray with its `data` module, which only this engine needs."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(
            f"`engine` is 'ray', which cannot be imported ({error}). Run `pip install 'ray[data]'`, or leave `engine` "
            "out to use this machine alone."
        ) from error
    return ray


def encode_on_ray(
    chunks: Iterable[Chunk],
    options: EncodingOptions,
    facts: ModelFacts,
    *,
    num_processes: int,
    tell: Callable[[int], object],
) -> Generator[tuple[Chunk, np.ndarray], None, None]:
    """Encode chunks on the cluster of `RAY_ADDRESS`, or on a local one that lasts as long as this call."""
    ray = import_ray()
    with _connected(ray, num_processes=num_processes):
        on_gpu = ray.cluster_resources().get("GPU", 0) > 0
        where: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": _python_path()}}}
        with ray.data.DataContext.current(_small_blocks(ray)):
            dataset = ray.data.read_datasource(
                _chunk_source(ray, chunks), num_cpus=0, override_num_blocks=1, **where
            ).map_batches(
                ChunkActor,
                fn_constructor_args=(options, facts),
                batch_size=1,
                batch_format="pyarrow",  # as NumPy, bytes would lose the zeros at their end
                compute=ray.data.ActorPoolStrategy(size=num_processes),
                num_cpus=0 if on_gpu else 1,
                num_gpus=1 if on_gpu else 0,
                **where,
            )
            for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow"):
                chunk, vectors = pickle.loads(batch["chunk"][0].as_py())
                tell(chunk.num_rows - len(chunk.complaints))
                yield chunk, vectors


class ChunkActor:
    """A `ChunkEncoder` on rows of Ray's data set."""

    def __init__(self, options: EncodingOptions, facts: ModelFacts) -> None:
        os.environ.setdefault("RAYON_NUM_THREADS", str(options.threads))
        # Ray shows an actor the GPU it may use, as the only one.
        self.encoder = ChunkEncoder(options, facts, device="cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode one chunk."""
        chunk = pickle.loads(batch["chunk"][0].as_py())
        return _as_row((chunk.without_texts(), self.encoder(chunk)))


@contextmanager
def _connected(ray: Any, *, num_processes: int) -> Iterator[None]:
    """Connect to Ray: the running one, that of `RAY_ADDRESS`, or a local cluster."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init()
    else:
        # Not fewer than there are processes: the actors would wait for each other.
        cpus = max(num_processes, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _small_blocks(ray: Any) -> Any:
    """Return settings under which Ray hands on each chunk as soon as it is read or encoded."""
    settings = ray.data.DataContext.get_current().copy()
    settings.target_max_block_size = 1  # bytes; a block has at least one row, and is to have no more
    settings.enable_progress_bars = False
    settings.print_on_execution_start = False
    return settings


def _chunk_source(ray: Any, chunks: Iterable[Chunk]) -> Any:
    """Return the chunks as something Ray Data reads; Ray's classes are known in here only."""

    class ChunkSource(ray.data.Datasource):
        """One task that reads all chunks in order: row numbers depend on all rows before."""

        supports_distributed_reads = False  # the files are on this node

        def estimate_inmemory_data_size(self) -> None:
            """Return nothing, since the size is unknown."""

        def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[Any]:
            """Return the one task."""
            unknown = ray.data.block.BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ray.data.ReadTask(lambda: map(_as_row, chunks), unknown)]

    return ChunkSource()


def _as_row(value: Any) -> pa.Table:
    """Return one row of Ray's data set."""
    return pa.table({"chunk": pa.array([pickle.dumps(value)], pa.large_binary())})


def _python_path() -> str:
    """Return where the processes of the cluster find this module."""
    known = os.environ.get("PYTHONPATH")
    return str(_REPOSITORY) if not known else os.pathsep.join([str(_REPOSITORY), known])
