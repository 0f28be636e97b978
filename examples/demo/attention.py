"""Implement the Attention tab: the mask of each mode, and the attention weights of one head."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from examples.demo.infill import BLANK
from examples.demo.limits import LIMITS, checked_number, checked_text
from examples.demo.tables import render_grid, render_heatmap
from modeling_magnet.configuration_magnet import MODES, AttentionMode
from modeling_magnet.masking_magnet import attention_pattern
from modeling_magnet.spans_magnet import decode_fill, lay_out, split_at_marks
from modeling_magnet.tokenization_magnet import context_length, special_ids

# Number of tokens that fill each blank.
SPAN_TOKENS = 3
TITLES: dict[AttentionMode, str] = {
    "causal": "causal: each token sees itself and all tokens before it",
    "bidirectional": "bidirectional: each token sees all tokens",
    "infill": "infill: all tokens see the context, and those of a span their own span up to themselves",
}


@dataclass(frozen=True)
class Row:
    """A text with filled blanks as the model reads it."""

    token_ids: list[int]
    segments: list[int]
    names: list[str]

    def segments_in(self, mode: AttentionMode) -> list[int]:
        """Return the segments of a mode: all context, all one span, or spans at the blanks."""
        return {"causal": [1] * len(self.segments), "bidirectional": [0] * len(self.segments)}.get(mode, self.segments)


def read_row(model: Any, text: object) -> Row:
    """Tokenize a text and fill its blanks with the model."""
    given = checked_text(text, what="The text")
    tokenizer = model.tokenizer
    text_parts = split_at_marks(given, BLANK, name="The text") if BLANK in given else [given]
    if len(text_parts) - 1 > LIMITS.blanks:
        raise ValueError(f"The text has {len(text_parts) - 1} blanks; this page fills {LIMITS.blanks} at most.")
    layout = lay_out(
        tokenizer,
        text_parts,
        span_lengths=[SPAN_TOKENS] * (len(text_parts) - 1),
        context_length=context_length(model.config, tokenizer),
        heal="space",
    )
    if layout.length > LIMITS.grid_tokens:
        raise ValueError(
            f"The text has {layout.length} tokens, {SPAN_TOKENS} for each blank; a table shows {LIMITS.grid_tokens} "
            "at most. Shorten it."
        )
    token_ids, segments = list(layout.parts[0]), [0] * len(layout.parts[0])
    if len(text_parts) > 1:
        output = model.infill_blanks(given, max_new_tokens=SPAN_TOKENS, return_dict_in_generate=True)
        for number, (answers, text_part) in enumerate(zip(output.fills[0], layout.parts[1:], strict=True), start=1):
            fill = answers[0].token_ids
            token_ids += [*fill, *text_part]
            segments += [number] * len(fill) + [0] * len(text_part)
    special = special_ids(tokenizer)
    names = []
    for index, token in enumerate(token_ids):
        before = [token for token in token_ids[:index] if token not in special]
        name = str(tokenizer.decode([token])) if token in special else decode_fill(tokenizer, before, [token])
        names.append(name.replace(" ", "·").replace("\n", "↵") or "·")
    return Row(token_ids, segments, names)


def render_masks(row: Row) -> str:
    """Render the three masks of a row as in Figure 2 of the paper."""
    grids = ""
    for mode in MODES:
        segments = row.segments_in(mode)
        allowed = attention_pattern(torch.tensor([segments]), query_length=len(segments))[0, 0].tolist()
        grids += render_grid(allowed, caption=TITLES[mode], names=row.names, segments=segments)
    legend = '<p class="scale"><span class="context">context token</span> <span class="span">span token</span></p>'
    hint = "" if any(row.segments) else '<p class="note">Without a [blank], infill mode is bidirectional.</p>'
    return f'{legend}{hint}<div class="masks">{grids}</div>'


def with_eager_attention(model: Any) -> Any:
    """Return a model that shares the weights and uses eager attention; the original model is not changed."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    twin.set_attn_implementation("eager")
    return twin


@torch.no_grad()
def attention_weights(model: Any, row: Row, *, mode: object, layer: object, head: object) -> torch.Tensor:
    """Return the attention weights of one head of a layer.

    Returns:
        `torch.Tensor` of shape `(S, S)`: row looks at column; rows sum to 1.
    """
    if mode not in MODES:
        raise ValueError(f"Mode is {mode!r}; expected one of {', '.join(MODES)}.")
    config = model.config
    index = checked_number(layer, what="Layer", minimum=1, maximum=config.num_hidden_layers) - 1
    of_layer = checked_number(head, what="Head", minimum=1, maximum=config.num_attention_heads) - 1
    input_ids = torch.tensor([row.token_ids], device=model.device)
    segments = {"segment_ids": torch.tensor([row.segments], device=model.device)} if mode == "infill" else {}
    output = model(input_ids=input_ids, mode=mode, output_attentions=True, use_cache=False, **segments)
    weights: torch.Tensor = output.attentions[index][0, of_layer].float().cpu()
    return weights


def render_weights(row: Row, weights: torch.Tensor, *, caption: str) -> str:
    """Render one head's weights as a table.

    Args:
        weights (`torch.Tensor` of shape `(S, S)`): From `attention_weights`.
    """
    return render_heatmap(
        weights.tolist(),
        caption=caption,
        rows=row.names,
        columns=row.names,
        corner="looks at",
        minimum=0.0,
        maximum=1.0,
    )
