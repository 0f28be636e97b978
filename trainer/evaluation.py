"""What a model is asked during evaluation, as sums over tokens that processes can add up.

The questions do not depend on the loss weights, and rows lose the same tokens in every evaluation, so that curves of
different runs and steps can be laid over each other.

Shapes: B rows, S tokens in a row.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .corruption import IGNORE_INDEX
from .data_collator import DataCollatorForMagnet, DataCollatorForPairs
from .metrics import perplexity
from .objectives import MntpNormalization, MsgNormalization, TargetLosses, count_items, forward_targets

Sums = dict[str, float]

# Logits that exist at once where tokens are predicted.
_MOST_LOGITS = 2**22


class PredictedTokens(NamedTuple):
    """What an `EvalPrediction` holds; -100 where a position predicts nothing."""

    predictions: Tensor  # (B, S, 2), the likeliest token of each label of MNTP and MSG
    labels: Tensor  # (B, S, 2)


@dataclass
class EvaluationCollator:
    """Corrupts each row twice: as in training, and with spans missing from clean context.

    An empty list of rows becomes a batch of one token without labels, so that every process has as many batches.

    Args:
        corruption (`DataCollatorForMagnet`): Corruption of training, with the seed of evaluation.
        infilling (`DataCollatorForMagnet`): Spans for the infilling perplexity, nothing masked.
    """

    corruption: DataCollatorForMagnet
    infilling: DataCollatorForMagnet

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if not rows:
            empty = {
                name: torch.zeros(1, 1, dtype=torch.long) for name in ("input_ids", "segment_ids", "position_ids")
            }
            empty["attention_mask"] = torch.ones(1, 1, dtype=torch.long)
            empty |= {name: torch.full((1, 1), IGNORE_INDEX) for name in ("mntp_labels", "msg_labels")}
            corrupted = infilling = empty
        else:
            corrupted, infilling = self.corruption(rows), self.infilling(rows)
        # The name under which transformers looks for what `include_for_metrics` asks for.
        return {"corrupted": corrupted, "infilling": infilling, "input_ids": corrupted["input_ids"]}


@dataclass
class PairEvaluationCollator:
    """Collates pairs, and an empty list of them to a full batch of empty texts and the number 0.

    Every process then has as many mini-batches: where weights are gathered for each forward, one that had fewer would
    let the others wait for ever.

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
    mntp_normalization: MntpNormalization,
    msg_normalization: MsgNormalization,
    joint: TargetLosses | None = None,
) -> Sums:
    """Ask a model everything about one batch of text.

    Args:
        model (`nn.Module`): In evaluation mode.
        batch (`dict`): What `EvaluationCollator` returns, on the model's device.
        mntp_normalization, msg_normalization (`str`): See `count_items`.
        joint (`TargetLosses`, *optional*): What `forward_targets` gave for the corrupted rows, where it was asked.

    Returns:
        `dict[str, float]`: sums of cross entropy in nats and counts, under names that `language_metrics` reads.
    """
    corrupted, infilling = batch["corrupted"], batch["infilling"]
    items = count_items(corrupted, mntp_normalization=mntp_normalization, msg_normalization=msg_normalization)
    joint = forward_targets(model, corrupted) if joint is None else joint
    fills = forward_targets(model, infilling)
    assert joint.mntp_hits is not None
    # The single token of an empty batch counts for nothing.
    is_real = float(corrupted["input_ids"].numel() > 1)
    return {
        "mntp_loss": joint.mntp.sum().item(),
        "mntp_items": items[0].item() * is_real,
        "mntp_tokens": (corrupted["mntp_labels"] != IGNORE_INDEX).sum().item(),
        "mntp_hits": joint.mntp_hits.sum().item(),
        "msg_loss": joint.msg.sum().item(),
        "msg_items": items[1].item(),
        "infilling_loss": fills.msg.sum().item(),
        "span_tokens": (infilling["msg_labels"] != IGNORE_INDEX).sum().item(),
        **_causal_sums(model, infilling),
    }


@torch.no_grad()
def predict_tokens(states: Tensor, batch: dict[str, Tensor], *, head: nn.Module) -> PredictedTokens:
    """Predict the likeliest token at each position with a label, a few positions at a time.

    Args:
        states (`torch.FloatTensor` of shape `(B, S, H)`): From which the head predicts.
        batch (`dict`): `mntp_labels` and `msg_labels`, `(B, S)` each.
        head (`nn.Module`): The output layer. What models do to its logits, such as a soft cap, keeps their order.
    """
    labels = torch.stack([batch["mntp_labels"], batch["msg_labels"]], dim=-1)  # (B, S, 2)
    is_asked = (labels != IGNORE_INDEX).any(-1)  # (B, S)
    asked = states[is_asked]  # (N, H)
    weight: Any = head.weight
    size = max(1, _MOST_LOGITS // len(weight))
    parts = asked.to(weight.dtype).split(size)  # accelerate returns states in float32, whatever the model is in
    tokens = torch.cat([head(part).argmax(-1) for part in parts]) if len(asked) else labels.new_zeros(0)
    predictions = torch.full_like(labels[..., 0], IGNORE_INDEX).masked_scatter(is_asked, tokens)  # (B, S)
    return PredictedTokens(predictions[..., None].where(labels != IGNORE_INDEX, IGNORE_INDEX), labels)


def language_metrics(sums: Sums) -> dict[str, float]:
    """Turn sums over all batches and processes into what is reported; a metric without a single token is left out.

    Example:
        >>> language_metrics({"mntp_loss": 6.0, "mntp_items": 3, "mntp_tokens": 3, "mntp_hits": 1, "msg_items": 0,
        ...     "span_tokens": 0, "causal_tokens": 0})
        {'loss_mntp': 2.0, 'masked_accuracy': 0.3333333333333333}
    """
    metrics = {}
    if sums["mntp_items"]:
        metrics["loss_mntp"] = sums["mntp_loss"] / sums["mntp_items"]
    if sums["msg_items"]:
        metrics["loss_msg"] = sums["msg_loss"] / sums["msg_items"]
    if sums["mntp_tokens"]:
        metrics["masked_accuracy"] = sums["mntp_hits"] / sums["mntp_tokens"]
    if sums["span_tokens"]:
        metrics["infilling_perplexity"] = perplexity(sums["infilling_loss"], int(sums["span_tokens"]))
        metrics["left_to_right_perplexity"] = perplexity(sums["left_to_right_loss"], int(sums["span_tokens"]))
    if sums["causal_tokens"]:
        metrics["causal_perplexity"] = perplexity(sums["causal_loss"], int(sums["causal_tokens"]))
    return metrics


def _causal_sums(model: nn.Module, batch: dict[str, Tensor]) -> Sums:
    """Read a clean batch from left to right: the cross entropy of all its tokens, and of its span tokens alone."""
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


__all__ = [
    "EvaluationCollator",
    "PairEvaluationCollator",
    "PredictedTokens",
    "Sums",
    "language_metrics",
    "language_sums",
    "predict_tokens",
]
