"""Draw the rows and pairs of each step as pure functions of the seed and of the position in the run.

Checkpoints hold no sampler state. A row's epoch travels in its index, so that data loader workers that started long
ago corrupt it as the current epoch asks; the pairs of a micro-batch follow from its number.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import TrainingArguments

from .corruption import row_generator

# Orders are drawn like the corruption of rows, under row numbers that no row has.
_ORDER_OF_ROWS = -1
_ORDER_OF_PAIRS = -2

Batch = TypeVar("Batch")


class RowSource(Sized, Protocol):
    """Anything with a length whose items are dicts, such as a `datasets.Dataset` or a list."""

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def row_source_complaint(rows: Any, *, name: str) -> str | None:
    """Say why the argument `name` cannot serve as a data set of rows; return `None` if it can."""
    kind = f"{type(rows).__module__.partition('.')[0]}.{type(rows).__name__}"
    if isinstance(rows, Mapping):
        return f"`{name}` is {kind} of {sorted(map(str, rows))}; pass one of them."
    if hasattr(rows, "__len__") and hasattr(rows, "__getitem__") and not isinstance(rows, IterableDataset):
        return None
    if not hasattr(rows, "__iter__"):
        return f"`{name}` is {kind}; expected a `datasets.Dataset` or a list."
    return (
        f"`{name}` is a stream ({kind}), but rows are drawn by their numbers, so that runs can be resumed and "
        "repeated. Read it first: `datasets.Dataset.from_list(list(stream.take(100_000)))`, or "
        "`Dataset.from_generator`, which keeps it on disk."
    )


def check_row_source(rows: Any, *, name: str) -> None:
    """Raise if an object cannot serve as a data set of rows."""
    if (complaint := row_source_complaint(rows, name=name)) is not None:
        raise ValueError(complaint)


def plain_dataloader(dataset: Any, batch_sampler: Sampler, collator: Any, *, args: TrainingArguments) -> DataLoader:
    """Load batches that are already this process's own, without drawing from torch's global generator."""
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        generator=torch.Generator(),
    )


class EpochRows(Dataset):
    """Add row number and epoch to rows with `input_ids`, as the corruption needs them.

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
    """Shuffle rows in an order that (seed, epoch) decides, and yield each as `epoch * num_rows + row`.

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
    """Draw the pairs of each contrastive micro-batch for one of several processes.

    A pass over the pairs is a permutation that (seed, pass) decides, cut into global batches of `batch_size` times
    `num_processes`. The rest of a pass is left out, so that no pair meets itself as a negative.

    Args:
        num_pairs (`int`): Pairs of the data set, at least one global batch.
        seed (`int`): Seed of the order.
        batch_size (`int`): Pairs per process and micro-batch.
        first_micro_batch (`int`): Number of the first micro-batch to yield, from 0.
        end_micro_batch (`int`): Number after the last one.
        num_processes (`int`): Processes that share each global batch.
        process_index (`int`): Rank of this process.

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
                f"({batch_size} on each of {num_processes} processes). Pass more pairs or lower "
                "`contrastive_batch_size`."
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
    """Fetch micro-batches by their number from a loader that stays open between calls.

    `load` makes an iterable that starts at the micro-batch with a given number.

    Example:
        >>> stream = MicroBatchStream(lambda first: iter(range(first, 100)))
        >>> [stream.fetch(number) for number in (3, 4, 7, 2)]
        [3, 4, 7, 2]
    """

    def __init__(self, load: Callable[[int], Iterable[Batch]]) -> None:
        self._load = load
        self.stop()

    def stop(self) -> None:
        """Close the loader and its workers."""
        self._batches: Iterator[Batch] = iter(())
        self._next = -1

    def fetch(self, micro_batch: int) -> Batch:
        """Return a micro-batch; numbers may be skipped, and a smaller number than the last one opens a new loader."""
        if not 0 <= self._next <= micro_batch:
            self._batches, self._next = iter(self._load(micro_batch)), micro_batch
        for _ in range(micro_batch - self._next):
            next(self._batches)
        self._next = micro_batch + 1
        return next(self._batches)


class EvenBatchSampler(Sampler[list[int]]):
    """Yield every index once over all processes, in the same number of batches on each of them.

    Sharded models run collectives in every forward, so no process may run out of batches before the others: a process
    without an index left gets an empty batch. `batch_size` is that of one process.

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
    "check_row_source",
    "plain_dataloader",
    "row_source_complaint",
]
