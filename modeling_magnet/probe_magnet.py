"""Check that a model's attention follows its modes, and that its vectors are finite."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from .tokenization_magnet import bos_ids

# Tokens of any vocabulary; special tokens work as well.
PROBE_IDS = (3, 7, 4, 9, 5, 8)
NUM_KEPT = 3
# Equal rows of one batch may differ in their last bits.
NOISE_FACTOR = 10

_REMEDY = (
    "Either the weights are damaged (check the checkpoint for NaN), or the states overflow in this dtype (load the "
    "model with dtype='bfloat16' or dtype='float32')."
)


def probe_attention(model: Any) -> None:
    """Call `check_attention` once for each back-end, device and dtype with which a model is used."""
    used_with = (str(model.config._attn_implementation), model.device.type, str(model.dtype))
    if used_with not in model._probed:
        check_attention(model)
        model._probed.add(used_with)


@torch.no_grad()
def check_attention(model: Any) -> None:
    """Check with two short forwards that later tokens change earlier hidden states in bidirectional mode only.

    The batch contains a row, the same row with other tokens at its end, and the first row again, which measures the
    rounding noise of the back-end. Rows begin with BOS like real texts, because its state is the first to overflow.

    Raises:
        RuntimeError: a mode attends to too many or too few tokens, or hidden states are not finite.
    """
    vocab_size = model.config.vocab_size
    ids = torch.tensor([PROBE_IDS] * 3) % vocab_size
    ids[1, NUM_KEPT:] = (ids[1, NUM_KEPT:] + 1) % vocab_size
    try:
        front = bos_ids(model.tokenizer)
    except ValueError:  # a model without a tokenizer
        front = []
    ids = torch.cat([torch.tensor([front] * 3, dtype=torch.long), ids], dim=1).to(model.device)
    moved, noise = {}, {}
    for mode in ("bidirectional", "causal"):  # a back-end without bidirectional attention raises
        outputs = model(ids, mode=mode, use_cache=False, logits_to_keep=torch.arange(0))
        kept = outputs.last_hidden_state[:, : len(front) + NUM_KEPT]
        if not kept.isfinite().all():
            raise RuntimeError(f"The model's hidden states are not finite, with {_used_with(model)}. {_REMEDY}")
        moved[mode], noise[mode] = (float((kept[row] - kept[0]).abs().max()) for row in (1, 2))
    complaints = []
    if not moved["bidirectional"] > NOISE_FACTOR * noise["bidirectional"]:
        complaints.append("bidirectional mode does not see later tokens: embeddings would silently be causal")
    if moved["causal"] > NOISE_FACTOR * noise["causal"] and moved["causal"] > 0.01 * moved["bidirectional"]:
        complaints.append("causal mode sees later tokens: generation would silently be wrong")
    if complaints:
        raise RuntimeError(
            f"The attention back-end does not implement the requested mode, with {_used_with(model)}: "
            f"{'; '.join(complaints)} (hidden states moved by {moved}, noise {noise}). Choose another back-end with "
            "`model.set_attn_implementation(...)` or other versions, and report this error."
        )


def check_vectors(model: Any, is_finite: torch.Tensor, *, texts: Sequence[str], indices: Sequence[int]) -> None:
    """Raise a RuntimeError that names the first texts whose vectors are not finite. Synchronizes with the device once.

    Args:
        is_finite (`torch.BoolTensor` of shape `(N,)`): Whether all vectors of a text are finite.
        texts (`Sequence[str]`): All texts of the call.
        indices (`Sequence[int]`): The N texts that were embedded.
    """
    if bool(is_finite.all()):
        return
    wrong = sorted(index for index, fine in zip(indices, is_finite.tolist(), strict=True) if not fine)
    named = ", ".join(f"{index} ({texts[index]!r:.40})" for index in wrong[:3]) + (", ..." if len(wrong) > 3 else "")
    raise RuntimeError(
        f"The vectors of {len(wrong)} of {len(indices)} texts are not finite: texts {named}, with "
        f"{_used_with(model)}. {_REMEDY}"
    )


def _used_with(model: Any) -> str:
    """Describe back-end, device, dtype and versions for an error message."""
    return (
        f"attn_implementation={model.config._attn_implementation!r} on {model.device.type} in {model.dtype}, "
        f"transformers {transformers.__version__}, torch {torch.__version__}"
    )
