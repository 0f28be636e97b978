"""One batch whose rows have modes of their own: each mode runs once, on its rows."""

from collections.abc import Sequence
from typing import Any

import torch

from .masking_magnet import MODES, AttentionMode, check_mode

# Arguments with a row for each row of the batch.
PER_ROW = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "segment_ids", "labels")
# What a mixture cannot return, because it would have to be put together from parts of different shapes.
NOT_MIXED = ("past_key_values", "use_cache", "output_hidden_states", "output_attentions")


def forward_rows(model: Any, modes: Sequence[AttentionMode], arguments: dict[str, Any]) -> dict[str, Any]:
    """Run each mode on its rows and put the rows back in order.

    A row's output is that of a batch of the rows of its mode, bit for bit: causal rows take the parent's path, without
    the adapter where that is off in causal mode.

    Args:
        model: The model; its forward is called once for each mode.
        modes (sequence of `str`): One for each row.
        arguments (`dict`): The other arguments of its forward. Segment ids of rows in other modes than infill are 0.

    Returns:
        `dict`: `logits` `(batch_size, kept, vocab_size)` and `last_hidden_state` `(batch_size, sequence_length,
        hidden_size)`.

    Raises:
        ValueError: not one mode for each row, or an argument that rows of different modes cannot share.
    """
    for mode in modes:
        check_mode(mode)
    named = [arguments[name] for name in ("input_ids", "inputs_embeds") if arguments.get(name) is not None]
    if not named:
        raise ValueError("Neither `input_ids` nor `inputs_embeds` was given. Pass one of them.")
    given = named[0]
    if len(modes) != len(given):
        raise ValueError(f"`mode` has {len(modes)} entries for a batch of {len(given)} rows. Pass one for each row.")
    unfit = [name for name in NOT_MIXED if arguments.get(name) not in (None, False)]
    unfit += [] if arguments.get("target_ids") is None else ["target_ids"]
    keep = arguments.get("logits_to_keep")
    if unfit or arguments.get("labels") is not None or (isinstance(keep, torch.Tensor) and keep.dtype == torch.bool):
        unfit += [name for name in ("labels", "logits_to_keep") if isinstance(arguments.get(name), torch.Tensor)]
        raise ValueError(f"A batch of mixed modes takes no {', '.join(unfit)}. Call the model once for each mode.")
    segments = arguments.get("segment_ids")
    if segments is not None and (not isinstance(segments, torch.Tensor) or segments.dim() != 2):
        told = f"of shape {tuple(segments.shape)}" if isinstance(segments, torch.Tensor) else type(segments).__name__
        raise ValueError(f"`segment_ids` is {told}; expected a tensor of shape (batch_size, key_length).")
    if segments is not None and len(segments) != len(modes):
        raise ValueError(f"`segment_ids` has {len(segments)} rows for a batch of {len(modes)}. Pass one for each.")
    others = torch.tensor([mode != "infill" for mode in modes], device=given.device)
    # Reading a value back would break a compiled graph; there the caller vouches for it.
    if segments is not None and not torch.compiler.is_compiling() and bool(segments[others].any()):
        raise ValueError("`segment_ids` has spans in rows that are not in infill mode. Set those rows to 0.")
    logits: Any = None
    states: Any = None
    for mode in [mode for mode in MODES if mode in modes]:
        rows = torch.tensor([index for index, other in enumerate(modes) if other == mode], device=given.device)
        part = dict(arguments)
        for name in PER_ROW:
            if part.get(name) is not None and len(part[name]) == len(modes):
                part[name] = part[name][rows]
        part["segment_ids"] = part["segment_ids"] if mode == "infill" else None
        output = model(**part, mode=mode)
        if states is None:
            states = output.last_hidden_state.new_empty(len(modes), *output.last_hidden_state.shape[1:])
            logits = output.logits.new_empty(len(modes), *output.logits.shape[1:])
        # Not in place: the parts may want their gradients.
        states = states.index_copy(0, rows, output.last_hidden_state)
        logits = logits.index_copy(0, rows, output.logits)
    return {"logits": logits, "last_hidden_state": states}


__all__ = ["forward_rows"]
