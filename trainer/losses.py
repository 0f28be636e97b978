"""Compute the losses of all objectives as functions of tensors, without a model, a batch or weights.

Sums run in float32 for half-precision inputs too. A batch without labels gives a 0 that can be back-propagated, so
that no process of a distributed run is missing from a collective.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def token_loss(token_losses: Tensor, *, num_items: float | Tensor) -> Tensor:
    """Divide summed cross entropies by a number of items; the loss of MNTP and MSG.

    Args:
        token_losses (`torch.FloatTensor` of any shape): Cross entropy of each label in nats, 0 where there is no
            label.
        num_items (`float` or `torch.Tensor` of shape `()`): The divisor, for example the labels of the whole
            accumulation window and all processes.

    Returns:
        `torch.FloatTensor` of shape `()`: nats per item; 0 without items.

    Source: MAGNET (Khosla et al. 2025), Eq. 2 (divides by all tokens) and Eq. 4 (by sequences).
    """
    dtype = torch.promote_types(token_losses.dtype, torch.float32)  # bfloat16 cannot represent 30,000 items
    divisor = torch.as_tensor(num_items, dtype=dtype, device=token_losses.device)
    return token_losses.sum(dtype=dtype) / divisor.where(divisor > 0, 1.0)


def sscl_loss(
    anchors: Tensor,
    positives: Tensor,
    *,
    temperature: float,
    similarity: Literal["cosine", "dot"] = "cosine",
    targets: Tensor | None = None,
) -> Tensor:
    """Compute InfoNCE: the other anchors' positives are an anchor's negatives.

    The result is the mean over anchors of `-log softmax(similarity(anchor, positives) / temperature)[target]`.

    Args:
        anchors (`torch.FloatTensor` of shape `(P, H)`): Embeddings of the sentences.
        positives (`torch.FloatTensor` of shape `(Q, H)`): Embeddings of their partners and of further negatives, such
            as other processes' positives; Q >= P.
        temperature (`float`): Divides the similarity, > 0.
        similarity (`str`): `"cosine"`, or `"dot"` for Eq. 3 as printed.
        targets (`torch.LongTensor` of shape `(P,)`): Row of each anchor's own positive; 0..P-1 by default.

    Returns:
        `torch.FloatTensor` of shape `()`: nats per anchor; 0 without anchors.

    Raises:
        ValueError: if the temperature or the similarity is invalid.

    Source: MAGNET (Khosla et al. 2025), Eq. 3; van den Oord et al. 2018, https://huggingface.co/papers/1807.03748.

    Example:
        >>> same = torch.ones(4, 8)
        >>> round(sscl_loss(same, same, temperature=0.1).item(), 4)  # four equal candidates: log 4
        1.3863
    """
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
    with torch.autocast(anchors.device.type, enabled=False):  # autocast would multiply in half precision
        scores = anchors @ positives.T / temperature  # (P, Q)
    if targets is None:
        targets = torch.arange(len(anchors), device=anchors.device)
    return F.cross_entropy(scores, targets)


__all__ = ["sscl_loss", "token_loss"]
