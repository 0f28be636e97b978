"""`MagnetTrainer`: transformers' Trainer with the three objectives, their data and their evaluation.

It knows a model by what its forward takes and returns, never by its class.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput, unwrap_peft_model

from .checkpoints import (
    check_checkpoint,
    check_processes,
    forget_completeness,
    last_complete_checkpoint,
    remove_old_checkpoints,
    seal_checkpoint,
)
from .checks import check_run
from .compiling import compile_layers, compiled, take_over_compilation
from .contrastive import (
    HEAD_NAME,
    attach_contrastive_head,
    gather_with_gradient,
    load_head,
    save_head,
)
from .data_collator import DataCollatorForMagnet
from .feeding_trainer import ROW_NUMBERS, FeedingTrainer
from .finite import FiniteWatch
from .lora import adapter_layers, inputs_as_they_are
from .losses import mntp_loss, msg_loss, sscl_loss
from .objectives import count_items, forward_targets
from .sharding import check_sharding, keep_output_dtypes, whole_weights
from .streams import EpochRowSampler, MicroBatchStream, RowSource
from .training_args import MagnetTrainingArguments
from .views import contrastive_views


class MagnetTrainer(FeedingTrainer):
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
        self._watch = FiniteWatch(args.output_dir or ".", process_index=args.process_index)
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
        self.compiled_layers = compile_layers(model, take_over_compilation(self.accelerator.state.dynamo_plugin, args))

    # ---- The step ----

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward as the parent does, in the forms that layers have in training.

        Raises:
            FloatingPointError: a loss or gradient that is no number, on a CPU at once, elsewhere by the next log.
        """
        with self.layers_for_training():
            loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            # DeepSpeed has made its step by now, and keeps no gradient; those of fp16 overflow as its scale is sought.
            is_seen = not (self.is_deepspeed_enabled or self.args.fp16)
            self._watch.end_step(self.state.global_step + 1, self.model.parameters() if is_seen else [])
            if self.args.device.type == "cpu":
                self._watch.check()
        return loss

    @contextmanager
    def layers_for_training(self) -> Iterator[None]:
        """Adapters without conversions that autocast undoes, and layers compiled where `torch_compile` is set."""
        with inputs_as_they_are(self._autocast_layers), compiled(self.compiled_layers):
            yield

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
        elif list(self.head.parameters()):
            # A head without a gradient would make some optimizers and wrappers treat it differently from step to step.
            # It is called, for ZeRO's third stage has its weights nowhere else.
            width = unwrap_peft_model(self.accelerator.unwrap_model(model)).config.hidden_size
            loss = loss + 0.0 * self.head(torch.zeros(1, width, device=loss.device)).sum()
        if model.training:
            self._remember(parts)
            if self.is_in_train:
                self._watch.note(parts, {name: inputs[name] for name in ROW_NUMBERS if name in inputs})
        return (loss, parts) if return_outputs else loss

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

    # ---- Logging ----

    def _remember(self, parts: dict[str, Tensor]) -> None:
        """Add up the losses of micro-batches until the next log, without waiting for the device."""
        for name, part in parts.items():
            total, steps = self._parts.get(name, (torch.zeros_like(part), 0.0))
            self._parts[name] = (total + part.detach(), steps + 1 / self._num_micro_batches())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent does, each objective's unweighted mean beside the training loss."""
        self._watch.check()
        if "loss" in logs and self._parts:
            totals = torch.stack([total for total, _ in self._parts.values()])
            means = self.accelerator.reduce(totals, reduction="mean").tolist()
            for (name, (_, steps)), mean in zip(self._parts.items(), means, strict=True):
                logs[f"loss_{name}"] = mean / steps
            self._parts = {}
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the parent does, but nothing that a bad step has spoilt."""
        self._watch.check()
        return super().evaluate(*args, **kwargs)

    # ---- Checkpoints ----

    @property
    def shares_weights(self) -> bool:
        """Whether each process has a part of the weights alone: by FSDP2 or by ZeRO's third stage."""
        return self.is_fsdp_enabled or (self.is_deepspeed_enabled and is_deepspeed_zero3_enabled())

    def whole_weights(self) -> dict[str, Tensor]:
        """All weights in CPU memory, put together by all processes, of which each has to ask; surely in the first.

        With DeepSpeed and half precision they are rounded to it: the model has no others.
        """
        if self.is_deepspeed_enabled:
            return self.accelerator.get_state_dict(self.deepspeed) or {}
        return whole_weights(self.model, keep=self.args.should_save)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, or go on from a checkpoint; `True` takes the newest one that is whole.

        Raises:
            ValueError: if there is none, its files are not those that were written, or a run with another number of
                processes wrote it.
            FloatingPointError: as `training_step`.
        """
        if resume_from_checkpoint is True:
            assert self.args.output_dir is not None
            found: list[Path | None] = [None]
            if self.is_world_process_zero():  # which reads every byte of it
                found = [last_complete_checkpoint(self.args.output_dir, num_processes=self.accelerator.num_processes)]
            (last,) = broadcast_object_list(found)
            if last is None:
                raise ValueError(
                    f"{self.args.output_dir} has no complete checkpoint to resume from. Name one, or start afresh."
                )
            resume_from_checkpoint = str(last)
        elif resume_from_checkpoint:
            check_checkpoint(resume_from_checkpoint)
        if resume_from_checkpoint:
            check_processes(resume_from_checkpoint, num_processes=self.accelerator.num_processes)
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._watch.check()
        if self.args.uses_contrastive_loss:
            kept = self.args.contrastive_head if self.args.keep_contrastive_head else None
            unwrap_peft_model(self.accelerator.unwrap_model(self.model)).config.magnet["contrastive_head"] = kept
        return output

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as the parent does; until the end of it the checkpoint counts as incomplete, and no older one goes."""
        self._watch.check()
        step, run = self.state.global_step, Path(self._get_output_dir(trial))
        if self.args.should_save:
            forget_completeness(run / f"checkpoint-{step}")
        # The parent would delete before the seal, and by the times of files.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            torch.save(self.args, run / f"checkpoint-{step}" / TRAINING_ARGS_NAME)  # with the limit
            seal_checkpoint(run / f"checkpoint-{step}")
            remove_old_checkpoints(run, step=step, limit=limit, best=self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the contrastive head with the rest of what only resuming needs."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.is_deepspeed_enabled:
            return  # it is part of the weights there
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
