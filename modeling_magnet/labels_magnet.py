"""Labels that a forward must not score: tokens that their own predictor reads in the input."""

from typing import Any

import torch

from .masking_magnet import AttentionMode

IGNORE_INDEX = -100


def check_labels_are_hidden(
    labels: torch.Tensor,
    *,
    mode: AttentionMode,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    embed: Any,
    shift_labels: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    segment_ids: torch.Tensor | None = None,
    mask_token_id: int | None = None,
) -> None:
    """Refuse labels whose predictors see them.

    The logits of position i predict token i + 1. Outside causal mode every token sees the context, so a context token
    that has a label must be hidden in the input, by a mask token or another one. Span tokens are not seen by what
    predicts them. Up to half of the labelled context tokens may be as in the input: BERT's corruption keeps a few of
    those that it picks.

    Args:
        labels (`torch.LongTensor` of shape `(B, S)`): As in transformers, not shifted, -100 for no label.
        mode (`str`): The mode of the call.
        input_ids (`torch.LongTensor` of shape `(B, S)`, *optional*): The tokens of the call.
        inputs_embeds (`torch.FloatTensor` of shape `(B, S, H)`, *optional*): Instead of the tokens.
        embed (`Callable`): What makes embeddings of tokens.
        shift_labels (`torch.LongTensor` of shape `(B, S)`, *optional*): As in transformers, already shifted; these are
            scored instead of `labels`.
        attention_mask (`torch.Tensor` of shape `(B, KV)`, *optional*): Zero for padding, which nothing sees.
        segment_ids (`torch.LongTensor` of shape `(B, KV)`, *optional*): In infill mode; 0 for context.
        mask_token_id (`int`, *optional*): A token that hides another, even one that it equals.

    Raises:
        ValueError: half of the labelled context tokens or more are in the input as they are.
    """
    # Reading a value back would break a compiled graph.
    if mode == "causal" or torch.compiler.is_compiling():
        return
    given = input_ids if input_ids is not None else inputs_embeds
    assert given is not None
    if any(table is not None and table.shape != given.shape[:2] for table in (labels, shift_labels)):
        return  # the loss says what is wrong with them
    targets = (labels[:, 1:] if shift_labels is None else shift_labels[:, :-1]).to(given.device)  # (B, S - 1)
    is_open = targets != IGNORE_INDEX
    for table, is_visible in ((segment_ids, False), (attention_mask, True)):
        if table is not None:
            is_open = is_open & (table[:, 1 - given.shape[1] :].bool() == is_visible).to(given.device)
    if input_ids is not None:
        is_seen = input_ids[:, 1:] == targets
        if mask_token_id is not None:
            is_seen = is_seen & (input_ids[:, 1:] != mask_token_id)
    else:
        with torch.no_grad():
            is_seen = (embed(targets.clamp(min=0)) == given[:, 1:]).all(-1)
    num_open, num_seen = int(is_open.sum()), int((is_seen & is_open).sum())
    if num_seen and 2 * num_seen >= num_open:
        raise ValueError(
            f"`labels` ask for {num_seen} tokens that mode={mode!r} shows to what predicts them: position i sees "
            "token i + 1, so the loss would only measure copying. For the loss from left to right pass "
            'mode="causal" (`is_causal=True`). For masked tokens put the mask token into `input_ids` and give labels, '
            'or `target_ids`, to those positions alone. For a fill pass mode="infill" with its `segment_ids` and -100 '
            "for every context token."
        )


__all__ = ["check_labels_are_hidden"]
