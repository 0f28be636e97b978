"""`MagnetTrainer`: transformers' Trainer with the three objectives, their data and their evaluation.

What it adds is stateless: rows and pairs follow from the seed and the step, so that a resumed run repeats the
interrupted one exactly. It knows a model by what its forward takes and returns, never by its class.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import TrainOutput, unwrap_peft_model

from .checkpoints import check_processes, forget_completeness, last_complete_checkpoint
from .checks import check_run
from .contrastive import (
    HEAD_NAME,
    attach_contrastive_head,
    gather_with_gradient,
    load_head,
    save_head,
)
from .data_collator import DataCollatorForMagnet
from .lora import adapter_layers, inputs_as_they_are
from .losses import mntp_loss, msg_loss, sscl_loss
from .objectives import count_items, forward_targets
from .phases import contrastive_steps_before
from .publishing_trainer import PublishingTrainer
from .sharding import check_sharding, keep_output_dtypes
from .streams import EpochRows, EpochRowSampler, MicroBatchStream, PairBatchSampler, RowSource
from .training_args import MagnetTrainingArguments
from .views import contrastive_views


class MagnetTrainer(PublishingTrainer):
    """Train a decoder to generate, encode and infill at once.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Its forward takes `mode`, `segment_ids`, `target_ids`
            and `logits_to_keep`.
        args (`MagnetTrainingArguments`): Schedule, corruption and everything else.
        data_collator (`DataCollatorForMagnet`, *optional*): Corrupts rows; made from the tokenizer, the model's config
            and `args` if left out.
        train_dataset (`RowSource`, *optional*): Rows with `input_ids`.
        eval_dataset (`RowSource` or a `dict` of them, *optional*): Rows with `input_ids`.
        pair_dataset (`RowSource`, *optional*): Rows with the strings `anchor` and `positive`; needed where the
            contrastive loss has a weight.
        eval_pair_dataset (`RowSource`, *optional*): Held-out pairs.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer; saved with the model.
        callbacks (list of `TrainerCallback`, *optional*): Added to the parent's.
        optimizers (`tuple`, *optional*): Optimizer and scheduler, as the parent takes them.

    Raises:
        ValueError: listing everything that does not fit together, before any training.

    Source: MAGNET (Khosla et al. 2025), section 3: `L = l1 * MNTP + l2 * SSCL + l3 * MSG`.
    """

    # `compute_loss` divides by counts over the whole accumulation window.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        *,
        args: MagnetTrainingArguments,
        data_collator: DataCollatorForMagnet | None = None,
        train_dataset: RowSource | None = None,
        eval_dataset: RowSource | dict[str, RowSource] | None = None,
        pair_dataset: RowSource | None = None,
        eval_pair_dataset: RowSource | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        base_model = unwrap_peft_model(model)
        check_run(
            base_model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            pair_dataset=pair_dataset,
            eval_pair_dataset=eval_pair_dataset,
            tokenizer=processing_class,
        )
        if data_collator is None:
            assert processing_class is not None
            data_collator = DataCollatorForMagnet.from_tokenizer(
                processing_class,
                model_config=base_model.config,
                mask_token_id=base_model.config.magnet["mask_token_id"],
                settings=args.corruption_settings,
                seed=args.seed,
            )
        if any(phase.msg > 0 for phase in args.phases):
            base_model.config.magnet["end_of_span"] = data_collator.settings.end_of_span
        self.pair_dataset = pair_dataset
        self.eval_pair_dataset = eval_pair_dataset
        self.phases = args.phases
        self.head = attach_contrastive_head(
            base_model,
            kind=args.contrastive_head if args.uses_contrastive_loss else "none",
            hidden_size=base_model.config.hidden_size,
            seed=args.seed,
        )
        if args.gradient_checkpointing and base_model is not model:
            # Adapters in checkpointed layers get no gradient where the layers' inputs ask for none.
            base_model.enable_input_require_grads()
        self._row_sampler: EpochRowSampler | None = None
        self._pair_stream: MicroBatchStream[dict[str, Tensor]] = MicroBatchStream(self._pair_dataloader)
        self._parts: dict[str, tuple[Tensor, float]] = {}
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        check_sharding(plugin, view_dropout=args.view_dropout)
        keep_output_dtypes(plugin)
        self._autocast_layers = adapter_layers(model) if args.bf16 or args.fp16 else []

    # ---- The step ----

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward as the parent does, adapters without conversions that autocast undoes."""
        with inputs_as_they_are(self._autocast_layers):
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the weighted loss of one micro-batch, scaled so that gradients add up over the accumulation window.

        MNTP and MSG are exact: each is divided by its items in the whole window on all processes. SSCL is a mean over
        micro-batches, each with its own negatives.

        Args:
            model (`nn.Module`): The model, wrapped for several processes where there are several.
            inputs (`dict`): What the collator returned; under `pairs` the contrastive batch, where the step has one.
            return_outputs (`bool`): Whether to return the unweighted losses as well.
            num_items_in_batch (`torch.Tensor` of shape `(2,)`, *optional*): Items of MNTP and MSG; this batch's alone
                if left out.

        Returns:
            `torch.Tensor` of shape `()`, or a tuple of it and a `dict`.
        """
        weights = self._phase()
        num_items = num_items_in_batch if isinstance(num_items_in_batch, Tensor) else self._count(inputs)
        # Wrappers average gradients over the processes; sums over a global count have to be added up instead.
        num_processes = self.accelerator.num_processes
        parts: dict[str, Tensor] = {}
        loss = torch.zeros((), dtype=torch.float32, device=self.args.device)
        if weights.mntp > 0 or weights.msg > 0:
            joint = forward_targets(model, inputs)
            parts["mntp"] = num_processes * mntp_loss(joint.mntp, num_items=num_items[0])
            parts["msg"] = num_processes * msg_loss(joint.msg, num_items=num_items[1])
            loss = weights.mntp * parts["mntp"] + weights.msg * parts["msg"]
        if "pairs" in inputs:
            parts["sscl"] = self._sscl(model, inputs["pairs"]) / self._num_micro_batches()
            loss = loss + weights.sscl * parts["sscl"]
        else:
            # A head without a gradient would make some optimizers and wrappers treat it differently from step to step.
            for weight in self.head.parameters():
                loss = loss + 0.0 * weight.sum()
        if model.training:
            self._remember(parts)
        return (loss, parts) if return_outputs else loss

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
        pairs = (self._pair_stream.fetch(first + offset) for offset in range(len(batches)))
        return [{**batch, "pairs": batch_pairs} for batch, batch_pairs in zip(batches, pairs, strict=True)], num_items

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Count the items of MNTP and MSG over the accumulation window and all processes."""
        if not batch_samples:
            return None
        counts = torch.stack([self._count(batch) for batch in batch_samples]).sum(dim=0).to(device)
        return self.accelerator.reduce(counts, reduction="sum")

    def _count(self, batch: dict[str, Tensor]) -> Tensor:
        """Count the items of MNTP and MSG in one batch."""
        return count_items(
            batch, mntp_normalization=self.args.mntp_normalization, msg_normalization=self.args.msg_normalization
        )

    def _num_micro_batches(self) -> int:
        """Micro-batches of the current step; the parent shortens the last window of an epoch."""
        return self.current_gradient_accumulation_steps if self.is_in_train else 1

    def _sscl(self, model: nn.Module, pairs: dict[str, Tensor]) -> Tensor:
        """Contrast this process's anchors with the positives of all processes."""
        anchors, positives = contrastive_views(
            model,
            pairs,
            head=self.head,
            dropout=self.args.view_dropout,
            recompute=self.args.contrastive_recompute,
        )
        first = self.accelerator.process_index * len(anchors)
        return sscl_loss(
            anchors,
            gather_with_gradient(positives.float()),
            temperature=self.args.temperature,
            similarity=self.args.similarity,
            targets=torch.arange(first, first + len(anchors), device=anchors.device),
        )

    # ---- Data ----

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

    # ---- Logging ----

    def _remember(self, parts: dict[str, Tensor]) -> None:
        """Add up the losses of micro-batches until the next log, without waiting for the device."""
        for name, part in parts.items():
            total, steps = self._parts.get(name, (torch.zeros_like(part), 0.0))
            self._parts[name] = (total + part.detach(), steps + 1 / self._num_micro_batches())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent does, each objective's unweighted mean beside the training loss."""
        if "loss" in logs and self._parts:
            totals = torch.stack([total for total, _ in self._parts.values()])
            means = self.accelerator.reduce(totals, reduction="mean").tolist()
            for (name, (_, steps)), mean in zip(self._parts.items(), means, strict=True):
                logs[f"loss_{name}"] = mean / steps
            self._parts = {}
        super().log(logs, start_time)

    # ---- Checkpoints ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, or go on from a checkpoint; `True` takes the newest one that was written to its end.

        Raises:
            ValueError: if there is none, or a run with another number of processes wrote it.
        """
        if resume_from_checkpoint is True:
            assert self.args.output_dir is not None
            found = last_complete_checkpoint(self.args.output_dir, num_processes=self.accelerator.num_processes)
            if found is None:
                raise ValueError(
                    f"{self.args.output_dir} has no complete checkpoint to resume from. Name one, or start afresh."
                )
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint:
            check_processes(resume_from_checkpoint, num_processes=self.accelerator.num_processes)
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.args.uses_contrastive_loss:
            kept = self.args.contrastive_head if self.args.keep_contrastive_head else None
            unwrap_peft_model(self.accelerator.unwrap_model(self.model)).config.magnet["contrastive_head"] = kept
        return output

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as the parent does; until the end of it the checkpoint counts as incomplete."""
        if self.args.should_save:
            forget_completeness(f"{self._get_output_dir(trial)}/checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the contrastive head with the rest of what only resuming needs."""
        super()._save_optimizer_and_scheduler(output_dir)
        save_head(self.head, directory=output_dir, should_save=self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights, and the head, which is no part of them but with DeepSpeed."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if not self.is_deepspeed_enabled:
            load_head(self.head, directory=resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Load the best weights, and the head that belongs to them."""
        super()._load_best_model()
        if not self.is_deepspeed_enabled:
            assert self.state.best_model_checkpoint is not None
            load_head(self.head, directory=self.state.best_model_checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn of missing weights, of which the head is none: it is loaded from its own file."""
        missing = [name for name in load_result.missing_keys if not name.startswith(HEAD_NAME)]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))


__all__ = ["MagnetTrainer"]
