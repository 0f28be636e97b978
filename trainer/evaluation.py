"""Evaluate a model with sums over tokens that processes can add up.

Results do not depend on the loss weights, and rows lose the same tokens in every evaluation, so that curves of
different runs and steps can be compared.

Shapes: B rows, S tokens in a row, K token objectives.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .contrastive import contrastive_embeddings
from .corruption import IGNORE_INDEX
from .data_collator import DataCollatorForMagnet, DataCollatorForPairs
from .metrics import perplexity
from .objectives import OBJECTIVES, TargetLosses, count_items, forward_targets, pair_objectives, token_labels
from .training_args import MagnetTrainingArguments

Sums = dict[str, float]

# Seed of masks and spans, so that curves of different runs and steps can be compared.
EVALUATION_SEED = 0
# Logits that exist at one time while tokens are predicted.
_MOST_LOGITS = 2**22


class PredictedTokens(NamedTuple):
    """The arrays of an `EvalPrediction`; -100 where a position predicts nothing."""

    predictions: Tensor  # (B, S, K), the likeliest token at each label
    labels: Tensor  # (B, S, K)


@dataclass
class EvaluationCollator:
    """Corrupt each row twice: as in training, and with spans missing from clean context.

    An empty list of rows becomes a batch of one token without labels, so that every process has as many batches.

    Args:
        corruption (`DataCollatorForMagnet`): Corruption of training, with the seed of evaluation.
        infilling (`DataCollatorForMagnet`): Spans for the infilling perplexity, without masking.
    """

    corruption: DataCollatorForMagnet
    infilling: DataCollatorForMagnet

    @classmethod
    def from_training(cls, collator: DataCollatorForMagnet, args: MagnetTrainingArguments) -> "EvaluationCollator":
        """Make the evaluation's collator from that of training."""
        corruption = dataclasses.replace(collator, seed=EVALUATION_SEED)
        return cls(corruption, dataclasses.replace(corruption, settings=args.infilling_settings))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if not rows:
            zeros = ("input_ids", "segment_ids", "position_ids")
            empty = {name: torch.zeros(1, 1, dtype=torch.long) for name in zeros}
            empty["attention_mask"] = torch.ones(1, 1, dtype=torch.long)
            empty |= {name: torch.full((1, 1), IGNORE_INDEX) for name in ("mntp_labels", "msg_labels")}
            corrupted = infilling = empty
        else:
            corrupted, infilling = self.corruption(rows), self.infilling(rows)
        # transformers looks for `input_ids` where `include_for_metrics` asks for inputs.
        return {"corrupted": corrupted, "infilling": infilling, "input_ids": corrupted["input_ids"]}


@dataclass
class PairEvaluationCollator:
    """Collate pairs; an empty list of them becomes a full batch of empty texts that counts as 0 pairs.

    Every process then runs as many mini-batches. Sharded weights are gathered in each forward, so a process with fewer
    forwards would make the others wait forever.

    Args:
        pairs (`DataCollatorForPairs`): The collator of training.
        batch_size (`int`): Pairs of a batch that is not empty, >= 1.
    """

    pairs: DataCollatorForPairs
    batch_size: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        empty = [{"anchor": "", "positive": ""}] * self.batch_size
        return {"num_pairs": len(rows), "pairs": self.pairs(rows or empty)}


@torch.no_grad()
def language_sums(
    model: nn.Module,
    batch: dict[str, Any],
    *,
    normalization: Mapping[str, str] | None = None,
    joint: TargetLosses | None = None,
) -> Sums:
    """Sum cross entropies and counts of one batch of text.

    Args:
        model (`nn.Module`): The model in evaluation mode.
        batch (`dict`): What `EvaluationCollator` returns, on the model's device.
        normalization (`Mapping[str, str]`, *optional*): See `count_items`; labels are counted by default.
        joint (`TargetLosses`, *optional*): What `forward_targets` returned for the corrupted rows, if it was called.

    Returns:
        `dict[str, float]`: sums in nats and counts, under names that `language_metrics` reads.
    """
    corrupted, infilling = batch["corrupted"], batch["infilling"]
    items = count_items(corrupted, normalization=normalization or {})
    joint = forward_targets(model, corrupted) if joint is None else joint
    fills = forward_targets(model, infilling)
    assert joint.hits is not None
    # The single token of an empty batch counts for nothing.
    is_real = float(corrupted["input_ids"].numel() > 1)
    sums: Sums = {}
    for (name, losses), count in zip(joint.losses.items(), items, strict=True):
        sums |= {f"{name}_loss": losses.sum().item(), f"{name}_items": count.item() * is_real}
    return {
        **sums,
        "mntp_tokens": (corrupted["mntp_labels"] != IGNORE_INDEX).sum().item(),
        "mntp_hits": joint.hits["mntp"].sum().item(),
        "infilling_loss": fills.losses["msg"].sum().item(),
        "span_tokens": (infilling["msg_labels"] != IGNORE_INDEX).sum().item(),
        **_causal_sums(model, infilling),
    }


