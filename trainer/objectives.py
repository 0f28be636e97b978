"""From a corrupted batch to what MNTP and MSG are computed from, with one forward for both.

Shapes: B rows, S tokens in a row, N1 and N2 labels of the two objectives, V vocabulary.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .corruption import IGNORE_INDEX

MntpNormalization = Literal["selected", "tokens"]
MsgNormalization = Literal["token", "sequence"]


class LabelledLogits(NamedTuple):
    """Outputs at the positions that carry a label, and nowhere else."""

    mntp_logits: Tensor  # (N1, V)
    mntp_labels: Tensor  # (N1,)
    msg_logits: Tensor  # (N2, V)
    msg_labels: Tensor  # (N2,)


def forward_labelled(model: nn.Module, batch: dict[str, Tensor]) -> LabelledLogits:
    """Run the model in infill mode and apply its LM head to labelled positions only.

    Args:
        model (`nn.Module`): The model as it is called in training, wrapped or not.
        batch (`dict`): `input_ids`, `attention_mask`, `segment_ids`, `position_ids`, `mntp_labels` and `msg_labels`,
            each `(B, S)`.

    Returns:
        `LabelledLogits`: both objectives' logits and labels, in row-major order.
    """
    mntp_labels, msg_labels = batch["mntp_labels"], batch["msg_labels"]
    wanted = (mntp_labels != IGNORE_INDEX) | (msg_labels != IGNORE_INDEX)  # (B, S)
    outputs: Any = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        segment_ids=batch["segment_ids"],
        position_ids=batch["position_ids"],
        mode="infill",
        logits_to_keep=wanted,
        use_cache=False,
    )
    mntp_labels, msg_labels = mntp_labels[wanted], msg_labels[wanted]  # (N1 + N2,)
    has_mntp, has_msg = mntp_labels != IGNORE_INDEX, msg_labels != IGNORE_INDEX
    return LabelledLogits(
        mntp_logits=outputs.logits[has_mntp],
        mntp_labels=mntp_labels[has_mntp],
        msg_logits=outputs.logits[has_msg],
        msg_labels=msg_labels[has_msg],
    )


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


__all__ = ["LabelledLogits", "MntpNormalization", "MsgNormalization", "count_items", "forward_labelled"]
