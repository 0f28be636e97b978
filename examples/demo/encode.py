"""The tab Encode: the similarity of lines, as sentences or word by word."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from examples.demo.limits import LIMITS, Limits, checked_text
from examples.demo.tables import render_heatmap

# Words of a table that can still be read.
TABLE_WORDS = 24
NEAREST = 3


class Word(NamedTuple):
    """A word where it is used."""

    line: int
    start: int
    end: int


@dataclass(frozen=True)
class Likeness:
    """Lines, their words if these were compared, and the cosines.

    Args:
        cosines (`np.ndarray` of shape `(n, n)`): Between lines, or between words.
    """

    lines: list[str]
    cosines: np.ndarray
    words: list[Word] | None = None

    def text_of(self, word: Word) -> str:
        """Return a word as it is written."""
        return self.lines[word.line][word.start : word.end]


def split_lines(text: object, *, limits: Limits = LIMITS) -> list[str]:
    """Return the lines of a text, without empty ones."""
    given = checked_text(text, what="The list of lines", limits=limits)
    lines = [line.strip() for line in given.splitlines() if line.strip()]
    if not 2 <= len(lines) <= limits.lines:
        raise ValueError(f"There are {len(lines)} lines of text; write 2 to {limits.lines}, one text in each.")
    return lines


def compare_sentences(model: Any, text: object, *, limits: Limits = LIMITS) -> Likeness:
    """Return the cosines between the embeddings of lines."""
    lines = split_lines(text, limits=limits)
    vectors = model.encode(lines, normalize_embeddings=True)
    return Likeness(lines, vectors @ vectors.T)


def compare_words(model: Any, text: object, *, limits: Limits = LIMITS) -> Likeness:
    """Return the cosines between all words of all lines."""
    lines = split_lines(text, limits=limits)
    count = sum(len(line.split()) for line in lines)
    if count > limits.words:
        raise ValueError(f"The lines have {count} words; this page compares {limits.words} at most. Shorten them.")
    placed = model.encode_words(lines)
    words = [
        Word(number, int(start), int(end)) for number, one in enumerate(placed) for start, end in one.offsets.tolist()
    ]
    vectors = np.concatenate([one.vectors for one in placed])
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return Likeness(lines, vectors @ vectors.T, words)


def nearest_words(likeness: Likeness, index: int, *, number: int = NEAREST) -> list[int]:
    """Return the words of other lines that are most like one, the most like first."""
    words = likeness.words or []
    others = [other for other, word in enumerate(words) if word.line != words[index].line]
    return sorted(others, key=lambda other: -likeness.cosines[index, other])[:number]


def render_likeness(likeness: Likeness) -> str:
    """Return the neighbours first, the numbers below."""
    return _render_lines(likeness) if likeness.words is None else _render_words(likeness)


def _render_lines(likeness: Likeness) -> str:
    """Return each line with its nearest neighbour, then all cosines."""
    items = ""
    for number, line in enumerate(likeness.lines):
        others = likeness.cosines[number].copy()
        others[number] = -np.inf
        nearest = int(others.argmax())
        items += (
            f"<li>{html.escape(line)}<br><span class='note'>nearest: line {nearest + 1}, "
            f"“{html.escape(likeness.lines[nearest])}” ({others[nearest]:.2f})</span></li>"
        )
    numbers = [str(number) for number in range(1, len(likeness.lines) + 1)]
    rows = [f"{number} {_shortened(line)}" for number, line in zip(numbers, likeness.lines, strict=True)]
    return f"<h2>Nearest neighbours</h2><ol>{items}</ol>" + _table(likeness, rows=rows, columns=numbers, of="lines")


def _render_words(likeness: Likeness) -> str:
    """Return every word as a button that tells its nearest usages; `page.js` shows them."""
    words = likeness.words or []
    lines = ["" for _ in likeness.lines]
    ends = [0 for _ in likeness.lines]
    for index, word in enumerate(words):
        near = nearest_words(likeness, index)
        told = "; ".join(
            f"“{likeness.text_of(words[other])}” in line {words[other].line + 1} "
            f"({likeness.cosines[index, other]:.2f})"
            for other in near
        )
        line = likeness.lines[word.line]
        lines[word.line] += html.escape(line[ends[word.line] : word.start]) + (
            f'<button type="button" class="word" data-word="{index}" data-near="{" ".join(map(str, near))}" '
            f'data-told="{html.escape(told, quote=True)}">{html.escape(likeness.text_of(word))}</button>'
        )
        ends[word.line] = word.end
    items = "".join(
        f"<li>{shown}{html.escape(line[end:])}</li>"
        for shown, line, end in zip(lines, likeness.lines, ends, strict=True)
    )
    if len(words) <= TABLE_WORDS:
        names = [likeness.text_of(word) for word in words]
        rows = [f"{word.line + 1} {name}" for word, name in zip(words, names, strict=True)]
        table = _table(likeness, rows=rows, columns=names, of="words")
    else:
        table = f'<p class="note">The table of all cosines is shown for {TABLE_WORDS} words at most.</p>'
    return (
        "<h2>Nearest usages</h2><p class='note'>Point at a word, or move to it with Tab, to see the words of other "
        "lines that are most like it, and their cosines.</p>"
        f'<ol class="usages">{items}</ol><p class="near" role="status">No word is chosen.</p>{table}'
    )


def _table(likeness: Likeness, *, rows: list[str], columns: list[str], of: str) -> str:
    """Render all cosines, shaded over the range that different texts have."""
    apart = likeness.cosines[~np.eye(len(likeness.cosines), dtype=bool)]
    least, most = float(apart.min()), float(apart.max())
    return "<h2>Similarity</h2>" + render_heatmap(
        likeness.cosines.tolist(),
        caption=f"Cosine between {of}; shades run from {least:.2f} to {most:.2f}",
        rows=rows,
        columns=columns,
        corner=of.removesuffix("s"),
        least=least,
        most=most,
    )


def _shortened(line: str, length: int = 24) -> str:
    """Return the beginning of a line."""
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


__all__ = ["compare_sentences", "compare_words", "nearest_words", "render_likeness"]