def _causal_sums(model: nn.Module, batch: dict[str, Tensor]) -> Sums:
    """Read a clean batch causally and sum the cross entropy of all tokens, and of the span tokens."""
    input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
    targets = torch.full_like(input_ids, IGNORE_INDEX)
    targets[:, :-1] = input_ids[:, 1:].where(attention_mask[:, 1:].bool(), IGNORE_INDEX)  # (B, S)
    outputs: Any = model(
        input_ids=input_ids, attention_mask=attention_mask, mode="causal", target_ids=targets, use_cache=False
    )
    is_missing = batch["msg_labels"] != IGNORE_INDEX
    return {
        "left_to_right_loss": outputs.token_losses[is_missing].sum().item(),
        "causal_loss": outputs.token_losses.sum().item(),
        "causal_tokens": (targets != IGNORE_INDEX).sum().item(),
    }


def language_metrics(sums: Sums) -> dict[str, float]:
    """Turn sums over all batches and processes into metrics, leaving out those without a token.

    Example:
        >>> language_metrics({"mntp_loss": 6.0, "mntp_items": 3, "mntp_tokens": 3, "mntp_hits": 1, "msg_items": 0,
        ...     "span_tokens": 0, "causal_tokens": 0})
        {'loss_mntp': 2.0, 'masked_accuracy': 0.3333333333333333}
    """
    metrics = {
        f"loss_{name}": sums[f"{name}_loss"] / sums[f"{name}_items"]
        for name in OBJECTIVES
        if sums.get(f"{name}_items")
    }
    if sums["mntp_tokens"]:
        metrics["masked_accuracy"] = sums["mntp_hits"] / sums["mntp_tokens"]
    if sums["span_tokens"]:
        metrics["infilling_perplexity"] = perplexity(sums["infilling_loss"], int(sums["span_tokens"]))
        metrics["left_to_right_perplexity"] = perplexity(sums["left_to_right_loss"], int(sums["span_tokens"]))
    if sums["causal_tokens"]:
        metrics["causal_perplexity"] = perplexity(sums["causal_loss"], int(sums["causal_tokens"]))
    return metrics


@torch.no_grad()
def pair_sums(
    model: nn.Module, batches: Iterable[dict[str, Any]], *, head: nn.Module, args: MagnetTrainingArguments
) -> Sums:
    """Sum the losses of the pair objectives over held-out pairs; each batch has its own negatives.

    Args:
        model (`nn.Module`): The model in evaluation mode.
        batches (iterable of `dict`): What `PairEvaluationCollator` returns, on the model's device.
        head (`nn.Module`): Projection of the states.
        args (`MagnetTrainingArguments`): Temperature and similarity.

    Returns:
        `dict[str, float]`: `pairs`, and for each objective the sum of its losses.
    """
    sums = {"pairs": 0.0, **dict.fromkeys(pair_objectives(), 0.0)}
    for batch in batches:
        anchors, positives = contrastive_embeddings(model, batch["pairs"], head=head)
        for name, objective in pair_objectives().items():
            loss = objective.loss(anchors, positives, temperature=args.temperature, similarity=args.similarity)
            sums[name] += loss.item() * batch["num_pairs"]
        sums["pairs"] += batch["num_pairs"]
    return sums


@torch.no_grad()
def predict_tokens(states: Tensor, batch: dict[str, Tensor], *, head: nn.Module) -> PredictedTokens:
    """Predict the likeliest token at each position with a label, a few positions at a time.

    Args:
        states (`torch.FloatTensor` of shape `(B, S, H)`): The input of the LM head.
        batch (`dict`): A collated batch.
        head (`nn.Module`): The LM head. What models do to its logits, such as a soft cap, keeps their order.
    """
    labels = torch.stack(list(token_labels(batch).values()), dim=-1)  # (B, S, K)
    is_asked = (labels != IGNORE_INDEX).any(-1)  # (B, S)
    asked = states[is_asked]  # (N, H)
    weight: Any = head.weight
    size = max(1, _MOST_LOGITS // len(weight))
    parts = asked.to(weight.dtype).split(size)  # accelerate returns states in float32, whatever the model's dtype
    tokens = torch.cat([head(part).argmax(-1) for part in parts]) if len(asked) else labels.new_zeros(0)
    predictions = torch.full_like(labels[..., 0], IGNORE_INDEX).masked_scatter(is_asked, tokens)  # (B, S)
    return PredictedTokens(predictions[..., None].where(labels != IGNORE_INDEX, IGNORE_INDEX), labels)


__all__ = [
    "EVALUATION_SEED",
    "EvaluationCollator",
    "PairEvaluationCollator",
    "PredictedTokens",
    "Sums",
    "language_metrics",
    "language_sums",
    "pair_sums",
    "predict_tokens",
]
