"""Which rows and which pairs a step trains on: pure functions of the seed and of where the run stands.

Nothing here is state that a checkpoint would have to hold. A row's epoch travels in its index, so that data loader
workers started long ago corrupt it as the current epoch asks; the pairs of a micro-batch follow from its number.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler

from .corruption import row_generator

# Orders are drawn like a row is corrupted, from a row number that no row has.
_ORDER_OF_ROWS = -1
_ORDER_OF_PAIRS = -2


Batch = TypeVar("Batch")


class RowSource(Sized, Protocol):
    """Anything with a length whose items are dicts, e.g. a `datasets.Dataset` or a list."""

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def about_kind(rows: Any, *, name: str) -> str | None:
    """What keeps a data set from being used as rows: it can only be read from its beginning, or is several.

    Args:
        rows (`Any`): What a caller passed as a data set.
        name (`str`): Of the argument, for the message.

    Returns:
        `str`: the complaint; `None` where there is none.
    """
    kind = f"{type(rows).__module__.partition('.')[0]}.{type(rows).__name__}"
    if isinstance(rows, Mapping):
        return f"`{name}` is {kind} of {sorted(map(str, rows))}; pass one of them."
    if hasattr(rows, "__len__") and hasattr(rows, "__getitem__") and not isinstance(rows, IterableDataset):
        return None
    if not hasattr(rows, "__iter__"):
        return f"`{name}` is {kind}; expected a `datasets.Dataset` or a list."
    return (
        f"`{name}` is a stream ({kind}), but rows are drawn by their numbers, so that a run can be resumed and "
        "repeated. Read what is to be used first: `datasets.Dataset.from_list(list(stream.take(100_000)))`, or "
        "`Dataset.from_generator`, which keeps it on disk."
    )


class EpochRows(Dataset):
    """Tokenised rows that know which row and which epoch they are, as the corruption wants them.

    Args:
        rows (`RowSource`): Items with a field `input_ids`.

    Example:
        >>> rows = EpochRows([{"input_ids": [1, 5]}, {"input_ids": [1, 6]}])
        >>> len(rows), rows[3]
        (2, {'input_ids': [1, 6], 'row_id': 1, 'epoch': 1})
    """

    def __init__(self, rows: RowSource) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, row_id = divmod(index, len(self.rows))
        return {"input_ids": self.rows[row_id]["input_ids"], "row_id": row_id, "epoch": epoch}


class EpochRowSampler(Sampler[int]):
    """Shuffled rows, each as `epoch * num_rows + row`, in an order that (seed, epoch) alone decides.

    Args:
        num_rows (`int`): Rows of the data set.
        seed (`int`): Seed of the order.

    Example:
        >>> sampler = EpochRowSampler(4, seed=0)
        >>> sampler.set_epoch(2)
        >>> sorted(sampler)
        [8, 9, 10, 11]
    """

    def __init__(self, num_rows: int, *, seed: int) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = row_generator(self.seed, epoch=self.epoch, row_id=_ORDER_OF_ROWS)
        first = self.epoch * self.num_rows
        for row in torch.randperm(self.num_rows, generator=generator).tolist():
            yield first + row


class PairBatchSampler(Sampler[list[int]]):
    """Pairs of each contrastive micro-batch, as one process of several sees them.

    A pass over the pairs is a permutation that (seed, pass) decides, cut into global batches of `batch_size` times
    `num_processes`; what does not fill a batch is left out of that pass, so that no pair meets itself as a negative.

    Args:
        num_pairs (`int`): Pairs of the data set, at least one global batch.
        seed (`int`): Seed of the order.
        batch_size (`int`): Pairs per process and micro-batch.
        first_micro_batch (`int`): Number of the first micro-batch to yield, from 0.
        end_micro_batch (`int`): Number after the last one.
        num_processes (`int`): Processes that share each global batch.
        process_index (`int`): Which of them this is.

    Raises:
        ValueError: if the pairs do not fill one global batch.

    Example:
        >>> micro_batches = {"first_micro_batch": 0, "end_micro_batch": 3}
        >>> both = PairBatchSampler(5, seed=0, batch_size=4, **micro_batches)
        >>> halves = [
        ...     PairBatchSampler(5, seed=0, batch_size=2, num_processes=2, process_index=rank, **micro_batches)
        ...     for rank in range(2)
        ... ]
        >>> list(both) == [left + right for left, right in zip(*halves)]
        True
    """

    def __init__(
        self,
        num_pairs: int,
        *,
        seed: int,
        batch_size: int,
        first_micro_batch: int,
        end_micro_batch: int,
        num_processes: int = 1,
        process_index: int = 0,
    ) -> None:
        self.batches_per_pass = num_pairs // (batch_size * num_processes)
        if not self.batches_per_pass:
            raise ValueError(
                f"There are {num_pairs} pairs, but one contrastive batch takes {batch_size * num_processes} "
                f"({batch_size} on each of {num_processes} processes) and no pair may be in it twice. Pass more pairs "
                "or lower `contrastive_batch_size`."
            )
        self.num_pairs = num_pairs
        self.seed = seed
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.first_micro_batch = first_micro_batch
        self.end_micro_batch = end_micro_batch

    def __len__(self) -> int:
        return self.end_micro_batch - self.first_micro_batch

    def __iter__(self) -> Iterator[list[int]]:
        order: list[int] = []
        current_pass = -1
        for micro_batch in range(self.first_micro_batch, self.end_micro_batch):
            number_of_pass, batch = divmod(micro_batch, self.batches_per_pass)
            if number_of_pass != current_pass:
                generator = row_generator(self.seed, epoch=number_of_pass, row_id=_ORDER_OF_PAIRS)
                order = torch.randperm(self.num_pairs, generator=generator).tolist()
                current_pass = number_of_pass
            start = (batch * self.num_processes + self.process_index) * self.batch_size
            yield order[start : start + self.batch_size]


class MicroBatchStream(Generic[Batch]):
    """Micro-batches fetched by their number, from a loader that goes on for as long as the numbers do.

    Args:
        load (`Callable`): Makes an iterable that starts at the micro-batch it is given.

    Example:
        >>> stream = MicroBatchStream(lambda first: iter(range(first, 100)))
        >>> [stream.fetch(number) for number in (3, 4, 7, 2)]
        [3, 4, 7, 2]
    """

    def __init__(self, load: Callable[[int], Iterable[Batch]]) -> None:
        self._load = load
        self.stop()

    def stop(self) -> None:
        """Let go of the loader and its workers."""
        self._batches: Iterator[Batch] = iter(())
        self._next = -1

    def fetch(self, micro_batch: int) -> Batch:
        """Get a micro-batch; numbers may be left out, and a smaller number than the last starts anew."""
        if not 0 <= self._next <= micro_batch:
            self._batches, self._next = iter(self._load(micro_batch)), micro_batch
        for _ in range(micro_batch - self._next):
            next(self._batches)
        self._next = micro_batch + 1
        return next(self._batches)


class EvenBatchSampler(Sampler[list[int]]):
    """Every index once over all processes, and the same number of batches on each of them.

    Sharded models run collectives in every forward, so no process may run out of batches before another: a process
    without an index left gets an empty batch.

    Args:
        num_items (`int`): Items of the data set.
        batch_size (`int`): Items per process and batch.
        num_processes (`int`): Processes that share the items.
        process_index (`int`): Which of them this is.

    Example:
        >>> [list(EvenBatchSampler(5, batch_size=2, num_processes=2, process_index=rank)) for rank in range(2)]
        [[[0, 1], [4]], [[2, 3], []]]
    """

    def __init__(self, num_items: int, *, batch_size: int, num_processes: int = 1, process_index: int = 0) -> None:
        self.num_items = num_items
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index

    def __len__(self) -> int:
        return -(-self.num_items // (self.batch_size * self.num_processes))

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(len(self)):
            start = (batch * self.num_processes + self.process_index) * self.batch_size
            yield list(range(min(start, self.num_items), min(start + self.batch_size, self.num_items)))


__all__ = [
    "EpochRowSampler",
    "EpochRows",
    "EvenBatchSampler",
    "MicroBatchStream",
    "PairBatchSampler",
    "RowSource",
    "about_kind",
]
