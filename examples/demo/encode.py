"""Implement the Encode tab: the similarity of lines."""

import html
from dataclasses import dataclass
from typing import Any

import numpy as np

from examples.demo.limits import LIMITS, checked_text
from examples.demo.tables import render_heatmap


@dataclass(frozen=True)
class SimilarityTable:
    """Lines and the cosines of their embeddings.

    Args:
        lines (`list[str]`): The texts.
        cosines (`np.ndarray` of shape `(n, n)`): Between each two of them.
    """

    lines: list[str]
    cosines: np.ndarray


def compare_sentences(model: Any, text: object) -> SimilarityTable:
    """Compute the cosines between the embeddings of the lines of a text; empty lines are skipped."""
    given = checked_text(text, what="The list of lines")
    lines = [line.strip() for line in given.splitlines() if line.strip()]
    if not 2 <= len(lines) <= LIMITS.lines:
        raise ValueError(f"There are {len(lines)} lines of text; write 2 to {LIMITS.lines}, one text in each.")
    vectors = model.encode(lines, normalize_embeddings=True)
    return SimilarityTable(lines, vectors @ vectors.T)


def render_similarities(similarities: SimilarityTable) -> str:
    """Render each line with its nearest neighbor, then a table of all cosines."""
    items = ""
    for number, line in enumerate(similarities.lines):
        others = similarities.cosines[number].copy()
        others[number] = -np.inf
        nearest = int(others.argmax())
        items += (
            f"<li>{html.escape(line)}<br><span class='note'>nearest: line {nearest + 1}, "
            f"“{html.escape(similarities.lines[nearest])}” ({others[nearest]:.2f})</span></li>"
        )
    # Shades cover the range of cosines between different texts.
    apart = similarities.cosines[~np.eye(len(similarities.cosines), dtype=bool)]
    minimum, maximum = float(apart.min()), float(apart.max())
    numbers = [str(number) for number in range(1, len(similarities.lines) + 1)]
    table = render_heatmap(
        similarities.cosines.tolist(),
        caption=f"Cosine between lines; shades run from {minimum:.2f} to {maximum:.2f}",
        rows=[f"{number} {_shortened(line)}" for number, line in zip(numbers, similarities.lines, strict=True)],
        columns=numbers,
        corner="line",
        minimum=minimum,
        maximum=maximum,
    )
    return f"<h2>Nearest neighbors</h2><ol>{items}</ol><h2>Similarity</h2>{table}"


def _shortened(line: str, length: int = 24) -> str:
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
