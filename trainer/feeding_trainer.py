"""The part of the trainer that feeds it: which rows and pairs each step gets, and the same ones again.

Stateless: both follow from the seed and the step, so that a resumed run repeats the interrupted one exactly.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from .finite import read_report
from .memory_trial import longest_pairs, longest_rows
from .phases import LossPhase, contrastive_steps_before
from .publishing_trainer import PublishingTrainer
from .streams import EpochRows, EpochRowSampler, MicroBatchStream, PairBatchSampler, RowSource

# Which rows a batch is made of, as the collators and the trainer name them.
ROW_NUMBERS = ("row_ids", "epochs", "pair_micro_batch")


class FeedingTrainer(PublishingTrainer):
    """Takes rows by seed and epoch, and pairs by seed and step; made by `MagnetTrainer`."""

    pair_dataset: RowSource | None
    _row_sampler: EpochRowSampler | None
    _pair_stream: MicroBatchStream[dict[str, Any]]

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """Collect the micro-batches of a step as the parent does, and the pairs of the steps that use them."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        step = self.state.global_step
        if self._phase().sscl == 0:
            self._pair_stream.stop()
            return batches, num_items
        # Short windows at the end of an epoch leave a gap, so that positions depend on the step alone.
        first = contrastive_steps_before(self.phases, step) * self.args.gradient_accumulation_steps
        return [
            {**batch, "pairs": self._pair_stream.fetch(number), "pair_micro_batch": number}
            for number, batch in enumerate(batches, first)
        ], num_items

    def replay(self, report: str | Path) -> list[dict[str, Any]]:
        """The micro-batches of a step that was not finite, as this process had them, on its device.

        Args:
            report (`str` or `Path`): The file that the error named, of a run with these data and arguments.

        Returns:
            List of what `compute_loss` takes, one for each micro-batch.
        """
        batches = []
        for rows in read_report(report)["micro_batches"]:
            numbers = zip(rows["row_ids"], rows["epochs"], strict=True)
            samples = [{**self.train_dataset[row], "row_id": row, "epoch": epoch} for row, epoch in numbers]
            batch = self.data_collator(samples)
            if "pair_micro_batch" in rows:
                batch["pair_micro_batch"] = rows["pair_micro_batch"]
                batch["pairs"] = next(iter(self._pair_dataloader(rows["pair_micro_batch"])))
            batches.append(self._prepare_inputs(batch))
        return batches

    def _heaviest_batch(self, phase: LossPhase) -> dict[str, Any]:
        """A micro-batch of the longest rows, and with a contrastive loss of the longest pairs."""
        rows = EpochRows(self.train_dataset)
        batch = self.data_collator([rows[row] for row in longest_rows(rows.rows, count=self._train_batch_size)])
        if phase.sscl > 0:
            assert self.pair_dataset is not None
            longest = longest_pairs(self.pair_dataset, count=self.args.contrastive_batch_size)
            batch["pairs"] = self._pair_collator()([self.pair_dataset[pair] for pair in longest])
        return batch

    def get_train_dataloader(self) -> DataLoader:
        """Load training rows that know their number and epoch."""
        if self.train_dataset is None:
            raise ValueError("`train_dataset` is missing; pass rows with `input_ids` to train.")
        return self._get_dataloader(
            dataset=EpochRows(self.train_dataset),
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        """Shuffle by seed and epoch, and keep the sampler, which has to be told the epoch."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._row_sampler = EpochRowSampler(len(rows), seed=seed)
        return self._row_sampler

    def _run_epoch(self, model: nn.Module, epoch: int, *args: Any, **kwargs: Any) -> None:
        """Run the parent's epoch with the sampler set to it; nothing where a finished run is resumed."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # The parent and accelerate do not reach a sampler behind both a shard and a skip of batches.
        assert self._row_sampler is not None
        self._row_sampler.set_epoch(epoch)
        super()._run_epoch(model, epoch, *args, **kwargs)

    def _pair_dataloader(self, first_micro_batch: int) -> DataLoader:
        """Load the pairs of this process from a micro-batch on."""
        assert self.pair_dataset is not None
        end = contrastive_steps_before(self.phases, self.args.max_steps) * self.args.gradient_accumulation_steps
        sampler = PairBatchSampler(
            len(self.pair_dataset),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            batch_size=self.args.contrastive_batch_size,
            first_micro_batch=first_micro_batch,
            end_micro_batch=end,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
        )
        return self._plain_dataloader(self.pair_dataset, sampler, self._pair_collator())


__all__ = ["ROW_NUMBERS", "FeedingTrainer"]
