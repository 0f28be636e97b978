"""Evaluation during and after training: the part of `MagnetTrainer` that asks and does not change the model."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from .data_collator import DataCollatorForMagnet, DataCollatorForPairs
from .evaluation import (
    EvaluationCollator,
    PairEvaluationCollator,
    Sums,
    language_metrics,
    language_sums,
    predict_tokens,
)
from .losses import sscl_loss
from .objectives import forward_targets
from .phases import LossPhase, phase_at
from .streams import EpochRows, EvenBatchSampler, RowSource, about_kind
from .training_args import MagnetTrainingArguments
from .views import contrastive_views


class EvaluatingTrainer(Trainer):
    """A Trainer that reports each objective, masked accuracy and three perplexities; made by `MagnetTrainer`."""

    # Narrower than the parent's: what `MagnetTrainer` makes sure of.
    args: MagnetTrainingArguments
    model: Any
    data_collator: DataCollatorForMagnet
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    phases: tuple[LossPhase, ...]
    head: nn.Module
    eval_pair_dataset: RowSource | None

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Load each evaluation row once over all processes, corrupted in the same way every time."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            raise ValueError("`eval_dataset` is missing; pass rows with `input_ids` to evaluate.")
        if (complaint := about_kind(rows, name="eval_dataset")) is not None:
            raise ValueError(complaint)
        corruption = dataclasses.replace(self.data_collator, seed=self.args.eval_corruption_seed)
        infilling = dataclasses.replace(corruption, settings=self.args.infilling_settings)
        return self._plain_dataloader(
            EpochRows(rows),
            self._even_batches(len(rows), batch_size=self.args.eval_batch_size),
            EvaluationCollator(corruption=corruption, infilling=infilling),
        )

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Load test rows as evaluation rows."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run the parent's loop, which collects sums through `prediction_step`, and turn them into metrics.

        `loss` is the sum of the reported losses with the weights of the current phase. What an evaluation set cannot
        tell, such as the infilling perplexity of rows too short for a span, is left out. Nothing is drawn from the
        random state of training.

        Args:
            dataloader (`DataLoader`): What `get_eval_dataloader` returns.
            description (`str`): For the parent's log.
            prediction_loss_only (`bool`, *optional*): Whether to leave out `compute_metrics`.
            ignore_keys: Not used.
            metric_key_prefix (`str`): Put in front of each name, with an underscore.

        Returns:
            `EvalLoopOutput`: with the metrics `loss`, `loss_mntp`, `loss_msg`, `loss_sscl`, `masked_accuracy`,
            `infilling_perplexity`, `left_to_right_perplexity` (of the same span tokens) and `causal_perplexity`.
        """
        was_training = self.model.training
        self._sums: Sums = {}
        # Every row that is gathered counts: the default leaves out what the loader of training repeats in its end.
        self.gather_function = self.accelerator.gather
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        assert output.metrics is not None
        metrics = language_metrics(self._add_up(self._sums))
        if self.eval_pair_dataset is not None:
            metrics["loss_sscl"] = self._evaluate_pairs(self.eval_pair_dataset)
        weights = dataclasses.asdict(self._phase())
        losses = {name: metrics[f"loss_{name}"] for name in ("mntp", "msg", "sscl") if f"loss_{name}" in metrics}
        metrics["loss"] = sum(weights[name] * loss for name, loss in losses.items())
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        self.model.train(was_training)
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor | None, Tensor | None]:
        """Add one batch's sums to the evaluation under way, and predict tokens where there is a `compute_metrics`."""
        batch: dict[str, Any] = self._prepare_inputs(inputs)
        with torch.no_grad():
            joint = forward_targets(model, batch["corrupted"])
            sums = language_sums(
                model,
                batch,
                mntp_normalization=self.args.mntp_normalization,
                msg_normalization=self.args.msg_normalization,
                joint=joint,
            )
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if self.compute_metrics is None or prediction_loss_only:
            return None, None, None
        assert joint.states is not None
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        return None, *predict_tokens(joint.states, batch["corrupted"], head=head)

    def _evaluate_pairs(self, pairs: RowSource) -> float:
        """Contrast held-out pairs in batches of the training size, whatever the number of processes."""
        batch_size = self.args.contrastive_batch_size
        num_pairs = len(pairs) - len(pairs) % batch_size or len(pairs)  # a smaller batch would be an easier one
        loader = self._plain_dataloader(
            pairs,
            self._even_batches(num_pairs, batch_size=batch_size),
            PairEvaluationCollator(self._pair_collator(), batch_size=min(batch_size, num_pairs)),
        )
        sums: Sums = {"loss": 0.0, "pairs": 0.0}
        hide = self.args.disable_tqdm or not self.is_local_process_zero()
        for batch in tqdm(loader, desc="Held-out pairs", unit="batch", leave=False, disable=hide, delay=1):
            with torch.no_grad():
                inputs = self._prepare_inputs(batch["pairs"])
                anchors, positives = contrastive_views(self.model, inputs, head=self.head)
                loss = sscl_loss(
                    anchors, positives, temperature=self.args.temperature, similarity=self.args.similarity
                )
            sums["loss"] += loss.item() * batch["num_pairs"]
            sums["pairs"] += batch["num_pairs"]
        sums = self._add_up(sums)
        return sums["loss"] / sums["pairs"]

    def _even_batches(self, num_items: int, *, batch_size: int) -> EvenBatchSampler:
        """This process's share of the items to evaluate."""
        return EvenBatchSampler(
            num_items,
            batch_size=batch_size,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
        )

    def _add_up(self, sums: Sums) -> Sums:
        """Add sums over the processes."""
        if self.accelerator.num_processes == 1:
            return sums
        totals = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.args.device)
        return dict(zip(sums, self.accelerator.reduce(totals, reduction="sum").tolist(), strict=True))

    def _phase(self) -> LossPhase:
        """The weights of the coming step."""
        return phase_at(self.phases, self.state.global_step)

    def _pair_collator(self) -> DataCollatorForPairs:
        """Collate pairs with the arguments' prompt and length."""
        tokenizer = self.processing_class
        return DataCollatorForPairs(
            tokenizer=tokenizer,
            prompt=self.args.contrastive_prompt or None,
            max_length=self.args.contrastive_max_length,
            pad_token_id=self.data_collator.pad_token_id,
            mini_batch_tokens=self.args.contrastive_mini_batch_tokens,
            split_special_tokens=self.args.split_special_tokens,
        )

    def _plain_dataloader(self, dataset: Any, batch_sampler: Sampler, collator: Any) -> DataLoader:
        """Load batches that are this process's own already, without drawing from torch's global generator."""
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            generator=torch.Generator(),
        )


__all__ = ["EvaluatingTrainer"]
