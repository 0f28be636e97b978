"""Encode chunks in this process, or in several processes with a device each."""

import argparse
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from examples.corpus.encoding import ChunkEncoder, ModelFacts
from examples.corpus.reading import Chunk

# Chunks queued for each process, so that none waits for the reader.
CHUNKS_AHEAD = 2

# The encoder of a worker process.
_own: dict[str, ChunkEncoder] = {}


def encode_chunks(
    chunks: Iterable[Chunk], args: argparse.Namespace, facts: ModelFacts
) -> Generator[tuple[Chunk, np.ndarray], None, None]:
    """Encode chunks in order.

    Raises:
        RuntimeError: If a process dies.
    """
    if args.num_processes == 1:
        encoder = ChunkEncoder(args, facts, device=_device(0))
        for chunk in chunks:
            yield chunk, encoder(chunk)
        return
    context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
    numbers = context.SimpleQueue()
    for number in range(args.num_processes):
        numbers.put(number)
    executor = ProcessPoolExecutor(
        args.num_processes, mp_context=context, initializer=_start_worker, initargs=(args, facts, numbers)
    )
    waiting: deque[tuple[Chunk, Future[np.ndarray]]] = deque()

    def next_result() -> tuple[Chunk, np.ndarray]:
        chunk, future = waiting.popleft()
        return chunk, future.result()

    try:
        for chunk in chunks:
            waiting.append((chunk, executor.submit(_encode, chunk)))
            if len(waiting) > CHUNKS_AHEAD * args.num_processes:
                yield next_result()
        while waiting:
            yield next_result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"One of the {args.num_processes} processes was killed, perhaps because memory ran out. Finished chunks "
            "are kept: run the command again, with fewer processes or smaller `--batch_tokens`."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _device(number: int) -> str:
    """Return the device of the worker with this number."""
    return f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def _start_worker(args: argparse.Namespace, facts: ModelFacts, numbers: Any) -> None:
    """Prepare a worker process. The model is loaded with the first chunk, whose future can return an error."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # Read by the tokenizer's thread pool when it starts; processes share the cores.
    os.environ.setdefault("RAYON_NUM_THREADS", str(args.threads))
    _own["encoder"] = ChunkEncoder(args, facts, device=_device(numbers.get()))
    logging.disable_progress_bar()  # hides the bar of reading weights; the parent has a bar of rows


def _leave_with_parent() -> None:
    """End this process when its parent is killed; it would wait for chunks forever, with a model in memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(chunk: Chunk) -> np.ndarray:
    return _own["encoder"](chunk)
