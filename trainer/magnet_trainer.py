"""`MagnetTrainer`: transformers' Trainer with the three objectives, their data and their evaluation.

It knows a model by what its forward takes and returns, never by its class.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput, unwrap_peft_model

from modeling_magnet import MagnetSettings

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
from .lora import adapter_layers, adapters_under_autocast
from .losses import mntp_loss, msg_loss, sscl_loss
from .memory_trial import is_out_of_memory, random_state_kept, room_for_optimizer, told_sizes, what_to_lower
from .objectives import count_items, forward_targets
from .phases import LossPhase
from .sharding import check_sharding, keep_output_dtypes, whole_weights
from .streams import EpochRowSampler, MicroBatchStream, RowSource
from .training_args import MagnetTrainingArguments
from .views import contrastive_views

# Which losses a forward and backward pass is made of.
_Part = Literal["all", "tokens", "pairs"]


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
        compute_metrics (`Callable`, *optional*): Takes the `EvalPrediction` of an evaluation, returns a `dict` of
            further metrics. `predictions` are the likeliest tokens and `label_ids` the right ones, both arrays of
            shape `(rows, S, 2)`, MNTP and MSG, -100 where nothing was predicted. They are aligned: nothing is to be
            shifted, no `argmax` to be taken. Their rows are those of `eval_dataset`, corrupted as every evaluation
            does; several processes may add rows that hold -100 only. `include_for_metrics=["inputs"]` adds the
            corrupted rows.
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
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        base_model = unwrap_peft_model(model)
        check_run(
            base_model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            pair_dataset=pair_dataset,
            eval_pair_dataset=eval_pair_dataset,
            tokenizer=processing_class,
        )
        if data_collator is None:
            assert processing_class is not None
            data_collator = DataCollatorForMagnet.from_tokenizer(
                processing_class,
                model_config=base_model.config,
                mask_token_id=MagnetSettings.value(base_model.config, "mask_token_id"),
                settings=args.corruption_settings,
                seed=args.seed,
            )
        if any(phase.msg > 0 for phase in args.phases):
            MagnetSettings.update(base_model.config, end_of_span=data_collator.settings.end_of_span)
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
        self._part: _Part = "all"
        self._tried_phase: LossPhase | None = None
        self._watch = FiniteWatch(args.output_dir or ".", process_index=args.process_index)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if compute_metrics is not None and self.shares_weights:
            raise ValueError("`compute_metrics` needs the output layer whole; FSDP and ZeRO-3 share it. Leave it out.")
        check_sharding(plugin, view_dropout=args.view_dropout)
        keep_output_dtypes(plugin)
        self._autocast_layers = adapter_layers(model) if args.bf16 or args.fp16 else []
        self.compiled_layers = compile_layers(model, take_over_compilation(self.accelerator.state.dynamo_plugin, args))

    # ---- The step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run forward and backward as the parent does, in the forms that layers have in training.

        With a contrastive loss the token losses are back-propagated first, so that the two graphs never exist at once.

        Raises:
            FloatingPointError: a loss or gradient that is no number, on a CPU at once, elsewhere by the next log.
            torch.OutOfMemoryError: naming the phase, and what to lower.
        """
        with self.layers_for_training():
            loss = self._forward_and_backward(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and self.is_in_train:
            # DeepSpeed has made its step by now, and keeps no gradient; those of fp16 overflow as its scale is sought.
            is_seen = not (self.is_deepspeed_enabled or self.args.fp16)
            self._watch.end_step(self.state.global_step + 1, self.model.parameters() if is_seen else [])
            if self.args.device.type == "cpu":
                self._watch.check()
        return loss

    def _forward_and_backward(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """Run the parent's step once, or once for the token losses and once for the contrastive one."""
        if not self._splits_backward(inputs):
            with self._explaining_memory("all"):
                return super().training_step(model, inputs, num_items_in_batch)
        with self._only("tokens"), self._gradients_kept_back(model):
            token_loss = super().training_step(model, inputs, num_items_in_batch)
        with self._only("pairs"):
            return token_loss + super().training_step(model, inputs, num_items_in_batch)

    def _splits_backward(self, inputs: dict[str, Any]) -> bool:
        """Whether a micro-batch has both kinds of losses, and two backward passes give the gradients of one."""
        weights = self._phase()
        if "pairs" not in inputs or not (weights.mntp > 0 or weights.msg > 0):
            return False
        # What a subclass adds to the loss, or multiplies it by, is to be added once and to reach all of it.
        if getattr(self.compute_loss, "__func__", None) is not MagnetTrainer.compute_loss:
            return False
        # DeepSpeed counts a backward pass as a micro-batch, and makes its optimizer step in the last one.
        return not (self.is_deepspeed_enabled or self._steps_in_backward)

    @property
    def _steps_in_backward(self) -> bool:
        """Whether the optimizer changes weights within each backward pass."""
        name = str(getattr(self.args.optim, "value", self.args.optim))
        return "lomo" in name or name.endswith("layerwise")

    @contextmanager
    def _only(self, part: _Part) -> Iterator[None]:
        """Let `compute_loss` compute one part of the loss until the context ends."""
        self._part = part
        try:
            with self._explaining_memory(part):
                yield
        finally:
            self._part = "all"

    @contextmanager
    def _gradients_kept_back(self, model: nn.Module) -> Iterator[None]:
        """Leave the gradients of this backward pass to be synchronised with those of the next one.

        DDP would average them now, and the sum once more. FSDP2 hands each process the sum of its part after every
        backward pass and adds these up, which is right; kept back, every process would hold the gradients whole.
        """
        with nullcontext() if self.is_fsdp_enabled else self.accelerator.no_sync(model):
            yield

    @contextmanager
    def layers_for_training(self) -> Iterator[None]:
        """Adapters without conversions that autocast undoes, and layers compiled where `torch_compile` is set."""
        with adapters_under_autocast(self._autocast_layers), compiled(self.compiled_layers):
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
        weights, part = self._phase(), self._part
        num_items = num_items_in_batch if isinstance(num_items_in_batch, Tensor) else self._count(inputs)
        # Wrappers average gradients over the processes; sums over a global count have to be added up instead.
        num_processes = self.accelerator.num_processes
        parts: dict[str, Tensor] = {}
        loss = torch.zeros((), dtype=torch.float32, device=self.args.device)
        if part != "pairs" and (weights.mntp > 0 or weights.msg > 0):
            joint = forward_targets(model, inputs)
            parts["mntp"] = num_processes * mntp_loss(joint.mntp, num_items=num_items[0])
            parts["msg"] = num_processes * msg_loss(joint.msg, num_items=num_items[1])
            loss = weights.mntp * parts["mntp"] + weights.msg * parts["msg"]
        if "pairs" in inputs and part != "tokens":
            parts["sscl"] = self._sscl(model, inputs["pairs"]) / self._num_micro_batches()
            loss = loss + weights.sscl * parts["sscl"]
        elif part == "all" and list(self.head.parameters()):
            # A head without a gradient would make some optimizers and wrappers treat it differently from step to step.
            # It is called, for ZeRO's third stage has its weights nowhere else.
            width = unwrap_peft_model(self.accelerator.unwrap_model(model)).config.hidden_size
            loss = loss + 0.0 * self.head(torch.zeros(1, width, device=loss.device)).sum()
        if model.training:
            self._remember(parts)
            if self.is_in_train:
                rows = {name: inputs[name] for name in ROW_NUMBERS if name in inputs}
                self._watch.note(parts, rows if part != "pairs" else None)
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

    @contextmanager
    def _explaining_memory(self, part: _Part) -> Iterator[None]:
        """Say of an error that memory ran out, in which phase, with which loss, and what to lower.

        Raises:
            torch.OutOfMemoryError: with the words of the error, too, which accelerate looks for to lower batch sizes.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            number = self.phases.index(self._phase())
            phase = f"phase {number + 1} of `loss_phases` ({self.args.loss_phases[number]!r})"
            step = "before step 1" if self._tried_phase is not None else f"at step {self.state.global_step + 1}"
            remedy = what_to_lower(of_pairs=part != "tokens" and self._phase().sscl > 0)
            raise torch.OutOfMemoryError(f"Memory ran out {step} in {phase}. {remedy} ({error})") from error

    # ---- The trial before the run ----

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare as the parent does, then try the memory of the phases, before the first evaluation."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        # DeepSpeed keeps gradients of its own until its next step. Some optimizers step in each backward pass.
        if self.args.memory_trial and not self.is_deepspeed_enabled and not self._steps_in_backward:
            self._try_phases(prepared[0])
        return prepared

    def _try_phases(self, model: nn.Module) -> None:
        """Run the heaviest micro-batch of each phase forward and backward, and leave everything as it was.

        Phases with the same kinds of losses are tried once. What a resumed run has begun before has been tried.
        """
        first, tried = 0, set()
        for number, phase in enumerate(self.phases):
            kind = (phase.mntp > 0 or phase.msg > 0, phase.sscl > 0)
            if kind not in tried and first >= self.state.global_step:
                self._try_phase(model, phase, name=f"phase {number + 1} ({self.args.loss_phases[number]})")
            tried.add(kind)
            first += phase.steps

    def _try_phase(self, model: nn.Module, phase: LossPhase, *, name: str) -> None:
        """Try one phase: nothing is logged or counted, and no gradient and no random number is left behind."""
        was_training, logged = self.model.training, self._parts
        self._tried_phase, self._parts, self.is_in_train = phase, {}, False
        try:
            with random_state_kept():
                batch = self._heaviest_batch(phase)
                if self.is_world_process_zero():  # a process that the system kills for its memory says nothing
                    print(f"trying the memory of {name}: {told_sizes(batch)}", flush=True)
                room = room_for_optimizer(self.optimizer)
                # Layers that are compiled for these shapes first would compute other bits in the run.
                with adapters_under_autocast(self._autocast_layers):
                    # FSDP2 would hold the gradients whole where it does not share them out.
                    with nullcontext() if self.is_fsdp_enabled else self.accelerator.no_sync(model):
                        self._forward_and_backward(model, batch, None)
                del room
        finally:
            self._tried_phase, self._parts, self.is_in_train = None, logged, True
            model.zero_grad()
            self.model.train(was_training)

    def _phase(self) -> LossPhase:
        """The weights of the coming step, or of the phase that is being tried."""
        return super()._phase() if self._tried_phase is None else self._tried_phase

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
            inner = unwrap_peft_model(self.accelerator.unwrap_model(self.model))
            MagnetSettings.update(inner.config, contrastive_head=kept)
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
