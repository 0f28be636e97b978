"""Define the training objectives as entries of one table.

A token objective labels positions of a corrupted row; all token objectives share one forward in infill mode. A pair
objective compares embeddings of anchors and positives. Phases, losses, item counts, logs, checks and evaluation walk
`OBJECTIVES`, so a new token objective is one entry, `OBJECTIVES["mtp"] = Objective(labels=two_ahead)`. Register it
before making `MagnetTrainingArguments`, whose `loss_phases` name it.

Shapes: B rows, S tokens in a row, K token objectives, H hidden size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .corruption import IGNORE_INDEX
from .losses import sscl_loss, token_loss

Batch = Mapping[str, Any]


def count_labels(labels: Tensor, batch: Batch, normalization: str | None) -> Tensor:
    """Count the labelled positions."""
    return (labels != IGNORE_INDEX).sum()


def _always_labelled(settings: Any) -> str | None:
    """Return no complaint: rows always have labels of the objective."""
    return None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One loss and how it reads a batch; its name is its key in `OBJECTIVES`.

    Args:
        labels (`Callable`, *optional*): Maps a collated batch to a `torch.LongTensor` of shape `(B, S)`: the token
            that the output at each position predicts, -100 for none. Left out for an objective of pairs.
        count (`Callable`): Maps labels, batch and the name of a normalization to the number `()` of items by which the
            summed loss is divided, over the accumulation window and all processes.
        loss (`Callable`): For tokens, maps cross entropies `(B, S)` and `num_items` to the loss `()`; for pairs, maps
            anchors `(P, H)`, positives `(Q, H)`, `temperature`, `similarity` and `targets` to it.
        remedy (`Callable`): Maps the fields of `CorruptionSettings` to what the user should change if they never
            produce a label, else to `None`.
    """

    labels: Callable[[Batch], Tensor] | None = None
    count: Callable[[Tensor, Batch, str | None], Tensor] = count_labels
    loss: Callable[..., Tensor] = token_loss
    remedy: Callable[[Any], str | None] = _always_labelled


def _count_mntp(labels: Tensor, batch: Batch, normalization: str | None) -> Tensor:
    """Count the selected tokens, or with `"tokens"` all real tokens (Eq. 2)."""
    tokens: Tensor = batch["attention_mask"].sum()
    return tokens if normalization == "tokens" else count_labels(labels, batch, normalization)


def _count_msg(labels: Tensor, batch: Batch, normalization: str | None) -> Tensor:
    """Count the span tokens, or with `"sequence"` the rows that have a span (Eq. 4)."""
    if normalization == "sequence":
        return (labels != IGNORE_INDEX).any(dim=1).sum()
    return count_labels(labels, batch, normalization)


def _mntp_remedy(settings: Any) -> str | None:
    never = settings.mask_ratio == 0 or settings.causal_ratio == 1
    return "Raise `mask_ratio`, lower `causal_ratio`" if never else None


def _msg_remedy(settings: Any) -> str | None:
    return "Raise `max_spans` or `causal_ratio`" if settings.max_spans == settings.causal_ratio == 0 else None


# Masked next-token prediction, missing-span generation and self-supervised contrastive learning: MAGNET (Khosla et al.
# 2025), section 3.
OBJECTIVES: dict[str, Objective] = {
    "mntp": Objective(labels=itemgetter("mntp_labels"), count=_count_mntp, remedy=_mntp_remedy),
    "msg": Objective(labels=itemgetter("msg_labels"), count=_count_msg, remedy=_msg_remedy),
    "sscl": Objective(loss=sscl_loss),
}


def token_labels(batch: Batch) -> dict[str, Tensor]:
    """Return the labels `(B, S)` of each token objective, in the order of the table."""
    return {name: each.labels(batch) for name, each in OBJECTIVES.items() if each.labels is not None}


def pair_objectives() -> dict[str, Objective]:
    """Return the objectives that read pairs."""
    return {name: each for name, each in OBJECTIVES.items() if each.labels is None}


def count_items(batch: Batch, *, normalization: Mapping[str, str]) -> Tensor:
    """Count what the sum of each token objective is divided by, for one batch of one process.

    Args:
        batch (`Mapping`): A collated batch.
        normalization (`Mapping[str, str]`): Name of an objective to how its items are counted.

    Returns:
        `torch.FloatTensor` of shape `(K,)`, in the order of `token_labels`.

    Example:
        >>> batch = {
        ...     "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        ...     "mntp_labels": torch.tensor([[-100, -100, -100, -100], [7, -100, -100, -100]]),
        ...     "msg_labels": torch.tensor([[5, 6, -100, -100], [-100, -100, -100, -100]]),
        ... }
        >>> count_items(batch, normalization={}).tolist()
        [1.0, 2.0]
        >>> count_items(batch, normalization={"mntp": "tokens", "msg": "sequence"}).tolist()
        [7.0, 1.0]
    """
    counts = [
        OBJECTIVES[name].count(labels, batch, normalization.get(name)) for name, labels in token_labels(batch).items()
    ]
    return torch.stack(counts).float()


class TargetLosses(NamedTuple):
    """What one forward gives for the labels of all token objectives, by name."""

    losses: dict[str, Tensor]  # (B, S), cross entropy in nats, in float32; 0 where there is no label
    hits: dict[str, Tensor] | None  # (B, S), whether the label is the likeliest token; only where gradients are off
    states: Tensor | None  # (B, S, H), the input of the LM head; only where gradients are off


def forward_targets(model: nn.Module, batch: Batch) -> TargetLosses:
    """Run the model once in infill mode and return the losses of all token objectives.

    Args:
        model (`nn.Module`): The model as it is called in training, wrapped or not.
        batch (`Mapping`): A collated batch. Its `num_labels` (`int`, optional) spares a GPU a synchronisation.

    Returns:
        `TargetLosses`: part of the graph even where there is no label.
    """
    labels = token_labels(batch)
    outputs: Any = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        segment_ids=batch["segment_ids"],
        position_ids=batch["position_ids"],
        mode="infill",
        target_ids=torch.stack(list(labels.values())),  # (K, B, S)
        num_targets=batch.get("num_labels"),
        use_cache=False,
    )
    hits = None if outputs.token_hits is None else dict(zip(labels, outputs.token_hits.unbind(), strict=True))
    states = None if torch.is_grad_enabled() else outputs.last_hidden_state
    return TargetLosses(dict(zip(labels, outputs.token_losses.unbind(), strict=True)), hits, states)


__all__ = [
    "OBJECTIVES",
    "Batch",
    "Objective",
    "TargetLosses",
    "count_items",
    "count_labels",
    "forward_targets",
    "pair_objectives",
    "token_labels",
]
