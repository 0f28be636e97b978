"""Infill: a text with blanks -> several answers from both sides, and what the same model writes from the left alone."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from examples.demo.limits import LIMITS, Limits, checked_number, checked_text
from examples.fills_page import render_fill, render_scale
from examples.infill_stories import describe
from modeling_magnet.blanks_magnet import split_at_marks
from modeling_magnet.texts_magnet import front_tokens
from trainer.prompted_infilling import PromptedInfiller

BLANK = "[blank]"


@dataclass(frozen=True)
class Filled:
    """One text with its blanks filled.

    Args:
        pieces (`list[str]`): The text around the blanks.
        fills (`list[list[dict]]`): The answers to each blank, the likeliest first.
        from_left (`list[dict]`, *optional*): What the model writes in each blank from left to right, blind to what
            follows; `None` where there is nothing to go on from.
    """

    pieces: list[str]
    fills: list[list[dict[str, Any]]]
    from_left: list[dict[str, Any]] | None


def fill_text(model: Any, text: object, *, length: object, answers: object, limits: Limits = LIMITS) -> Filled:
    """Fill every blank of a text.

    Args:
        model: A MAGNET model.
        text: The text, with `[blank]` where something is missing.
        length: Tokens of each fill, or `None` to let the model choose.
        answers: Different answers to each blank.
        limits (`Limits`): What is taken.

    Raises:
        ValueError: no blank, too much of anything, or what `infill_blanks` refuses.
    """
    given = checked_text(text, what="The text", limits=limits)
    count = checked_number(answers, what="Answers", least=1, most=limits.answers)
    pieces = split_at_marks(given, BLANK, name="The text")
    if len(pieces) - 1 > limits.blanks:
        raise ValueError(f"The text has {len(pieces) - 1} blanks; this page fills {limits.blanks} at most.")
    lengths: dict[str, Any] = {"num_tokens": "auto"}
    if length is not None:
        most = limits.fill_tokens
        lengths = {"max_new_tokens": checked_number(length, what="Tokens of a fill", least=1, most=most)}
    output = model.infill_blanks(given, num_return_sequences=count, return_dict_in_generate=True, **lengths)
    gaps = output.fills[0]
    numbers = [len(answers[0].token_ids) for answers in gaps]
    return Filled(
        pieces=pieces,
        fills=[[describe(model, fill) for fill in answers] for answers in gaps],
        from_left=fill_from_left(model, pieces, numbers),
    )


def fill_from_left(model: Any, pieces: Sequence[str], numbers: Sequence[int]) -> list[dict[str, Any]] | None:
    """What the same weights write in causal mode, blank after blank; each sees the text in front of it alone.

    Args:
        model: A MAGNET model.
        pieces (`Sequence[str]`): The text around the blanks.
        numbers (`Sequence[int]`): Tokens to write in each.
    """
    if not pieces[0].strip() and not front_tokens(model.tokenizer):
        return None
    writer = PromptedInfiller(model, model.tokenizer, family="left_to_right")
    before, fills = pieces[0], []
    for number, piece in zip(numbers, pieces[1:], strict=True):
        text = writer.infill(before, piece, max_new_tokens=number) if number else ""
        (scored,) = writer.score_infill(before, [text], piece)
        fills.append(describe(model, scored))
        before += text + piece
    return fills


def render_filled(filled: Filled) -> str:
    """Both fillings side by side, and all answers below.

    Args:
        filled (`Filled`): A filled text.
    """
    best = [answers[0] for answers in filled.fills]
    if filled.from_left is None:
        left = "<p>The text begins with the blank and this model has no BOS token: nothing to go on from.</p>"
    else:
        left = _in_place(filled.pieces, filled.from_left)
    lists = "".join(_answers(number, answers) for number, answers in enumerate(filled.fills, start=1))
    return (
        f'<p class="scale">{render_scale()}</p><div class="pair">'
        f"<section><h3>From both sides</h3>{_in_place(filled.pieces, best)}</section>"
        f"<section><h3>From the left alone</h3>{left}</section></div>"
        f"<section><h3>All answers, the likeliest first</h3>{lists}</section>"
    )


def _in_place(pieces: Sequence[str], fills: Sequence[Mapping[str, Any]]) -> str:
    """A text with its fills, and how likely the model finds all of them."""
    parts = [html.escape(pieces[0])]
    for fill, piece in zip(fills, pieces[1:], strict=True):
        parts += [f"<mark>{render_fill(fill)}</mark>", html.escape(piece)]
    tokens = sum(len(fill["logprobs"]) for fill in fills)
    total = sum(fill["logprob"] for fill in fills)
    counted = f"{tokens} token" if tokens == 1 else f"{tokens} tokens"
    return f'<p class="text">{"".join(parts)}</p><p class="note">{counted}, {total:.2f} nats in all</p>'


def _answers(number: int, answers: Sequence[Mapping[str, Any]]) -> str:
    """The answers to one blank with their log-probabilities."""
    items = "".join(
        f'<li>{render_fill(answer)} <span class="note">{answer["logprob"]:.2f} nats, '
        f"{answer['mean_logprob']:.2f} a token</span></li>"
        for answer in answers
    )
    return f"<h4>Blank {number}</h4><ol>{items}</ol>"


__all__ = ["BLANK", "Filled", "fill_from_left", "fill_text", "render_filled"]
