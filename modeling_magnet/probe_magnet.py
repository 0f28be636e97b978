"""Is attention what the mode says? A model that is silently causal raises no error elsewhere, it only scores badly."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from .tokenization_magnet import front_tokens

# Ordinary tokens by their number: any vocabulary has them, and special ones would do as well.
PROBE_IDS = (3, 7, 4, 9, 5, 8)
NUM_KEPT = 3
# Rows of one batch may differ in their last bits where nothing distinguishes them.
NOISE_FACTOR = 10

_REMEDY = (
    "Either its weights are damaged: look for NaN in the checkpoint; or its states are too large for this dtype: load "
    "it with dtype='bfloat16' or dtype='float32'."
)


@torch.no_grad()
def check_attention(model: Any) -> None:
    """Run two short forwards and compare: later tokens must move earlier states in bidirectional mode only.

    The batch holds a row, the same row with other tokens at its end, and the row again, from which the rounding noise
    of the back-end is read. Each begins with BOS as real texts do: its state is far larger than those of others.

    Args:
        model (`PreTrainedModel`): Its forward takes `mode`.

    Raises:
        RuntimeError: a mode attends to what it must not, or not to what it must, or the states are no numbers; naming
            back-end and versions.
    """
    vocab_size = model.config.vocab_size
    ids = torch.tensor([PROBE_IDS] * 3) % vocab_size
    ids[1, NUM_KEPT:] = (ids[1, NUM_KEPT:] + 1) % vocab_size
    front = _front(model)
    ids = torch.cat([torch.tensor([front] * 3, dtype=torch.long), ids], dim=1)
    num_kept = len(front) + NUM_KEPT
    moved, noise = {}, {}
    for mode in ("bidirectional", "causal"):  # a back-end that cannot do the first says so
        kept = model(
            ids.to(model.device), mode=mode, use_cache=False, logits_to_keep=torch.arange(0)
        ).last_hidden_state[:, :num_kept]
        if not kept.isfinite().all():
            raise RuntimeError(f"The states of the model are not finite, with {_used_with(model)}. {_REMEDY}")
        moved[mode] = float((kept[1] - kept[0]).abs().max())
        noise[mode] = float((kept[2] - kept[0]).abs().max())
    complaints = []
    if not moved["bidirectional"] > NOISE_FACTOR * noise["bidirectional"]:
        complaints.append("bidirectional mode does not see later tokens: embeddings would silently be causal")
    if moved["causal"] > NOISE_FACTOR * noise["causal"] and moved["causal"] > 0.01 * moved["bidirectional"]:
        complaints.append("causal mode sees later tokens: generation would silently be wrong")
    if complaints:
        raise RuntimeError(
            f"Attention is not what the mode says, with {_used_with(model)}: {'; '.join(complaints)} (states moved by "
            f"{moved}, noise {noise}). Choose another back-end with `model.set_attn_implementation(...)` or other "
            "versions, and report it."
        )


def check_vectors(model: Any, is_finite: torch.Tensor, *, texts: Sequence[str], indices: Sequence[int]) -> None:
    """Refuse to return vectors that are not finite; waits for the device once.

    Args:
        model (`PreTrainedModel`): Made them.
        is_finite (`torch.BoolTensor` of shape `(N,)`): Whether all numbers of a text's vectors are.
        texts (`Sequence[str]`): All texts of the call.
        indices (`Sequence[int]`): Which N of them were embedded.

    Raises:
        RuntimeError: naming the first such texts.
    """
    if bool(is_finite.all()):
        return
    wrong = sorted(index for index, fine in zip(indices, is_finite.tolist(), strict=True) if not fine)
    named = ", ".join(f"{index} ({texts[index]!r:.40})" for index in wrong[:3]) + (", ..." if len(wrong) > 3 else "")
    raise RuntimeError(
        f"The vectors of {len(wrong)} of {len(indices)} texts are not finite: texts {named}, with "
        f"{_used_with(model)}. {_REMEDY}"
    )


def _front(model: Any) -> list[int]:
    """Return the BOS that texts of the model begin with, or nothing."""
    try:
        return front_tokens(model.tokenizer)
    except (AttributeError, ValueError):  # a model without a tokenizer
        bos = model.config.bos_token_id
        return [bos] if isinstance(bos, int) and 0 <= bos < model.config.vocab_size else []


def _used_with(model: Any) -> str:
    """Back-end, device, dtype and versions, for messages."""
    return (
        f"attn_implementation={model.config._attn_implementation!r} on {model.device.type} in {model.dtype}, "
        f"transformers {transformers.__version__}, torch {torch.__version__}"
    )


__all__ = ["check_attention", "check_vectors"]
