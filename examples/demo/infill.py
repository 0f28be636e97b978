"""Implement the Infill tab: fill blanks from both sides, and by the same model only from the left."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from examples.demo.fills import describe, render_fill, render_scale
from examples.demo.limits import LIMITS, checked_number, checked_text
from modeling_magnet.spans_magnet import Fill, decode_fill, split_at_marks
from modeling_magnet.tokenization_magnet import bos_ids, special_ids, text_ids

BLANK = "[blank]"


@dataclass(frozen=True)
class Filled:
    """One text with filled blanks."""

    parts: list[str]  # of the text around its blanks
    fills: list[list[dict[str, Any]]]
    from_left: list[dict[str, Any]] | None


def fill_text(model: Any, text: object, *, length: object, answers: object) -> Filled:
    """Fill every blank of a text."""
    given = checked_text(text, what="The text")
    count = checked_number(answers, what="Answers", minimum=1, maximum=LIMITS.answers)
    parts = split_at_marks(given, BLANK, name="The text")
    if len(parts) - 1 > LIMITS.blanks:
        raise ValueError(f"The text has {len(parts) - 1} blanks; this page fills {LIMITS.blanks} at most.")
    lengths: dict[str, Any] = {"num_tokens": "auto"}
    if length is not None:
        maximum = LIMITS.fill_tokens
        lengths = {"max_new_tokens": checked_number(length, what="Tokens of a fill", minimum=1, maximum=maximum)}
    output = model.infill_blanks(given, num_return_sequences=count, return_dict_in_generate=True, **lengths)
    fills = output.fills[0]
    from_left = fill_from_left(model, parts, [len(answers[0].token_ids) for answers in fills])
    return Filled(
        parts=parts,
        fills=[[describe(model, fill) for fill in answers] for answers in fills],
        from_left=None if from_left is None else [describe(model, fill) for fill in from_left],
    )


def fill_from_left(model: Any, parts: Sequence[str], lengths: Sequence[int]) -> list[Fill] | None:
    """Fill the blanks between parts in order in causal mode; each sees only the text before it.

    Return `None` if there is nothing before a blank, not even a BOS token.
    """
    before, fills = parts[0], []
    for length, part in zip(lengths, parts[1:], strict=True):
        ids = text_ids(model.tokenizer, before.rstrip(" "))
        row = bos_ids(model.tokenizer) + ids
        if not row:
            return None
        fill = _continue(model, row, length)
        if before.endswith(" "):
            fill.text = fill.text.removeprefix(" ")
        fills.append(fill)
        before += fill.text + part
    return fills


@torch.no_grad()
def _continue(model: Any, row: list[int], number: int) -> Fill:
    """Continue a row greedily and return log-probabilities from before any processor, as infilling does."""
    if number == 0:  # the model ended its fill immediately
        return Fill("")
    input_ids = torch.tensor([row], device=model.device)
    tokenizer = model.tokenizer
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=number,
        min_new_tokens=number,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    token_ids = output.sequences[0, len(row) :].tolist()
    logprobs = torch.cat(output.logits).float().log_softmax(-1)
    special = special_ids(tokenizer)
    before, new = ([token for token in part if token not in special] for part in (row, token_ids))
    chosen = [float(logprobs[index, token]) for index, token in enumerate(token_ids)]
    return Fill(decode_fill(tokenizer, before, new), token_ids, chosen)


def render_filled(filled: Filled) -> str:
    """Render both fillings side by side, and all candidates below."""
    best = [answers[0] for answers in filled.fills]
    if filled.from_left is None:
        left = "<p>The text begins with the blank and this model has no BOS token: nothing to go on from.</p>"
    else:
        left = _in_place(filled.parts, filled.from_left)
    lists = "".join(_answers(number, answers) for number, answers in enumerate(filled.fills, start=1))
    return (
        f'<p class="scale">{render_scale()}</p><div class="pair">'
        f"<section><h2>From both sides</h2>{_in_place(filled.parts, best)}</section>"
        f"<section><h2>From the left only</h2>{left}</section></div>"
        f"<section><h2>All answers, the likeliest first</h2>{lists}</section>"
    )


def _in_place(parts: Sequence[str], fills: Sequence[Mapping[str, Any]]) -> str:
    """Render a text with its fills and their joint probability."""
    rendered = [html.escape(parts[0])]
    for fill, part in zip(fills, parts[1:], strict=True):
        rendered += [f"<mark>{render_fill(fill)}</mark>", html.escape(part)]
    tokens = sum(len(fill["logprobs"]) for fill in fills)
    total = sum(fill["logprob"] for fill in fills)
    counted = f"{tokens} token" if tokens == 1 else f"{tokens} tokens"
    return f'<p class="text">{"".join(rendered)}</p><p class="note">{counted}, {total:.2f} nats in all</p>'


def _answers(number: int, answers: Sequence[Mapping[str, Any]]) -> str:
    """Render the candidates of one blank with their log-probabilities."""
    items = "".join(
        f'<li>{render_fill(answer)} <span class="note">{answer["logprob"]:.2f} nats, '
        f"{answer['mean_logprob']:.2f} a token</span></li>"
        for answer in answers
    )
    return f"<h3>Blank {number}</h3><ol>{items}</ol>"
