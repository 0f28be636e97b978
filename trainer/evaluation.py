"""What a model is asked during evaluation, as sums over tokens that processes can add up.

The questions do not depend on the loss weights, and rows lose the same tokens in every evaluation, so that curves of
different runs and steps can be laid over each other.

Shapes: B rows, S tokens in a row, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .corruption import IGNORE_INDEX
from .data_collator import DataCollatorForMagnet, DataCollatorForPairs
from .losses import mntp_loss, msg_loss
from .metrics import perplexity
from .objectives import MntpNormalization, MsgNormalization, count_items, forward_labelled

Sums = dict[str, float]

# Logits that one call of the cross entropy turns into float32.
_CAUSAL_CHUNK = 1024


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

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
        if not rows:
            empty = {
                name: torch.zeros(1, 1, dtype=torch.long) for name in ("input_ids", "segment_ids", "position_ids")
            }
            empty["attention_mask"] = torch.ones(1, 1, dtype=torch.long)
            empty |= {name: torch.full((1, 1), IGNORE_INDEX) for name in ("mntp_labels", "msg_labels")}
            return {"corrupted": empty, "infilling": empty}
        return {"corrupted": self.corruption(rows), "infilling": self.infilling(rows)}


@dataclass
class PairEvaluationCollator:
    """Collates pairs, and an empty list of them to one token per side and the number 0.

    Args:
        pairs (`DataCollatorForPairs`): The collator of training.
    """

    pairs: DataCollatorForPairs

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if rows:
            return {"num_pairs": len(rows), "pairs": self.pairs(rows)}
        empty = {
            "input_ids": torch.zeros(2, 1, dtype=torch.long),
            "attention_mask": torch.ones(2, 1, dtype=torch.long),
        }
        return {"num_pairs": 0, "pairs": empty}


def language_sums(
    model: nn.Module,
    batch: dict[str, dict[str, Tensor]],
    *,
    mntp_normalization: MntpNormalization,
    msg_normalization: MsgNormalization,
) -> Sums:
    """Ask a model everything about one batch of text.

    Args:
        model (`nn.Module`): In evaluation mode.
        batch (`dict`): What `EvaluationCollator` returns, on the model's device.
        mntp_normalization, msg_normalization (`str`): See `count_items`.

    Returns:
        `dict[str, float]`: sums of cross entropy in nats and counts, under names that `language_metrics` reads.
    """
    corrupted, infilling = batch["corrupted"], batch["infilling"]
    items = count_items(corrupted, mntp_normalization=mntp_normalization, msg_normalization=msg_normalization)
    joint = forward_labelled(model, corrupted)
    fills = forward_labelled(model, infilling)
    # The single token of an empty batch counts for nothing.
    is_real = float(corrupted["input_ids"].numel() > 1)
    return {
        "mntp_loss": mntp_loss(joint.mntp_logits, joint.mntp_labels, num_items=1).item(),
        "mntp_items": items[0].item() * is_real,
        "mntp_tokens": len(joint.mntp_labels),
        "mntp_hits": (joint.mntp_logits.argmax(-1) == joint.mntp_labels).sum().item(),
        "msg_loss": msg_loss(joint.msg_logits, joint.msg_labels, num_items=1).item(),
        "msg_items": items[1].item(),
        "infilling_loss": msg_loss(fills.msg_logits, fills.msg_labels, num_items=1).item(),
        "span_tokens": len(fills.msg_labels),
        **_causal_sums(model, infilling),
    }


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
    has_next = torch.zeros_like(input_ids, dtype=torch.bool)
    has_next[:, :-1] = attention_mask[:, 1:].bool()  # (B, S)
    outputs: Any = model(
        input_ids=input_ids, attention_mask=attention_mask, mode="causal", logits_to_keep=has_next, use_cache=False
    )
    labels = input_ids.roll(-1, dims=1)[has_next]  # (N,)
    losses = [
        F.cross_entropy(logits.float(), targets, reduction="none")
        for logits, targets in zip(outputs.logits.split(_CAUSAL_CHUNK), labels.split(_CAUSAL_CHUNK), strict=True)
    ]
    loss = torch.cat(losses)  # (N,)
    is_missing = batch["msg_labels"][has_next] != IGNORE_INDEX
    return {
        "left_to_right_loss": loss[is_missing].sum().item(),
        "causal_loss": loss.sum().item(),
        "causal_tokens": len(loss),
    }


__all__ = ["EvaluationCollator", "PairEvaluationCollator", "Sums", "language_metrics", "language_sums"]
