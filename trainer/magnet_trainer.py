"""Train a decoder to generate, encode and infill at once: `MagnetTrainer`.

The trainer knows a model by what its forward takes and returns, not by its class.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, unwrap_peft_model

from modeling_magnet.configuration_magnet import MagnetSettings
from modeling_magnet.publishing.adapters import write_adapter_settings
from modeling_magnet.sources_magnet import CARD

from . import checkpoints, evaluation, memory
from .checks import check_run
from .compiling import compile_layers, compiled, take_over_compilation
from .contrastive import HEAD_NAME, attach_contrastive_head, contrastive_embeddings, load_head, save_head
from .data_collator import DataCollatorForMagnet, DataCollatorForPairs
from .distributed import add_up, check_sharding, gather_with_gradient, keep_output_dtypes, whole_weights
from .lora import adapter_layers, adapters_under_autocast, targets_in_order
from .model_card import as_list, run_card
from .nan_guard import NanGuard, read_report
from .objectives import OBJECTIVES, count_items, forward_targets, pair_objectives
from .phases import LossPhase, contrastive_steps_before, phase_at
from .samplers import (
    EpochRows,
    EpochRowSampler,
    EvenBatchSampler,
    MicroBatchStream,
    PairBatchSampler,
    RowSource,
    check_row_source,
    plain_dataloader,
)
from .training_args import MagnetTrainingArguments

# Fields of a batch that identify its rows and pairs.
_ROW_NUMBERS = ("row_ids", "epochs", "pair_micro_batch")


class MagnetTrainer(Trainer):
    """transformers' `Trainer` with the objectives of `OBJECTIVES`, their data, their evaluation and the model card.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Its forward takes `mode`, `segment_ids`, `target_ids` and
            `logits_to_keep`.
        args (`MagnetTrainingArguments`): The schedule, the corruption and everything else.
        data_collator (`DataCollatorForMagnet`, *optional*): Corrupts rows; by default made from the other arguments.
        train_dataset (`RowSource`, *optional*): Rows with `input_ids`.
        eval_dataset (`RowSource` or a `dict` of them, *optional*): Rows with `input_ids`.
        pair_dataset, eval_pair_dataset (`RowSource`, *optional*): Rows with the strings `anchor` and `positive`.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer; saved with the model.
        compute_metrics (`Callable`, *optional*): Maps the `EvalPrediction` of an evaluation to further metrics.
            `predictions` are the likeliest tokens and `label_ids` the right ones, arrays of shape
            `(rows, S, objectives)`, -100 where nothing was predicted; they are aligned, so neither shift them nor take
            the `argmax`. Several processes may add rows of -100. `include_for_metrics=["inputs"]` adds the corrupted
            rows.
        callbacks, optimizers: As the parent takes them.

    Raises:
        ValueError: listing everything that does not fit together, before any training.

    Source: MAGNET (Khosla et al. 2025), section 3: `L = l1 * MNTP + l2 * SSCL + l3 * MSG`.
    """

    # `compute_loss` divides by counts over the whole accumulation window.
    loss_is_scaled_for_ga = True
    # Narrower types than the parent's.
    args: MagnetTrainingArguments
    model: Any
    data_collator: DataCollatorForMagnet
    train_dataset: Any
    eval_dataset: Any
    pair_dataset: Any
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
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        base_model = unwrap_peft_model(model)
        rows: dict[str, Any] = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        pairs: dict[str, Any] = {"pair_dataset": pair_dataset, "eval_pair_dataset": eval_pair_dataset}
        check_run(base_model, args=args, data_collator=data_collator, tokenizer=processing_class, **rows, **pairs)
        if data_collator is None:
            data_collator = DataCollatorForMagnet.from_run(processing_class, model_config=base_model.config, args=args)
        if any(phase.msg > 0 for phase in args.phases):
            MagnetSettings.update(base_model.config, end_of_span=data_collator.settings.end_of_span)
        self.pair_dataset, self.eval_pair_dataset = pair_dataset, eval_pair_dataset
        self.phases = args.phases
        self.head = attach_contrastive_head(
            base_model,
            kind="none" if args.contrastive_head == "none" or not args.uses_contrastive_loss else "tanh",
            hidden_size=base_model.config.hidden_size,
            seed=args.seed,
        )
        if args.gradient_checkpointing and base_model is not model:
            # Adapters in checkpointed layers get no gradient unless the layers' inputs require one.
            base_model.enable_input_require_grads()
        self._row_sampler: EpochRowSampler | None = None
        self._pair_stream: MicroBatchStream[dict[str, Any]] = MicroBatchStream(self._pair_dataloader)
        self._parts: dict[str, tuple[Tensor, float]] = {}  # sum of each loss since the last log, and its steps
        self._part: Literal["all", "tokens", "pairs"] = "all"  # what `compute_loss` computes
        self._tried_phase: LossPhase | None = None
        self._guard = NanGuard(args.output_dir or ".", process_index=args.process_index)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            **rows,
        )
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if compute_metrics is not None and self.shares_weights:
            raise ValueError("`compute_metrics` needs the LM head whole; FSDP and ZeRO-3 shard it. Leave it out.")
        check_sharding(plugin, view_dropout=args.view_dropout)
        keep_output_dtypes(plugin)
        self._autocast_layers = adapter_layers(model) if args.bf16 or args.fp16 else []
        self.compiled_layers = compile_layers(model, take_over_compilation(self.accelerator.state.dynamo_plugin, args))

    def _phase(self) -> LossPhase:
        """Return the phase of the coming step, or the one that the memory trial tries."""
        return phase_at(self.phases, self.state.global_step) if self._tried_phase is None else self._tried_phase

    # ---- Data: rows follow from seed and epoch, pairs from seed and step, so that a resumed run repeats them ----

    def get_train_dataloader(self) -> DataLoader:
        """Load training rows with their numbers and epochs."""
        if self.train_dataset is None:
            raise ValueError("`train_dataset` is missing; pass rows with `input_ids` to train.")
        return self._get_dataloader(
            dataset=EpochRows(self.train_dataset),
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochRowSampler:
        """Shuffle by seed and epoch; the sampler is kept, since it has to be told the epoch."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        self._row_sampler = EpochRowSampler(len(rows), seed=self.args.order_seed)
        return self._row_sampler

    def _run_epoch(self, model: nn.Module, epoch: int, *args: Any, **kwargs: Any) -> None:
        """Tell the sampler the epoch and run it; run nothing where a finished run is resumed."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # transformers and accelerate do not reach a sampler wrapped by both a shard and a skip of batches.
        assert self._row_sampler is not None
        self._row_sampler.set_epoch(epoch)
        super()._run_epoch(model, epoch, *args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """Collect the micro-batches of a step, with pairs where the phase uses them."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not self._phase().uses_pairs:
            self._pair_stream.stop()
            return batches, num_items
        # Short windows at the end of an epoch skip numbers, so that these depend on the step only.
        steps = contrastive_steps_before(self.phases, self.state.global_step)
        first = steps * self.args.gradient_accumulation_steps
        return [
            {**batch, "pairs": self._pair_stream.fetch(number), "pair_micro_batch": number}
            for number, batch in enumerate(batches, first)
        ], num_items

    def _pair_dataloader(self, first_micro_batch: int) -> DataLoader:
        """Load this process's pairs from a micro-batch on."""
        end = contrastive_steps_before(self.phases, self.args.max_steps) * self.args.gradient_accumulation_steps
        sampler = PairBatchSampler(
            len(self.pair_dataset),
            seed=self.args.order_seed,
            batch_size=self.args.contrastive_batch_size,
            first_micro_batch=first_micro_batch,
            end_micro_batch=end,
            **self._processes,
        )
        return plain_dataloader(self.pair_dataset, sampler, self._pair_collator(), args=self.args)

    @property
    def _processes(self) -> dict[str, int]:
        return {"num_processes": self.accelerator.num_processes, "process_index": self.accelerator.process_index}

    def _pair_collator(self) -> DataCollatorForPairs:
        pad_token_id = self.data_collator.pad_token_id
        return DataCollatorForPairs.from_run(self.processing_class, args=self.args, pad_token_id=pad_token_id)

    def replay(self, report: str | Path) -> list[dict[str, Any]]:
        """Make the micro-batches of a step again that was not finite, as this process had them, on its device.

        Args:
            report (`str` or `Path`): The file that the error named, of a run with these data and arguments.

        Returns:
            `list[dict]`: what `compute_loss` takes, one for each micro-batch.
        """
        batches = []
        for rows in read_report(report)["micro_batches"]:
            numbers = zip(rows["row_ids"], rows["epochs"], strict=True)
            batch = self.data_collator([{**self.train_dataset[row], "row_id": row, "epoch": e} for row, e in numbers])
            if "pair_micro_batch" in rows:
                batch["pair_micro_batch"] = rows["pair_micro_batch"]
                batch["pairs"] = next(iter(self._pair_dataloader(rows["pair_micro_batch"])))
            batches.append(self._prepare_inputs(batch))
        return batches

    # ---- The step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run forward and backward of a micro-batch.

        Token losses are back-propagated before the contrastive forward, so that the two graphs never exist together.

        Raises:
            FloatingPointError: for a loss or gradient that is not finite; on a CPU at once, elsewhere by the next log.
            torch.OutOfMemoryError: naming the phase and what to lower.
        """
        with self.layers_for_training():
            loss = self._forward_and_backward(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and self.is_in_train:
            # DeepSpeed keeps no gradient after its step, and fp16 gradients overflow while their scale is sought.
            is_seen = not (self.is_deepspeed_enabled or self.args.fp16)
            self._guard.end_step(self.state.global_step + 1, self.model.parameters() if is_seen else [])
            if self.args.device.type == "cpu":
                self._guard.check()
        return loss

    @contextmanager
    def layers_for_training(self) -> Iterator[None]:
        """Run adapters without conversions that autocast undoes, and layers compiled if `torch_compile` is set."""
        with adapters_under_autocast(self._autocast_layers), compiled(self.compiled_layers):
            yield

    def _forward_and_backward(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """Run the parent's step once, or once for the token losses and once for the pair losses."""
        if not self._splits_backward(inputs):
            with self._only("all"):
                return super().training_step(model, inputs, num_items_in_batch)
        with self._only("tokens"), self._gradients_kept_back(model):
            token_loss = super().training_step(model, inputs, num_items_in_batch)
        with self._only("pairs"):
            return token_loss + super().training_step(model, inputs, num_items_in_batch)

    def _splits_backward(self, inputs: dict[str, Any]) -> bool:
        """Whether a micro-batch has both kinds of losses, and two backward passes give the gradients of one."""
        # A subclass that adds a term to the loss or scales it has to do so once and to all of it.
        is_own = getattr(self.compute_loss, "__func__", None) is MagnetTrainer.compute_loss
        # DeepSpeed counts a backward pass as a micro-batch, and makes its optimizer step in the last one.
        keeps_gradients = not (self.is_deepspeed_enabled or self._steps_in_backward)
        return "pairs" in inputs and self._phase().uses_tokens and is_own and keeps_gradients

    @property
    def _steps_in_backward(self) -> bool:
        """Whether the optimizer changes weights within each backward pass."""
        name = str(getattr(self.args.optim, "value", self.args.optim))
        return "lomo" in name or name.endswith("layerwise")

    @contextmanager
    def _only(self, part: Literal["all", "tokens", "pairs"]) -> Iterator[None]:
        """Let `compute_loss` compute one part of the loss, and explain where memory ran out."""
        number = self.phases.index(self._phase())
        step = "before step 1" if self._tried_phase is not None else f"at step {self.state.global_step + 1}"
        where = f"{step} in phase {number + 1} of `loss_phases` ({self.args.loss_phases[number]!r})"
        self._part = part
        try:
            with memory.explain_memory(where, of_pairs=part != "tokens" and self._phase().uses_pairs):
                yield
        finally:
            self._part = "all"

    def _gradients_kept_back(self, model: nn.Module) -> Any:
        """Delay DDP's averaging of gradients, which would otherwise average the first pass's gradients twice.

        FSDP2 reduces and adds up shards after every backward pass, which is right as it is; delayed, every process
        would hold the gradients whole.
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

        Each token loss is divided by its items in the whole window on all processes. A pair loss is a mean over
        micro-batches, each with its own negatives.

        Args:
            model (`nn.Module`): The model, wrapped for several processes where there are several.
            inputs (`dict`): What the collator returned, and under `pairs` the contrastive batch of steps that have
                one.
            return_outputs (`bool`): Whether to return the unweighted losses as well.
            num_items_in_batch (`torch.Tensor` of shape `(K,)`, *optional*): Items of each token objective; by default
                those of this batch.

        Returns:
            `torch.Tensor` of shape `()`, or a tuple of it and a `dict`.
        """
        phase, part = self._phase(), self._part
        num_items = num_items_in_batch if isinstance(num_items_in_batch, Tensor) else self._count(inputs)
        losses: dict[str, Tensor] = {}
        if part != "pairs" and phase.uses_tokens:
            joint = forward_targets(model, inputs)
            for (name, token_losses), items in zip(joint.losses.items(), num_items, strict=True):
                # Wrappers average gradients over processes, but sums over a global count have to be added up.
                scale = self.accelerator.num_processes
                losses[name] = scale * OBJECTIVES[name].loss(token_losses, num_items=items)
        if "pairs" in inputs and part != "tokens":
            losses |= self._pair_losses(model, inputs["pairs"])
        loss = torch.zeros((), dtype=torch.float32, device=self.args.device)
        for name, each in losses.items():
            loss = loss + phase.weights.get(name, 0.0) * each
        if "pairs" not in inputs and part == "all" and list(self.head.parameters()):
            # Some optimizers and wrappers treat a head that lacks a gradient in some steps differently. The head is
            # called, since ZeRO-3 gathers its weights only then.
            width = unwrap_peft_model(self.accelerator.unwrap_model(model)).config.hidden_size
            loss = loss + 0.0 * self.head(torch.zeros(1, width, device=loss.device)).sum()
        if model.training:
            self._remember(losses)
            if self.is_in_train:
                rows = {name: inputs[name] for name in _ROW_NUMBERS if name in inputs}
                self._guard.note(losses, rows if part != "pairs" else None)
        return (loss, losses) if return_outputs else loss

    def _pair_losses(self, model: nn.Module, pairs: dict[str, Any]) -> dict[str, Tensor]:
        """Contrast this process's anchors with the positives of all processes."""
        args = self.args
        anchors, positives = contrastive_embeddings(
            model, pairs, head=self.head, dropout=args.view_dropout, recompute=args.contrastive_recompute
        )
        first = self.accelerator.process_index * len(anchors)
        options = {
            "temperature": args.temperature,
            "similarity": args.similarity,
            "targets": torch.arange(first, first + len(anchors), device=anchors.device),
        }
        positives = gather_with_gradient(positives.float())
        return {
            name: objective.loss(anchors, positives, **options) / self._num_micro_batches()
            for name, objective in pair_objectives().items()
        }

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Count the items of each token objective over the accumulation window and all processes."""
        if not batch_samples:
            return None
        counts = torch.stack([self._count(batch) for batch in batch_samples]).sum(dim=0).to(device)
        return self.accelerator.reduce(counts, reduction="sum")

    def _count(self, batch: dict[str, Any]) -> Tensor:
        return count_items(batch, normalization=self.args.normalization)

    def _num_micro_batches(self) -> int:
        """Return the micro-batches of the current step; the last window of an epoch may be shorter."""
        return self.current_gradient_accumulation_steps if self.is_in_train else 1

    # ---- The memory trial before the run ----

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare as the parent does, then try the memory of the phases."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        # DeepSpeed keeps gradients until its next step, and some optimizers step in each backward pass.
        if self.args.memory_trial and not self.is_deepspeed_enabled and not self._steps_in_backward:
            self._try_phases(prepared[0])
        return prepared

    def _try_phases(self, model: nn.Module) -> None:
        """Run the heaviest micro-batch of each kind of phase that a resumed run has not begun yet.

        No log, count, gradient or change of a random state is left behind.
        """
        was_training, logged = self.model.training, self._parts
        self._parts, self.is_in_train = {}, False
        try:
            for number, phase in memory.phases_to_try(self.phases, step=self.state.global_step):
                self._tried_phase = phase
                with memory.random_state_kept():
                    batch = self._heaviest_batch(phase)
                    if self.is_world_process_zero():  # printed, since a process killed for its memory logs nothing
                        name = f"phase {number + 1} ({self.args.loss_phases[number]})"
                        print(f"trying the memory of {name}: {memory.batch_sizes(batch)}", flush=True)
                    room = memory.room_for_optimizer(self.optimizer)
                    # Not compiled: layers compiled for these shapes first would compute other bits in the run.
                    with adapters_under_autocast(self._autocast_layers), self._gradients_kept_back(model):
                        self._forward_and_backward(model, batch, None)
                    del room
                model.zero_grad()
        finally:
            self._tried_phase, self._parts, self.is_in_train = None, logged, True
            model.zero_grad()
            self.model.train(was_training)

    def _heaviest_batch(self, phase: LossPhase) -> dict[str, Any]:
        """Make a micro-batch of the longest rows, and of the longest pairs if the phase uses pairs."""
        rows = EpochRows(self.train_dataset)
        batch = self.data_collator([rows[row] for row in memory.longest_rows(rows.rows, count=self._train_batch_size)])
        if phase.uses_pairs:
            longest = memory.longest_pairs(self.pair_dataset, count=self.args.contrastive_batch_size)
            batch["pairs"] = self._pair_collator()([self.pair_dataset[pair] for pair in longest])
        return batch

    # ---- Logs and evaluation ----

    def _remember(self, losses: dict[str, Tensor]) -> None:
        """Add up the losses of micro-batches until the next log, without a synchronisation."""
        for name, loss in losses.items():
            total, steps = self._parts.get(name, (torch.zeros_like(loss), 0.0))
            self._parts[name] = (total + loss.detach(), steps + 1 / self._num_micro_batches())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent does, with the unweighted mean of each objective's loss."""
        self._guard.check()
        if "loss" in logs and self._parts:
            totals = torch.stack([total for total, _ in self._parts.values()])
            means = self.accelerator.reduce(totals, reduction="mean").tolist()
            for (name, (_, steps)), mean in zip(self._parts.items(), means, strict=True):
                logs[f"loss_{name}"] = mean / steps
            self._parts = {}
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the parent does, unless the last step was not finite."""
        self._guard.check()
        return super().evaluate(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Load each evaluation row once over all processes, corrupted in the same way every time."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            raise ValueError("`eval_dataset` is missing; pass rows with `input_ids` to evaluate.")
        check_row_source(rows, name="eval_dataset")
        collator = evaluation.EvaluationCollator.from_training(self.data_collator, self.args)
        return self._even_dataloader(EpochRows(rows), collator, num=len(rows), batch_size=self.args.eval_batch_size)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Load test rows as evaluation rows."""
        return self.get_eval_dataloader(test_dataset)

    def _even_dataloader(self, rows: Any, collator: Any, *, num: int, batch_size: int) -> DataLoader:
        """Load this process's share of the first `num` rows."""
        sampler = EvenBatchSampler(num, batch_size=batch_size, **self._processes)
        return plain_dataloader(rows, sampler, collator, args=self.args)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run the parent's loop, whose `prediction_step` collects sums, and turn these into metrics.

        Metrics are `loss`, the losses of all objectives, `masked_accuracy`, `infilling_perplexity`,
        `left_to_right_perplexity` (of the same span tokens) and `causal_perplexity`. `loss` weighs the others by the
        current phase. Metrics without a token, such as the infilling perplexity of rows too short for a span, are left
        out. The random state of training stays as it is.
        """
        was_training = self.model.training
        self._sums: evaluation.Sums = {}
        # Every gathered row counts; by default accelerate drops what it takes for repeated rows of the train loader.
        self.gather_function = self.accelerator.gather
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        assert output.metrics is not None
        metrics = evaluation.language_metrics(add_up(self._sums, self.accelerator))
        if self.eval_pair_dataset is not None:
            metrics |= self._evaluate_pairs(self.eval_pair_dataset)
        weights = self._phase().weights
        losses = {name: metrics[f"loss_{name}"] for name in OBJECTIVES if f"loss_{name}" in metrics}
        metrics["loss"] = sum(weights.get(name, 0.0) * loss for name, loss in losses.items())
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        self.model.train(was_training)
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor | None, Tensor | None]:
        """Add one batch's sums to the current evaluation, and predict tokens for `compute_metrics`."""
        batch: dict[str, Any] = self._prepare_inputs(inputs)
        with torch.no_grad():
            joint = forward_targets(model, batch["corrupted"])
            sums = evaluation.language_sums(model, batch, normalization=self.args.normalization, joint=joint)
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if self.compute_metrics is None or prediction_loss_only:
            return None, None, None
        assert joint.states is not None
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        return None, *evaluation.predict_tokens(joint.states, batch["corrupted"], head=head)

    def _evaluate_pairs(self, pairs: RowSource) -> dict[str, float]:
        """Contrast held-out pairs in batches of the training size, whatever the number of processes."""
        size = self.args.contrastive_batch_size
        num_pairs = len(pairs) - len(pairs) % size or len(pairs)  # a smaller batch would be easier
        collator = evaluation.PairEvaluationCollator(self._pair_collator(), batch_size=min(size, num_pairs))
        loader = self._even_dataloader(pairs, collator, num=num_pairs, batch_size=size)
        hide = self.args.disable_tqdm or not self.is_local_process_zero()
        batches = tqdm(loader, desc="Held-out pairs", unit="batch", leave=False, disable=hide, delay=1)
        prepared = ({**batch, "pairs": self._prepare_inputs(batch["pairs"])} for batch in batches)
        sums = evaluation.pair_sums(self.model, prepared, head=self.head, args=self.args)
        sums = add_up(sums, self.accelerator)
        return {f"loss_{name}": sums[name] / sums["pairs"] for name in pair_objectives()}

    # ---- Checkpoints ----

    @property
    def shares_weights(self) -> bool:
        """Whether each process holds only a shard of the weights, by FSDP2 or ZeRO-3."""
        return self.is_fsdp_enabled or (self.is_deepspeed_enabled and is_deepspeed_zero3_enabled())

    def whole_weights(self) -> dict[str, Tensor]:
        """Gather all weights in CPU memory; every process has to call this, and the first one gets them.

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
        """Train, or resume from a checkpoint; `True` takes the newest complete one.

        Raises:
            ValueError: if there is none, it is damaged, or a run with another number of processes wrote it.
            FloatingPointError: as `training_step`.
        """
        resume = checkpoints.checkpoint_to_resume(resume_from_checkpoint, output_dir=str(self.args.output_dir))
        output = super().train(resume, trial, ignore_keys_for_eval)
        self._guard.check()
        if self.args.uses_contrastive_loss:
            kept = "tanh" if self.args.contrastive_head == "keep" else None
            inner = unwrap_peft_model(self.accelerator.unwrap_model(self.model))
            MagnetSettings.update(inner.config, contrastive_head=kept)
        return output

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save and seal a checkpoint; older ones are removed only then."""
        self._guard.check()
        step, run = self.state.global_step, Path(self._get_output_dir(trial))
        if self.args.should_save:
            checkpoints.forget_completeness(run / f"checkpoint-{step}")
        # The parent would remove older ones before the seal, and by file times.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            torch.save(self.args, run / f"checkpoint-{step}" / TRAINING_ARGS_NAME)  # with the limit
            checkpoints.seal_checkpoint(run / f"checkpoint-{step}")
            checkpoints.remove_old_checkpoints(run, step=step, limit=limit, best=self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the contrastive head with the rest of what only resuming needs."""
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.is_deepspeed_enabled:  # there it is part of the weights
            save_head(self.head, directory=output_dir, should_save=self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights and the head."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if not self.is_deepspeed_enabled:
            load_head(self.head, directory=resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Load the best weights and their head."""
        super()._load_best_model()
        if not self.is_deepspeed_enabled:
            load_head(self.head, directory=str(self.state.best_model_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn of missing weights other than the head's, which has a file of its own."""
        missing = [name for name in load_result.missing_keys if not name.startswith(HEAD_NAME)]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    # ---- The saved model and its card ----

    def card_text(self, name: str, *, merged: bool = False, **facts: Any) -> str:
        """Return the model card of this run.

        Args:
            name (`str`): Directory or Hub id that its code examples name.
            merged (`bool`, defaults to `False`): Whether adapters are merged in what the card describes.
            facts: Facts that the trainer does not know, see `run_card`.
        """
        model = unwrap_peft_model(self.accelerator.unwrap_model(self.model))
        return run_card(model, name, args=self.args, log_history=self.state.log_history, merged=merged, **facts)

    def create_model_card(  # type: ignore[override]
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the card of this run into `output_dir`; the parent's other arguments are ignored."""
        if self.is_world_process_zero():
            directory = Path(str(self.args.output_dir))
            facts: dict[str, Any] = {
                "train_texts": as_list(dataset),
                "language": as_list(language),
                "license": license,
            }
            name = self.args.hub_model_id or model_name or directory.name
            text = self.card_text(name, base_model=finetuned_from, **facts)
            (directory / CARD).write_text(text, encoding="utf-8")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as the parent does, with the card of this run and the settings of adapters."""
        model = self.accelerator.unwrap_model(self.model)
        inner: Any = unwrap_peft_model(model)
        # By itself the model carries the card of its base; one that was set by hand stays.
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


__all__ = ["MagnetTrainer"]
