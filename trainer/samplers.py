"""Draw the rows and pairs of each step as pure functions of the seed and of the position in the run.

Samplers therefore have no state that a checkpoint would need to store. The index of a row contains its epoch, so that
data loader workers, which may have started in an earlier epoch, corrupt it for the current one. The number of a
micro-batch determines its pairs.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments

from .sources import RowSource
from .training_args import MagnetTrainingArguments

# Orders are drawn by `row_generator`, too, with row numbers that no row has.
_ORDER_OF_ROWS = -1
_ORDER_OF_PAIRS = -2

_UINT64 = 0xFFFF_FFFF_FFFF_FFFF


def row_generator(seed: int, *, epoch: int, row_id: int) -> torch.Generator:
    """Make the generator for all draws of one row in one epoch; it is the same in every process.

    Source: SplitMix64 (Steele, Lea and Flood 2014), applied once per number.

    Example:
        >>> draws = [torch.rand(1, generator=row_generator(0, epoch=0, row_id=row)).item() for row in (7, 7, 8)]
        >>> draws[0] == draws[1], draws[0] == draws[2]
        (True, False)
    """
    state = 0
    for number in (seed, epoch, row_id):
        state = _splitmix64(state ^ (operator.index(number) & _UINT64))
    # The CPU generator only uses the low 32 bits. They depend on all 64, so neighboring rows are unrelated.
    return torch.Generator().manual_seed(state)


def _splitmix64(number: int) -> int:
    """Mix a 64-bit number so that each output bit depends on all input bits."""
    number = (number + 0x9E37_79B9_7F4A_7C15) & _UINT64
    number = ((number ^ (number >> 30)) * 0xBF58_476D_1CE4_E5B9) & _UINT64
    number = ((number ^ (number >> 27)) * 0x94D0_49BB_1331_11EB) & _UINT64
    return number ^ (number >> 31)


class EpochRows(Dataset):
    """Add the row number and epoch, which the corruption needs, to rows with `input_ids`.

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
    """Shuffle rows by seed and epoch, and yield each as `epoch * num_rows + row`.

    Example:
        >>> sampler = EpochRowSampler(4, seed=0)
        >>> sampler.set_epoch(2)
        >>> sorted(sampler)
        [8, 9, 10, 11]
    """

    def __init__(self, num_rows: int, *, seed: int) -> None:
        self.num_rows, self.seed, self.epoch = num_rows, seed, 0

    def __len__(self) -> int:
        return self.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = row_generator(self.seed, epoch=self.epoch, row_id=_ORDER_OF_ROWS)
        first = self.epoch * self.num_rows
        for row in torch.randperm(self.num_rows, generator=generator).tolist():
            yield first + row


def pair_batches(
    num_pairs: int, *, seed: int, batch_size: int, first: int = 0, num_processes: int = 1, process_index: int = 0
) -> Iterator[list[int]]:
    """Draw the pairs of each contrastive micro-batch of one process, without end.

    A pass over the pairs is a permutation drawn by seed and pass, cut into global batches of `batch_size` times
    `num_processes`, of which there has to be one. The remainder is dropped, so that no batch contains a pair twice, as
    its own negative. `first` is the number of the first micro-batch, from 0.

    Example:
        >>> both = pair_batches(5, seed=0, batch_size=4)
        >>> halves = [pair_batches(5, seed=0, batch_size=2, num_processes=2, process_index=n) for n in range(2)]
        >>> all(whole == left + right for _, whole, left, right in zip(range(3), both, *halves))
        True
    """
    batches_per_pass = num_pairs // (batch_size * num_processes)
    first_pass, num_skipped = divmod(first, batches_per_pass)
    for pass_number in count(first_pass):
        generator = row_generator(seed, epoch=pass_number, row_id=_ORDER_OF_PAIRS)
        order = torch.randperm(num_pairs, generator=generator).tolist()
        for batch in range(num_skipped, batches_per_pass):
            start = (batch * num_processes + process_index) * batch_size
            yield order[start : start + batch_size]
        num_skipped = 0


class PairStream:
    """Fetch contrastive micro-batches by number from a loader that stays open between calls.

    Args:
        pairs (`RowSource`): The pairs.
        collator (`Callable`): Collates a list of pairs.
        args (`MagnetTrainingArguments`): Seed, batch size and workers.
    """

    def __init__(
        self, pairs: Any, collator: Callable[[list], dict[str, Any]], *, args: MagnetTrainingArguments
    ) -> None:
        self.pairs, self.collator, self.args, self.seed = pairs, collator, args, args.order_seed
        self.stop()

    def stop(self) -> None:
        """Close the loader and its workers."""
        self._batches: Iterator[dict[str, Any]] = iter(())
        self._next = -1

    def fetch(self, micro_batch: int) -> dict[str, Any]:
        """Return a micro-batch. Numbers may be skipped; a number below the last one opens a new loader."""
        if not 0 <= self._next <= micro_batch:
            batches = pair_batches(
                len(self.pairs),
                seed=self.seed,
                batch_size=self.args.contrastive_batch_size,
                first=micro_batch,
                num_processes=self.args.world_size,
                process_index=self.args.process_index,
            )
            self._batches = iter(_dataloader(self.pairs, batches, self.collator, args=self.args))
            self._next = micro_batch
        for _ in range(micro_batch - self._next):
            next(self._batches)
        self._next = micro_batch + 1
        return next(self._batches)


def even_batches(num_rows: int, *, batch_size: int, num_processes: int = 1, process_index: int = 0) -> list[list[int]]:
    """Distribute all rows over processes, with the same number of batches for each.

    Sharded models run collectives in every forward, so no process may run out of batches before the others: a process
    without remaining rows gets an empty batch. `batch_size` is the size per process.

    Example:
        >>> [even_batches(5, batch_size=2, num_processes=2, process_index=rank) for rank in range(2)]
        [[[0, 1], [4]], [[2, 3], []]]
    """
    # As many starts in every process; those beyond the last row give empty batches.
    starts = range(process_index * batch_size, num_rows + process_index * batch_size, batch_size * num_processes)
    return [list(range(min(start, num_rows), min(start + batch_size, num_rows))) for start in starts]


def even_dataloader(
    rows: Any, collator: Any, *, batch_size: int, args: TrainingArguments, num_rows: int | None = None
) -> DataLoader:
    """Load this process's part of the first `num_rows` rows, by default of all rows; see `even_batches`."""
    batches = even_batches(
        len(rows) if num_rows is None else num_rows,
        batch_size=batch_size,
        num_processes=args.world_size,
        process_index=args.process_index,
    )
    return _dataloader(rows, batches, collator, args=args)


def _dataloader(dataset: Any, batches: Iterable[list[int]], collator: Any, *, args: TrainingArguments) -> DataLoader:
    """Load the batches of this process.

    A generator is passed because a loader otherwise draws the seed of its workers from torch's global generator, which
    would change the random state of training.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        generator=torch.Generator(),
    )
