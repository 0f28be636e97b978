"""Is attention what the mode says? A model that is silently causal raises no error elsewhere, it only scores badly."""

from typing import Any

import torch
import transformers

# Ordinary tokens by their number: any vocabulary has them, and special ones would do as well.
PROBE_IDS = (3, 7, 4, 9, 5, 8)
NUM_KEPT = 3
# Rows of one batch may differ in their last bits where nothing distinguishes them.
NOISE_FACTOR = 10


@torch.no_grad()
def check_attention(model: Any) -> None:
    """Run two short forwards and compare: later tokens must move earlier states in bidirectional mode only.

    The batch holds a row, the same row with other tokens at its end, and the row again, from which the rounding noise
    of the back-end is read.

    Args:
        model (`PreTrainedModel`): Its forward takes `mode`.

    Raises:
        RuntimeError: a mode attends to what it must not, or not to what it must, or the states are no numbers; naming
            back-end and versions.
    """
    vocab_size = model.config.vocab_size
    ids = torch.tensor([PROBE_IDS] * 3) % vocab_size
    ids[1, NUM_KEPT:] = (ids[1, NUM_KEPT:] + 1) % vocab_size
    moved, noise = {}, {}
    for mode in ("bidirectional", "causal"):  # a back-end that cannot do the first says so
        kept = model(
            ids.to(model.device), mode=mode, use_cache=False, logits_to_keep=torch.arange(0)
        ).last_hidden_state[:, :NUM_KEPT]
        if not kept.isfinite().all():
            raise RuntimeError(
                f"The states of the model are not finite, with {_used_with(model)}. Either its weights are damaged: "
                "look for NaN in the checkpoint; or they are too large for this dtype: load it with dtype='float32'."
            )
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


def _used_with(model: Any) -> str:
    """Back-end, device, dtype and versions, for messages."""
    return (
        f"attn_implementation={model.config._attn_implementation!r} on {model.device.type} in {model.dtype}, "
        f"transformers {transformers.__version__}, torch {torch.__version__}"
    )


__all__ = ["check_attention"]
