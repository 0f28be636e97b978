"""Encode chunks on this machine: in this process, or in several with a device each."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from examples.corpus.encoding import ChunkEncoder, EncodingOptions, ModelFacts
from examples.corpus.reading import Chunk

# Chunks that wait for each process, so that none waits for the reader.
CHUNKS_AHEAD = 2
TOLD_EVERY = 0.5  # seconds

# What a worker process knows about itself.
_own: dict[str, Any] = {}


def encode_here(
    chunks: Iterable[Chunk],
    options: EncodingOptions,
    facts: ModelFacts,
    *,
    num_processes: int,
    tell: Callable[[int], object],
) -> Generator[tuple[Chunk, np.ndarray], None, None]:
    """Encode chunks on this machine.

    Raises:
        RuntimeError: a process died.
    """
    if num_processes == 1:
        encoder = ChunkEncoder(options, facts, device=_device(0))
        for chunk in chunks:
            yield chunk, encoder(chunk, tell=tell)
        return
    context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
    numbers = context.SimpleQueue()
    for number in range(num_processes):
        numbers.put(number)
    encoded = context.Value("q", 0)  # texts, by all processes
    executor = ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=_start_worker, initargs=(options, facts, numbers, encoded)
    )
    told = 0

    def first_result() -> tuple[Chunk, np.ndarray]:
        nonlocal told
        while True:
            is_there = bool(wait([waiting[0][1]], timeout=TOLD_EVERY).done)
            told, last = encoded.value, told
            tell(told - last)
            if is_there:
                return _first_result(waiting)

    waiting: deque[tuple[Chunk, Future[np.ndarray]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk.without_texts(), executor.submit(_encode, chunk)))
            if len(waiting) > CHUNKS_AHEAD * num_processes:
                yield first_result()
        while waiting:
            yield first_result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"One of the {num_processes} processes was killed, perhaps for want of memory. Finished chunks are kept: "
            "run the command again, with fewer processes or smaller `--batch_tokens`."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _first_result(waiting: deque[tuple[Chunk, "Future[np.ndarray]"]]) -> tuple[Chunk, np.ndarray]:
    """Return the oldest chunk and its vectors, once they are there."""
    chunk, future = waiting.popleft()
    return chunk, future.result()


def _device(number: int) -> str:
    """Return where the worker of this number computes."""
    return f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def _start_worker(options: EncodingOptions, facts: ModelFacts, numbers: Any, encoded: Any) -> None:
    """Prepare a worker process; its model is loaded with its first chunk, where an error has a way back."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # Read by the tokenizer's thread pool when it starts: processes share the cores.
    os.environ.setdefault("RAYON_NUM_THREADS", str(options.threads))
    _own["encoder"] = ChunkEncoder(options, facts, device=_device(numbers.get()))
    _own["encoded"] = encoded
    logging.disable_progress_bar()  # of reading weights: the parent has one of rows


def _leave_with_parent() -> None:
    """End this process when its parent is killed; it would wait for chunks forever, with a model in memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(chunk: Chunk) -> np.ndarray:
    """Encode a chunk in a worker process."""
    vectors: np.ndarray = _own["encoder"](chunk, tell=_add)
    return vectors


def _add(number: int) -> None:
    """Count texts that this process has encoded."""
    with _own["encoded"].get_lock():
        _own["encoded"].value += number
