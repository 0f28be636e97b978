"""Find out before step 1 whether each phase fits into memory, and keep freed memory in the process.

`MagnetTrainer` runs the heaviest micro-batch of each phase once before the first step, so that a phase that does not
fit is found after seconds and not when it begins, hours later.
"""

import ctypes
import heapq
import platform
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute
import torch
from datasets import Dataset
from torch import Tensor

from .phases import LossPhase
from .samplers import RowSource

# How many rows are looked at where looking at one may tokenise it.
MOST_ROWS = 100_000
_TABLE_ROWS = 10_000
# How allocators begin their messages; the types of their errors differ.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
# Parameters of `mallopt`, from malloc.h, and the largest C int.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_BYTES = 2**31 - 1


def phases_to_try(phases: Sequence[LossPhase], *, step: int) -> Iterator[tuple[int, LossPhase]]:
    """Yield the number and the first phase of each kind, without kinds that a run has begun before `step`."""
    first, tried = 0, set()
    for number, phase in enumerate(phases):
        kind = (phase.uses_tokens, phase.uses_pairs)
        if kind not in tried and first >= step:
            yield number, phase
        tried.add(kind)
        first += phase.steps


def row_lengths(rows: RowSource) -> Iterator[int]:
    """Yield the number of tokens of each row; for a `datasets.Dataset` without making Python lists.

    Args:
        rows (`RowSource`): Items with `input_ids`. Of an object that is neither a `datasets.Dataset` nor a list the
            first 100,000 rows are read, since each may be tokenised on access.
    """
    # A transform makes the columns on access.
    if isinstance(rows, Dataset) and "input_ids" in rows.column_names and rows.format["type"] != "custom":
        for table in rows.select_columns(["input_ids"]).with_format("arrow").iter(_TABLE_ROWS):
            yield from pyarrow.compute.list_value_length(table["input_ids"]).to_pylist()
        return
    limit = None if isinstance(rows, (list, tuple)) else MOST_ROWS
    yield from (len(rows[index]["input_ids"]) for index in islice(range(len(rows)), limit))


def longest_rows(rows: RowSource, *, count: int) -> list[int]:
    """Return the numbers of the `count` longest rows; see `row_lengths`."""
    return _largest(row_lengths(rows), count=count)


def longest_pairs(pairs: RowSource, *, count: int) -> list[int]:
    """Return the numbers of the `count` pairs whose longer side has the most bytes.

    Bytes, not characters: a character outside the vocabulary takes one token for each of its bytes.
    """
    limit = None if isinstance(pairs, (list, tuple, Dataset)) else MOST_ROWS
    sides = (pairs[index] for index in islice(range(len(pairs)), limit))
    sizes = (max(len(str(side[name]).encode("utf-8", "replace")) for name in ("anchor", "positive")) for side in sides)
    return _largest(sizes, count=count)


def _largest(sizes: Iterator[int], *, count: int) -> list[int]:
    """Return the numbers of the largest sizes, the largest first."""
    best: Sequence[tuple[int, int]] = heapq.nlargest(count, ((size, -index) for index, size in enumerate(sizes)))
    return [-index for _, index in best]


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore every random state that training draws from when the context ends."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def room_for_optimizer(optimizer: Any) -> list[Tensor]:
    """Allocate what Adam will allocate in its first step; nothing for other optimizers or after that step."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if not isinstance(inner, torch.optim.Adam) or inner.state:
        return []
    weights = [weight for group in inner.param_groups for weight in group["params"]]
    # Ones: the system hands out pages of zeros only when they are written to.
    return [torch.ones_like(weight, requires_grad=False) for weight in weights for _ in range(2)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def what_to_lower(*, of_pairs: bool) -> str:
    """Name the arguments that lower the memory of the token losses, or of the contrastive one."""
    if of_pairs:
        return (
            "Lower `contrastive_batch_size` or `contrastive_max_length`; or keep the batch and read it in parts, with "
            "`contrastive_mini_batch_tokens` and `contrastive_recompute`; or turn on `activation_checkpointing`."
        )
    return (
        "Lower `per_device_train_batch_size` and raise `gradient_accumulation_steps` by as much, make shorter rows, "
        "or turn on `activation_checkpointing`."
    )


@contextmanager
def explain_memory(where: str, *, of_pairs: bool) -> Iterator[None]:
    """Say of an error that memory ran out where it did and what to lower.

    Raises:
        torch.OutOfMemoryError: with the original message, which accelerate reads to lower batch sizes.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = what_to_lower(of_pairs=of_pairs)
        raise torch.OutOfMemoryError(f"Memory ran out {where}. {remedy} ({error})") from error


def batch_sizes(batch: dict[str, Any]) -> str:
    """Describe the sizes of a micro-batch."""
    rows, width = batch["input_ids"].shape
    sizes = f"{rows} rows of {width} tokens"
    if "pairs" in batch:
        texts, width = batch["pairs"]["input_ids"].shape
        sizes += f", then {texts // 2} pairs of {width} tokens a side"
    return sizes


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory instead of returning it to the kernel, which would clear it page by page.

    By default glibc maps each tensor of more than 32 MiB anew, and a training step on a CPU spends a third of its time
    in page faults. Call this before the first large tensor. The process then keeps its peak memory.

    Returns:
        `bool`: whether the settings were taken; `False` outside Linux and with other C libraries.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Before glibc 2.35 the first is refused; the second alone would stop the threshold from growing.
    return all(mallopt(name, _MOST_BYTES) == 1 for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))


__all__ = [
    "batch_sizes",
    "explain_memory",
    "is_out_of_memory",
    "keep_freed_memory",
    "longest_pairs",
    "longest_rows",
    "phases_to_try",
    "random_state_kept",
    "room_for_optimizer",
    "row_lengths",
    "what_to_lower",
]
