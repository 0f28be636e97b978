"""The three losses as one would first write them: a forward for each, logits of every position, padding read.

What `training_step.py` compares with; also the reference that the trainer's losses and gradients are held against.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_magnet.pooling_magnet import last_token_states
from trainer.corruption import IGNORE_INDEX
from trainer.losses import sscl_loss
from trainer.phases import LossPhase


def naive_loss(
    model: nn.Module, batch: dict[str, Any], *, head: nn.Module, weights: LossPhase, temperature: float, length: int
) -> Tensor:
    """Weighted sum of MNTP, MSG and SSCL of one micro-batch, as the trainer's `compute_loss` has it.

    Args:
        model (`nn.Module`): The model; with its LM head, whose logits nobody uses for the pairs.
        batch (`dict`): What the collators made: rows, and `pairs` where the contrastive loss counts.
        head (`nn.Module`): The contrastive head.
        weights (`LossPhase`): Of the losses; one of 0 is not computed.
        temperature (`float`): Of the contrastive loss.
        length (`int`): Tokens of a side of a pair, to which all are padded.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    loss = torch.zeros((), device=batch["input_ids"].device)
    for weight, name in ((weights.mntp, "mntp_labels"), (weights.msg, "msg_labels")):
        if weight:
            loss = loss + weight * language_loss(model, batch, labels=batch[name])
    if weights.sscl:
        sides = zip(*(batch["pairs"][name].chunk(2) for name in ("input_ids", "attention_mask")), strict=True)
        vectors = []
        for ids, mask in sides:
            ids, mask = (F.pad(tensor, (0, length - tensor.shape[1])) for tensor in (ids, mask))
            states: Any = model(input_ids=ids, attention_mask=mask, mode="bidirectional").last_hidden_state
            vectors.append(head(last_token_states(states, mask)))
        loss = loss + weights.sscl * sscl_loss(vectors[0], vectors[1], temperature=temperature)
    return loss


def language_loss(model: nn.Module, batch: dict[str, Any], *, labels: Tensor) -> Tensor:
    """Cross entropy of one objective's labels, a mean over them, from the logits of all positions in float32."""
    outputs: Any = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        segment_ids=batch["segment_ids"],
        mode="infill",
    )
    logits = outputs.logits.float()  # (B, S, V)
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


__all__ = ["language_loss", "naive_loss"]
