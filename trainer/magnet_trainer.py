"""Train a decoder to generate, encode and infill at once: `MagnetTrainer`.

The trainer relies on the arguments and outputs of the model's forward, not on its class.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, unwrap_peft_model

from modeling_magnet.configuration_magnet import MagnetSettings
from modeling_magnet.publishing.adapters import write_adapter_settings
from modeling_magnet.sources_magnet import CARD

from . import checkpoints, compilation, contrastive_head, distributed, evaluation, objectives, samplers
from .checks import check_run
from .data_collator import DataCollatorForMagnet, DataCollatorForPairs
from .files import atomic_write
from .fused_adapters import adapters_under_autocast, casting_layers
from .lora import targets_in_order
from .loss_phases import LossPhase
from .model_card import run_card
from .nan_guard import NanGuard
from .objectives import OBJECTIVES
from .samplers import EpochRows
from .sources import RowSource
from .training_args import MagnetTrainingArguments

# Fields of a batch that identify its rows and pairs.
_ROW_NUMBERS = ("row_ids", "epochs", "pair_micro_batch")


class MagnetTrainer(Trainer):
    """Extends transformers' `Trainer` by the objectives of `OBJECTIVES`, their data and evaluation, and a model card.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Its forward takes `mode`, `segment_ids`, `target_ids` and
            `logits_to_keep`.
        args (`MagnetTrainingArguments`): Schedule, corruption and all other settings.
        data_collator (`DataCollatorForMagnet`, *optional*): Corrupts rows; by default made from `args`.
        train_dataset (`RowSource`, *optional*): Rows with `input_ids`.
        eval_dataset (`RowSource` or a `dict` of them, *optional*): Held-out rows with `input_ids`.
        pair_dataset, eval_pair_dataset (`RowSource`, *optional*): Rows with the strings `anchor` and `positive`.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer; saved with the model.
        compute_metrics (`Callable`, *optional*): Maps the `EvalPrediction` of an evaluation to further metrics.
            `predictions` are the most likely tokens and `label_ids` the correct ones, aligned arrays of shape
            `(rows, S, objectives)`, -100 at positions without a label; several processes may add rows of -100.
            `include_for_metrics=["inputs"]` adds the corrupted rows.
        options: Further arguments of `Trainer`, such as `callbacks` and `optimizers`.

    Raises:
        ValueError: If the run cannot work; the message lists all problems, before any training.

    Source: MAGNET (Khosla et al. 2025), section 3: `L = l1 * MNTP + l2 * SSCL + l3 * MSG`.
    """

    # `compute_loss` divides by counts over the whole accumulation window.
    loss_is_scaled_for_ga = True
    # Narrow the types of the parent.
    args: MagnetTrainingArguments
    data_collator: DataCollatorForMagnet
    model: Any
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any

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
        **options: Any,
    ) -> None:
        base_model: Any = unwrap_peft_model(model)
        rows: dict[str, Any] = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        pairs: dict[str, Any] = {"pair_dataset": pair_dataset, "eval_pair_dataset": eval_pair_dataset}
        check_run(base_model, args=args, data_collator=data_collator, tokenizer=processing_class, **rows, **pairs)
        if data_collator is None:
            assert processing_class is not None, "checked by `check_run`"
            data_collator = DataCollatorForMagnet.from_tokenizer(
                processing_class, model_config=base_model.config, settings=args.corruption_settings, seed=args.seed
            )
        self.phases = args.phases
        self._phase_ends = list(accumulate(phase.steps for phase in self.phases))
        if any("msg" in phase.weights for phase in self.phases):
            MagnetSettings.update_config(base_model.config, end_of_span=data_collator.settings.end_of_span)
        if args.uses_contrastive_loss:
            MagnetSettings.update_config(base_model.config, pooling=args.contrastive_pooling)
        self.head = contrastive_head.attach_contrastive_head(
            base_model,
            kind="none" if args.contrastive_head == "none" or not args.uses_contrastive_loss else "tanh",
            hidden_size=base_model.config.hidden_size,
            seed=args.seed,
        )
        if args.gradient_checkpointing and base_model is not model:
            # Adapters in checkpointed layers get a gradient only if the inputs of the layers require one.
            base_model.enable_input_require_grads()
        data = {"data_collator": data_collator, "processing_class": processing_class, **rows}
        super().__init__(model, args, compute_metrics=compute_metrics, **data, **options)
        if compute_metrics is not None and self.has_sharded_weights:
            raise ValueError("`compute_metrics` needs the whole LM head, but FSDP and ZeRO-3 shard it. Omit it.")
        state = self.accelerator.state
        distributed.configure_sharding(getattr(state, "fsdp_plugin", None), view_dropout=args.view_dropout)
        compiler = compilation.take_over_compilation(state.dynamo_plugin, args)
        self.compiled_layers = compilation.compile_layers(model, compiler)
        self._autocast_layers = casting_layers(model) if args.bf16 or args.fp16 else []

        self.pair_dataset: Any = pair_dataset
        self.eval_pair_dataset = eval_pair_dataset
        self.pair_collator = _collator_for_pairs(self.processing_class, args, pad_token_id=data_collator.pad_token_id)
        self._contrastive_settings = args.contrastive_settings
        self._pair_stream = samplers.PairStream(pair_dataset, self.pair_collator, args=args)
        self._row_sampler: samplers.EpochRowSampler | None = None

        self._guard = NanGuard(args.output_dir or ".", process_index=args.process_index)
        # Losses and row numbers of the current step, and the sum and number of steps of each loss since the last log.
        self._losses: list[tuple[str, Tensor]] = []
        self._rows: list[dict[str, Any]] = []
        self._loss_totals: dict[str, tuple[Tensor, float]] = {}

    @property
    def _phase(self) -> LossPhase:
        """The phase of the next step; the last phase does not end."""
        return self.phases[self._phase_number]

    @property
    def _phase_number(self) -> int:
        return min(bisect_right(self._phase_ends, self.state.global_step), len(self.phases) - 1)

    @property
    def _num_pair_steps(self) -> int:
        """The number of earlier steps with pairs. It determines the next pairs, so checkpoints need not store it."""
        earlier = self.phases[: self._phase_number]
        in_phase = self.state.global_step - sum(phase.steps for phase in earlier)
        return sum(phase.steps for phase in earlier if phase.uses_pairs) + in_phase * self._phase.uses_pairs

    # ---- Data. Seed and epoch determine the rows, seed and step the pairs, so that resumed runs repeat them ----

    def get_train_dataloader(self) -> DataLoader:
        """Load training rows with their numbers and epochs, shuffled by seed and epoch."""
        if self.train_dataset is None:
            raise ValueError("`train_dataset` is missing; pass rows with `input_ids` to train.")
        # Kept, so that `_run_epoch` can set the epoch.
        sampler = self._row_sampler = samplers.EpochRowSampler(len(self.train_dataset), seed=self.args.order_seed)
        return self._get_dataloader(
            dataset=EpochRows(self.train_dataset),
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=lambda rows: sampler,
            is_training=True,
        )

    def _run_epoch(self, model: nn.Module, epoch: int, *args: Any, **kwargs: Any) -> None:
        """Run an epoch after telling the sampler its number; run nothing if a finished run is resumed."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # transformers and accelerate set no epoch if the sampler is wrapped for sharding and for skipping batches.
        assert self._row_sampler is not None
        self._row_sampler.set_epoch(epoch)
        super()._run_epoch(model, epoch, *args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """Collect the micro-batches of a step, with pairs if the phase uses them."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not self._phase.uses_pairs:
            self._pair_stream.stop()
            return batches, num_items
        # The last window of an epoch may be shorter. It skips numbers, so that they depend only on the step.
        first = self._num_pair_steps * self.args.gradient_accumulation_steps
        return [
            {**batch, "pairs": self._pair_stream.fetch(number), "pair_micro_batch": number}
            for number, batch in enumerate(batches, first)
        ], num_items

    # ---- The step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run forward and backward of a micro-batch.

        Token losses are back-propagated before the contrastive forward, so that only one graph exists at a time.

        Raises:
            FloatingPointError: If a loss or gradient is NaN or infinite; on a GPU not before the next log.
        """
        with ExitStack() as stack:
            if self._autocast_layers:
                stack.enter_context(adapters_under_autocast(self._autocast_layers))
            if self.compiled_layers:
                stack.enter_context(compilation.compiled(self.compiled_layers))
            loss = self._forward_and_backward(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and self.is_in_train:
            # DeepSpeed keeps no gradients after its step, and fp16 gradients may overflow until the scale is found.
            parameters = [] if self.is_deepspeed_enabled or self.args.fp16 else self.model.parameters()
            self._guard.end_step(self.state.global_step + 1, self._losses, self._rows, parameters)
            self._losses, self._rows = [], []
            if self.args.device.type == "cpu":
                self._guard.check()
        return loss

    def _forward_and_backward(self, model: nn.Module, inputs: dict[str, Any], num_items: Any) -> Tensor:
        """Run the parent's step on the batch, or first on its rows and then on its pairs."""
        # A subclass may add a term to the loss or scale it, which has to happen once and to the whole loss.
        is_original = getattr(self.compute_loss, "__func__", None) is MagnetTrainer.compute_loss
        # DeepSpeed counts each backward pass as a micro-batch, and runs its optimizer step in the last one.
        keeps_gradients = not (self.is_deepspeed_enabled or _steps_in_backward(self.args))
        if not ("pairs" in inputs and self._phase.uses_tokens and is_original and keeps_gradients):
            return super().training_step(model, inputs, num_items)
        rows = {name: value for name, value in inputs.items() if name != "pairs"}
        # DDP averages gradients during a backward pass, but both passes add to the same gradients. The first one must
        # not communicate, or its gradients would be averaged again with those of the second.
        with self._without_gradient_sync(model):
            token_loss = super().training_step(model, rows, num_items)
        return token_loss + super().training_step(model, {"pairs": inputs["pairs"]}, num_items)

    def _without_gradient_sync(self, model: nn.Module) -> Any:
        """Delay the averaging of gradients over processes to the next backward pass.

        FSDP2 may reduce after every pass, since it adds reduced shards up; delayed, every process would hold the whole
        gradients.
        """
        return nullcontext() if self.is_fsdp_enabled else self.accelerator.no_sync(model)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the weighted loss of one micro-batch, scaled so that gradients add up over the accumulation window.

        Each token loss is divided by its items in the whole window on all processes, `num_items_in_batch` of shape
        `(K,)`; by default by those of this batch. A pair loss is a mean over micro-batches, each with its own
        negatives. With `return_outputs` the unweighted losses are returned, too.
        """
        phase = self._phase
        losses: dict[str, Tensor] = {}
        if phase.uses_tokens and "input_ids" in inputs:
            num_items = num_items_in_batch if isinstance(num_items_in_batch, Tensor) else self._count(inputs)
            outputs = objectives.forward_targets(model, inputs)
            for (name, token_losses), items in zip(outputs.losses.items(), num_items, strict=True):
                # Wrappers average gradients over processes, but losses divided by a global count have to be summed.
                scale = self.accelerator.num_processes
                losses[name] = scale * OBJECTIVES[name].loss(token_losses, num_items=items)
        if "pairs" in inputs:
            pair_losses = objectives.pair_losses(
                model,
                inputs["pairs"],
                head=self.head,
                settings=self._contrastive_settings,
                num_processes=self.accelerator.num_processes,
                process_index=self.args.process_index,
            )
            losses |= {name: pair_loss / self._num_micro_batches for name, pair_loss in pair_losses.items()}
        loss = torch.zeros((), dtype=torch.float32, device=self.args.device)
        for name, term in losses.items():
            loss = loss + phase.weights.get(name, 0.0) * term
        if not phase.uses_pairs and list(self.head.parameters()):
            # Give the head a gradient of 0, since some optimizers and wrappers need one in every step. The head has to
            # be called, since ZeRO-3 gathers its weights only then.
            width = unwrap_peft_model(self.accelerator.unwrap_model(model)).config.hidden_size
            loss = loss + 0.0 * self.head(torch.zeros(1, width, device=loss.device)).sum()
        if model.training:
            # Kept as tensors for the next log and the NaN guard, since reading them would synchronize with the device.
            for name, term in losses.items():
                total, steps = self._loss_totals.get(name, (torch.zeros_like(term), 0.0))
                self._loss_totals[name] = (total + term.detach(), steps + 1 / self._num_micro_batches)
            if self.is_in_train:
                self._losses += [(name, term.detach()) for name, term in losses.items()]
                if row_numbers := {name: inputs[name] for name in _ROW_NUMBERS if name in inputs}:
                    self._rows.append(row_numbers)
        return (loss, losses) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Count the items of each token objective over the accumulation window and all processes."""
        if not batch_samples:
            return None
        counts = torch.stack([self._count(batch) for batch in batch_samples]).sum(dim=0).to(device)
        return self.accelerator.reduce(counts, reduction="sum")

    def _count(self, batch: dict[str, Any]) -> Tensor:
        return objectives.count_items(batch, as_printed=self.args.losses_as_printed)

    @property
    def _num_micro_batches(self) -> int:
        """The number of micro-batches of the current step; the last window of an epoch may be shorter."""
        return self.current_gradient_accumulation_steps if self.is_in_train else 1

    # ---- Logs and evaluation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log like the parent, and add the unweighted mean loss of each objective."""
        self._guard.check()
        if "loss" in logs and self._loss_totals:
            totals = torch.stack([total for total, _ in self._loss_totals.values()])
            means = self.accelerator.reduce(totals, reduction="mean").tolist()
            for (name, (_, steps)), mean in zip(self._loss_totals.items(), means, strict=True):
                logs[f"loss_{name}"] = mean / steps
            self._loss_totals = {}
        super().log(logs, start_time)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Load each evaluation row on one process, corrupted in the same way every time."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        collator = evaluation.EvaluationCollator(self.data_collator)
        size = self.args.eval_batch_size
        return samplers.even_dataloader(EpochRows(rows), collator, batch_size=size, args=self.args)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Load test rows like evaluation rows."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Run the parent's loop, whose `prediction_step` collects sums, and convert these to metrics.

        Metrics are `loss`, the losses of all objectives, `masked_accuracy`, `infilling_perplexity`,
        `left_to_right_perplexity` (of the same span tokens) and `causal_perplexity`. `loss` weights the losses as
        the current phase does. Metrics without a token are omitted. The random state of training does not change.
        """
        self._guard.check()
        was_training = self.model.training
        self._sums: Counter[str] = Counter()
        # accelerate's default drops the last rows, taking them for repeated rows of its own loader.
        self.gather_function = self.accelerator.gather
        output = super().evaluation_loop(*args, **{**kwargs, "metric_key_prefix": metric_key_prefix})
        assert output.metrics is not None
        metrics = evaluation.language_metrics(distributed.sum_over_processes(dict(self._sums), self.accelerator))
        if self.eval_pair_dataset is not None:
            parts = {"head": self.head, "collator": self.pair_collator, "accelerator": self.accelerator}
            metrics |= evaluation.pair_metrics(self.model, self.eval_pair_dataset, args=self.args, **parts)
        weights = self._phase.weights
        metrics["loss"] = sum(weights.get(name, 0.0) * metrics.get(f"loss_{name}", 0.0) for name in OBJECTIVES)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        self.model.train(was_training)
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor | None, Tensor | None]:
        """Add the sums of one batch to the current evaluation, and predict tokens for `compute_metrics`."""
        batch: dict[str, Any] = self._prepare_inputs(inputs)
        sums, outputs = evaluation.language_sums(model, batch, as_printed=self.args.losses_as_printed)
        self._sums.update(sums)
        if self.compute_metrics is None or prediction_loss_only:
            return None, None, None
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        return None, *evaluation.predict_tokens(outputs, batch["corrupted"], head=head)

    # ---- Checkpoints ----

    @property
    def has_sharded_weights(self) -> bool:
        """Whether each process holds only a shard of the weights, by FSDP2 or ZeRO-3."""
        return self.is_fsdp_enabled or (self.is_deepspeed_enabled and is_deepspeed_zero3_enabled())

    def gather_weights(self) -> dict[str, Tensor]:
        """Gather all weights in CPU memory; every process must call this, and the first one gets them."""
        if self.is_deepspeed_enabled:  # in the training's precision
            return self.accelerator.get_state_dict(self.deepspeed) or {}
        return distributed.gather_weights(self.model, keep=self.args.should_save)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, or resume from a checkpoint; see `checkpoint_to_resume` and `training_step` for errors."""
        resume = checkpoints.checkpoint_to_resume(resume_from_checkpoint, output_dir=str(self.args.output_dir))
        output = super().train(resume, *args, **kwargs)
        self._guard.check()
        if self.args.uses_contrastive_loss:
            kept = "tanh" if self.args.contrastive_head == "keep" else None
            MagnetSettings.update_config(self._inner_model.config, contrastive_head=kept)
        return output

    @property
    def _inner_model(self) -> Any:
        """The model without the wrappers of accelerate and peft."""
        return unwrap_peft_model(self.accelerator.unwrap_model(self.model))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, then remove older ones."""
        self._guard.check()
        step, run = self.state.global_step, Path(self._get_output_dir(trial))
        if self.args.should_save:
            # The last file that is written: without it, an overwritten checkpoint is incomplete.
            (run / f"checkpoint-{step}" / TRAINER_STATE_NAME).unlink(missing_ok=True)
        # The parent would remove older ones in the order of file times, which a wrong clock changes.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with atomic_write(run / f"checkpoint-{step}" / TRAINING_ARGS_NAME) as file:
                torch.save(self.args, file)  # with the original limit
            checkpoints.remove_old_checkpoints(run, step=step, limit=limit, best=self.state.best_model_checkpoint)

    # The head has its own file; with DeepSpeed it is part of the weights.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the contrastive head with the states that only resuming needs."""
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.is_deepspeed_enabled:
            contrastive_head.save_training_head(self.head, directory=output_dir, should_save=self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights and the head."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if not self.is_deepspeed_enabled:
            contrastive_head.load_training_head(self.head, directory=resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Load the best weights and their head."""
        super()._load_best_model()
        if not self.is_deepspeed_enabled:
            contrastive_head.load_training_head(self.head, directory=str(self.state.best_model_checkpoint))

    # ---- The saved model and its card ----

    def card_text(self, name: str, *, merged: bool = False, **facts: Any) -> str:
        """Return the model card of this run.

        Args:
            name (`str`): Directory or Hub id of the model.
            merged, facts: As in `run_card`.
        """
        facts = {"args": self.args, "log_history": self.state.log_history, **facts}
        return run_card(self._inner_model, name, merged=merged, **facts)

    def create_model_card(self, *args: Any, model_name: str | None = None, **kwargs: Any) -> None:
        """Write the card of this run into `output_dir`; the parent's other arguments are ignored."""
        if self.is_world_process_zero():
            directory = Path(str(self.args.output_dir))
            text = self.card_text(self.args.hub_model_id or model_name or directory.name)
            (directory / CARD).write_text(text, encoding="utf-8")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save like the parent, with the card of this run and the settings of adapters."""
        model, inner = self.accelerator.unwrap_model(self.model), self._inner_model
        # By default the model would save the card of its base; a card that the user set is kept.
        writes_card = self.args.should_save and getattr(inner, "_card", "") is None
        if writes_card:
            inner.card = self.card_text(self.args.hub_model_id or Path(str(self.args.output_dir)).name)
        try:
            with targets_in_order(model):
                super()._save(output_dir, state_dict)
        finally:
            if writes_card:
                inner.card = None
        if self.args.should_save and isinstance(model, PeftModel):
            write_adapter_settings(inner, Path(str(output_dir or self.args.output_dir)))


def _steps_in_backward(args: MagnetTrainingArguments) -> bool:
    """Return whether the optimizer updates the weights during each backward pass."""
    name = str(getattr(args.optim, "value", args.optim))
    return "lomo" in name or name.endswith("layerwise")


def _collator_for_pairs(tokenizer: Any, args: MagnetTrainingArguments, *, pad_token_id: int) -> DataCollatorForPairs:
    """Make the collator that tokenizes pairs."""
    return DataCollatorForPairs(
        tokenizer=tokenizer,
        prompt=args.contrastive_prompt or None,
        max_length=args.contrastive_max_length,
        pad_token_id=pad_token_id,
        mini_batch_tokens=args.contrastive_mini_batch_tokens,
        split_special_tokens=args.split_special_tokens,
    )
