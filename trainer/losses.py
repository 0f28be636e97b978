"""The three objectives as functions of tensors.

No model, no batch, no weights: `MagnetTrainer` calls the model, picks the positions that carry a label, calls these
and weighs them. Reductions run in float32 for half-precision inputs too, and a batch without labels gives a 0 that can
be back-propagated, so that no process of a distributed run is missing from a collective.

Shapes: N positions, V vocabulary, P anchors, Q positives, H hidden size.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def mntp_loss(token_losses: Tensor, *, num_items: float | Tensor) -> Tensor:
    """Masked next-token prediction: cross entropy of the selected context tokens, each predicted one position earlier.

    Args:
        token_losses (`torch.FloatTensor` of any shape): Cross entropy of each label in nats, 0 where there is none.
        num_items (`float` or `torch.Tensor` of shape `()`): What the sum is divided by, > 0 where there are labels:
            the selected tokens of the whole accumulation window and all processes, or for Eq. 2 all its tokens.

    Returns:
        `torch.FloatTensor` of shape `()`: in nats per item; 0 without items.

    Source: MAGNET (Khosla et al. 2025), Eq. 2, which divides by all tokens; LLM2Vec (BehnamGhader et al. 2024).
    """
    return _per_item(token_losses, num_items=num_items)


def msg_loss(token_losses: Tensor, *, num_items: float | Tensor) -> Tensor:
    """Missing-span generation: cross entropy of span tokens, each predicted from all context and its span's past.

    Args:
        token_losses (`torch.FloatTensor` of any shape): Cross entropy of each label in nats, 0 where there is none.
        num_items (`float` or `torch.Tensor` of shape `()`): What the sum is divided by, > 0 where there are labels:
            the span tokens of the whole accumulation window and all processes, or for Eq. 4 its sequences.

    Returns:
        `torch.FloatTensor` of shape `()`: in nats per item; 0 without items.

    Source: MAGNET (Khosla et al. 2025), Eq. 4, which divides by the number of sequences.
    """
    return _per_item(token_losses, num_items=num_items)


def sscl_loss(
    anchors: Tensor,
    positives: Tensor,
    *,
    temperature: float,
    similarity: Literal["cosine", "dot"] = "cosine",
    targets: Tensor | None = None,
) -> Tensor:
    """Self-supervised contrastive learning: InfoNCE, every positive but its own being a negative of an anchor.

    The mean over anchors of `-log softmax(similarity(anchor, positives) / temperature)[target]`.

    Args:
        anchors (`torch.FloatTensor` of shape `(P, H)`): Representations of the sentences.
        positives (`torch.FloatTensor` of shape `(Q, H)`): Representations of their other views, Q >= P without
            `targets`; the surplus are negatives, for example those of other processes.
        temperature (`float`): Divides the similarity, > 0.
        similarity (`str`): `"cosine"`, or `"dot"` for Eq. 3 as printed.
        targets (`torch.LongTensor` of shape `(P,)`): Row of each anchor's own positive; i for anchor i if left out.

    Returns:
        `torch.FloatTensor` of shape `()`: in nats per anchor; 0 if there is no anchor.

    Raises:
        ValueError: if the shapes do not match, a target is no row of `positives`, the temperature is not a positive
            number, or the similarity is unknown.

    Source: MAGNET (Khosla et al. 2025), Eq. 3; van den Oord et al. 2018, https://huggingface.co/papers/1807.03748.

    Example:
        >>> same = torch.ones(4, 8)
        >>> round(sscl_loss(same, same, temperature=0.1).item(), 4)  # four equal candidates: log 4
        1.3863
    """
    _check_pairs(anchors, positives, targets)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"`temperature` is {temperature}; it divides the similarity, pass a positive number.")
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"`similarity` is {similarity!r}; pass 'cosine' or 'dot'.")

    dtype = torch.promote_types(anchors.dtype, torch.float32)
    anchors, positives = anchors.to(dtype), positives.to(dtype)
    if not len(anchors):
        return anchors.sum() + 0.0 * positives.sum()
    if similarity == "cosine":
        anchors, positives = F.normalize(anchors, dim=-1), F.normalize(positives, dim=-1)
    with torch.autocast(anchors.device.type, enabled=False):  # it would multiply in half precision
        scores = anchors @ positives.T / temperature  # (P, Q)
    if targets is None:
        targets = torch.arange(len(anchors), device=anchors.device)
    return F.cross_entropy(scores, targets)


def _per_item(token_losses: Tensor, *, num_items: float | Tensor) -> Tensor:
    """Divide the sum; a batch of a window without items has the sum 0."""
    dtype = torch.promote_types(token_losses.dtype, torch.float32)  # 30,000 items are none of bfloat16's numbers
    divisor = torch.as_tensor(num_items, dtype=dtype, device=token_losses.device)
    return token_losses.sum(dtype=dtype) / divisor.where(divisor > 0, 1.0)


def _check_pairs(anchors: Tensor, positives: Tensor, targets: Tensor | None) -> None:
    """Refuse anchors and positives that cannot be paired."""
    shapes = f"`anchors` has shape {tuple(anchors.shape)} and `positives` {tuple(positives.shape)}"
    if anchors.dim() != 2 or positives.dim() != 2 or anchors.shape[1] != positives.shape[1]:
        raise ValueError(f"{shapes}; pass two tensors of shape (num_texts, hidden_size) with one hidden size.")
    if targets is None:
        if len(positives) < len(anchors):
            raise ValueError(f"{shapes}; each anchor needs its own positive in the same row, or pass `targets`.")
        return
    if targets.shape != anchors.shape[:1]:
        raise ValueError(f"`targets` has shape {tuple(targets.shape)}; pass one row number for each anchor. {shapes}.")
    # On an accelerator reading them back would make the host wait; there cross entropy itself asserts it.
    if targets.device.type == "cpu" and len(targets) and not (0 <= targets.min() and targets.max() < len(positives)):
        raise ValueError(
            f"`targets` reach from {targets.min()} to {targets.max()}; pass row numbers of `positives`, from 0 to "
            f"{len(positives) - 1}."
        )


__all__ = ["mntp_loss", "msg_loss", "sscl_loss"]
