"""What a trial of memory before the run needs: the heaviest rows, and what to say where memory runs out.

`MagnetTrainer` runs the heaviest micro-batch of each phase once before step 1. A phase that does not fit is then found
after seconds, and not when it begins, hours later.
"""

import heapq
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

from .streams import RowSource

# Rows that are looked at, where looking at one may mean to tokenise it.
MOST_ROWS = 100_000
_TABLE_ROWS = 10_000
# How allocators begin what they say; the types of their errors differ.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def row_lengths(rows: RowSource) -> Iterator[int]:
    """Tokens of each row; of a `datasets.Dataset` without making Python lists of them.

    Args:
        rows (`RowSource`): Items with `input_ids`. Of what is neither a `datasets.Dataset` nor a list the first
            100,000 are read, since each may be tokenised only when it is asked for.
    """
    # A transform makes the columns when a row is asked for.
    if isinstance(rows, Dataset) and "input_ids" in rows.column_names and rows.format["type"] != "custom":
        for table in rows.select_columns(["input_ids"]).with_format("arrow").iter(_TABLE_ROWS):
            yield from pyarrow.compute.list_value_length(table["input_ids"]).to_pylist()
        return
    limit = None if isinstance(rows, (list, tuple)) else MOST_ROWS
    yield from (len(rows[index]["input_ids"]) for index in islice(range(len(rows)), limit))


def longest_rows(rows: RowSource, *, count: int) -> list[int]:
    """Numbers of the longest rows, as many as a micro-batch takes; see `row_lengths`."""
    return _largest(row_lengths(rows), count=count)


def longest_pairs(pairs: RowSource, *, count: int) -> list[int]:
    """Numbers of the pairs whose longer side has most bytes, as many as a contrastive batch takes.

    Bytes and not characters: a character that the vocabulary does not have takes one token for each of its bytes.
    """
    limit = None if isinstance(pairs, (list, tuple, Dataset)) else MOST_ROWS
    sides = (pairs[index] for index in islice(range(len(pairs)), limit))
    sizes = (max(len(str(side[name]).encode("utf-8", "replace")) for name in ("anchor", "positive")) for side in sides)
    return _largest(sizes, count=count)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore every random state that training draws from, whatever is drawn inside."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def room_for_optimizer(optimizer: Any) -> list[Tensor]:
    """Memory that Adam takes in its first step, to be held during the trial; nothing where it has taken it already."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if not isinstance(inner, torch.optim.Adam) or inner.state:
        return []
    weights = [weight for group in inner.param_groups for weight in group["params"]]
    # Ones: pages of zeros are not taken from the system before they are written to.
    return [torch.ones_like(weight, requires_grad=False) for weight in weights for _ in range(2)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def what_to_lower(*, of_pairs: bool) -> str:
    """The arguments that lower the memory of the token losses, or of the contrastive one."""
    if of_pairs:
        return (
            "Lower `contrastive_batch_size` or `contrastive_max_length`; or keep the batch and read it in parts, with "
            "`contrastive_mini_batch_tokens` and `contrastive_recompute`; or turn on `activation_checkpointing`."
        )
    return (
        "Lower `per_device_train_batch_size` and raise `gradient_accumulation_steps` by as much, make shorter rows, "
        "or turn on `activation_checkpointing`."
    )


def told_sizes(batch: dict[str, Any]) -> str:
    """The sizes of a micro-batch in words."""
    rows, width = batch["input_ids"].shape
    told = f"{rows} rows of {width} tokens"
    if "pairs" in batch:
        texts, width = batch["pairs"]["input_ids"].shape
        told += f", then {texts // 2} pairs of {width} tokens a side"
    return told


def _largest(sizes: Iterator[int], *, count: int) -> list[int]:
    """Numbers of the largest of some sizes, the largest first."""
    best: Sequence[tuple[int, int]] = heapq.nlargest(count, ((size, -index) for index, size in enumerate(sizes)))
    return [-index for _, index in best]


__all__ = [
    "is_out_of_memory",
    "longest_pairs",
    "longest_rows",
    "random_state_kept",
    "room_for_optimizer",
    "row_lengths",
    "told_sizes",
    "what_to_lower",
]
