"""From a corrupted batch to what MNTP and MSG are computed from, with one forward for both.

Shapes: B rows, S tokens in a row.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .corruption import IGNORE_INDEX

MntpNormalization = Literal["selected", "tokens"]
MsgNormalization = Literal["token", "sequence"]


class TargetLosses(NamedTuple):
    """Cross entropy of each label in nats, in float32; 0 where there is none."""

    mntp: Tensor  # (B, S)
    msg: Tensor  # (B, S)
    mntp_hits: Tensor | None  # (B, S), whether a label is the likeliest token; where gradients are off
    msg_hits: Tensor | None  # (B, S)
    states: Tensor | None  # (B, S, H), what the LM head reads; where gradients are off


def forward_targets(model: nn.Module, batch: dict[str, Any]) -> TargetLosses:
    """Run the model once in infill mode and ask for the losses of both objectives' labels.

    Args:
        model (`nn.Module`): The model as it is called in training, wrapped or not.
        batch (`dict`): `input_ids`, `attention_mask`, `segment_ids`, `position_ids`, `mntp_labels` and `msg_labels`,
            each `(B, S)`; and, so that a GPU need not be waited for, `num_labels` (`int`) of both objectives together.

    Returns:
        `TargetLosses`: part of the graph even where there is no label.
    """
    outputs: Any = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        segment_ids=batch["segment_ids"],
        position_ids=batch["position_ids"],
        mode="infill",
        target_ids=torch.stack([batch["mntp_labels"], batch["msg_labels"]]),
        num_targets=batch.get("num_labels"),
        use_cache=False,
    )
    mntp, msg = outputs.token_losses.unbind()
    mntp_hits, msg_hits = (None, None) if outputs.token_hits is None else outputs.token_hits.unbind()
    states = None if torch.is_grad_enabled() else outputs.last_hidden_state
    return TargetLosses(mntp, msg, mntp_hits, msg_hits, states)


def count_items(
    batch: dict[str, Tensor], *, mntp_normalization: MntpNormalization, msg_normalization: MsgNormalization
) -> Tensor:
    """Count what the sums of MNTP and MSG are divided by, for one batch of one process.

    Args:
        batch (`dict`): `attention_mask`, `mntp_labels`, `msg_labels`, each `(B, S)`.
        mntp_normalization (`str`): `"selected"` counts the selected tokens, `"tokens"` all real tokens (Eq. 2).
        msg_normalization (`str`): `"token"` counts the span tokens, `"sequence"` the rows that have a span (Eq. 4).

    Returns:
        `torch.FloatTensor` of shape `(2,)`: the counts of MNTP and MSG.

    Example:
        >>> batch = {
        ...     "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        ...     "mntp_labels": torch.tensor([[-100, -100, -100, -100], [7, -100, -100, -100]]),
        ...     "msg_labels": torch.tensor([[5, 6, -100, -100], [-100, -100, -100, -100]]),
        ... }
        >>> count_items(batch, mntp_normalization="selected", msg_normalization="token").tolist()
        [1.0, 2.0]
        >>> count_items(batch, mntp_normalization="tokens", msg_normalization="sequence").tolist()
        [7.0, 1.0]
    """
    selected, missing = batch["mntp_labels"] != IGNORE_INDEX, batch["msg_labels"] != IGNORE_INDEX
    num_mntp = selected.sum() if mntp_normalization == "selected" else batch["attention_mask"].sum()
    num_msg = missing.sum() if msg_normalization == "token" else missing.any(dim=1).sum()
    return torch.stack([num_mntp, num_msg]).float()


__all__ = ["MntpNormalization", "MsgNormalization", "TargetLosses", "count_items", "forward_targets"]
