"""Check that a model attends as its modes say, and that its vectors are finite."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from .tokenization_magnet import bos_ids

# Tokens that any vocabulary has; special ones would do as well.
PROBE_IDS = (3, 7, 4, 9, 5, 8)
NUM_KEPT = 3
# Equal rows of one batch may differ in their last bits.
NOISE_FACTOR = 10

_REMEDY = (
    "Either its weights are damaged: look for NaN in the checkpoint. Or its states are too large for this dtype: load "
    "it with dtype='bfloat16' or dtype='float32'."
)


def probe_attention(model: Any) -> None:
    """Check the modes once for each back-end, device and dtype that a model is used with."""
    used_with = (str(model.config._attn_implementation), model.device.type, str(model.dtype))
    if used_with not in model._probed:
        check_attention(model)
        model._probed.add(used_with)


@torch.no_grad()
def check_attention(model: Any) -> None:
    """Check by two short forwards that later tokens change earlier hidden states in bidirectional mode only.

    The batch holds a row, the same row with other tokens at its end, and the row again, which shows the rounding noise
    of the back-end. Each row begins with BOS as real texts do: its hidden state is far larger than the others.

    Raises:
        RuntimeError: a mode attends to too much or too little, or hidden states are not finite; names back-end and
            versions.
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
    for mode in ("bidirectional", "causal"):  # a back-end without the first raises
        outputs = model(ids, mode=mode, use_cache=False, logits_to_keep=torch.arange(0))
        kept = outputs.last_hidden_state[:, : len(front) + NUM_KEPT]
        if not kept.isfinite().all():
            raise RuntimeError(f"The hidden states of the model are not finite, with {_used_with(model)}. {_REMEDY}")
        moved[mode], noise[mode] = (float((kept[row] - kept[0]).abs().max()) for row in (1, 2))
    complaints = []
    if not moved["bidirectional"] > NOISE_FACTOR * noise["bidirectional"]:
        complaints.append("bidirectional mode does not see later tokens: embeddings would silently be causal")
    if moved["causal"] > NOISE_FACTOR * noise["causal"] and moved["causal"] > 0.01 * moved["bidirectional"]:
        complaints.append("causal mode sees later tokens: generation would silently be wrong")
    if complaints:
        raise RuntimeError(
            f"Attention is not what the mode says, with {_used_with(model)}: {'; '.join(complaints)} (hidden states "
            f"moved by {moved}, noise {noise}). Choose another back-end with `model.set_attn_implementation(...)` or "
            "other versions, and report it."
        )


def check_vectors(model: Any, is_finite: torch.Tensor, *, texts: Sequence[str], indices: Sequence[int]) -> None:
    """Raise a RuntimeError that names the first texts whose vectors are not finite; waits for the device once.

    Args:
        model (`PreTrainedModel`): The model that made them.
        is_finite (`torch.BoolTensor` of shape `(N,)`): Whether all vectors of a text are finite.
        texts (`Sequence[str]`): All texts of the call.
        indices (`Sequence[int]`): Which N of them were embedded.
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
    """Return back-end, device, dtype and versions for a message."""
    return (
        f"attn_implementation={model.config._attn_implementation!r} on {model.device.type} in {model.dtype}, "
        f"transformers {transformers.__version__}, torch {torch.__version__}"
    )
