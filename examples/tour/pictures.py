"""Plot masks, training curves, tokens, answers and similarities for the tour, `quickstart.py` and `adapt.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from trainer.files import atomic_write

CONTEXT_COLOR, SPAN_COLOR = "#4477aa", "#ee7733"
MASKED_COLOR, PLAIN_COLOR = "#ccbb44", "#eeeeee"
TEXT: dict[str, Any] = {"family": "DejaVu Sans Mono", "size": 9}
DPI = 80
OBJECTIVES = {
    "loss_mntp": "masked next token (MNTP)",
    "loss_msg": "missing span (MSG)",
    "loss_sscl": "contrastive (SSCL)",
}
# Size of the page: characters per line, and inches per character and line.
COLUMNS, CHARACTER, LINE = 100, 0.095, 0.5


def draw_attention(panels: Mapping[str, tuple[Any, Sequence[int]]], tokens: Sequence[str]) -> Figure:
    """Draw which tokens attend to which: a panel per mode, in the color of the attended token.

    Args:
        panels (`Mapping[str, tuple]`): Title -> what may be seen, of shape `(S, S)`, row sees column; and the segment
            of each token, 0 for context.
    """
    figure = Figure(figsize=(4.2 * len(panels), 4.6), dpi=DPI, layout="constrained")
    for axes, (title, (allowed, segments)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        colors = np.array([to_rgb(SPAN_COLOR if segment else CONTEXT_COLOR) for segment in segments])
        image = np.where(np.asarray(allowed)[..., None], colors[None], 1.0)  # (S, S, 3)
        axes.imshow(image)
        _name_ticks(axes, tokens, tokens)
        axes.set_xticks(np.arange(len(tokens) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(tokens) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="0.85", linewidth=0.6)
        axes.tick_params(which="both", length=0)
        axes.set_title(title, fontsize=10)
    return figure


def draw_objectives(path: Path, log_history: Sequence[Mapping[str, Any]]) -> Path | None:
    """Draw each objective of a training log in its own panel: in training, and on held-out texts or pairs.

    Returns:
        `Path` or `None`: the PNG file; `None` if the log has no objective.
    """
    panels = {}
    for key, title in OBJECTIVES.items():
        curves = {"training": _curve(log_history, key), "held out": _curve(log_history, f"eval_{key}")}
        if any(steps for steps, _ in curves.values()):
            panels[title] = curves
    if not panels:
        return None
    width = 4.5 * len(panels)
    figure = Figure(figsize=(width, 4))
    # Faster than `tight_layout`, which draws everything once more to measure it.
    figure.subplots_adjust(left=0.7 / width, right=1 - 0.15 / width, bottom=0.12, top=0.92, wspace=0.22)
    last = max(1, *(int(row.get("step", 0)) for row in log_history))
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for (kind, (steps, values)), color in zip(curves.items(), (CONTEXT_COLOR, SPAN_COLOR), strict=True):
            if steps:
                axes.plot(steps, values, label=kind, color=color, marker="o", markersize=3)
        axes.set(title=title, xlabel="step", ylabel="loss in nats", xlim=(0, last))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=120, format="png", metadata={"Software": None})
    return path


def _curve(log_history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of one logged quantity."""
    points = [(int(row["step"]), float(row[key])) for row in log_history if key in row]
    return [step for step, _ in points], [value for _, value in points]


def draw_tokens(
    tokens: Sequence[str], *, colors: Sequence[Any], notes: Sequence[str] = (), columns: int = COLUMNS
) -> Figure:
    """Draw tokens in boxes, line by line, with a note below those that have one."""
    notes = list(notes) or [""] * len(tokens)
    widths = [max(len(token), len(note)) + 1.6 for token, note in zip(tokens, notes, strict=True)]
    places, line, start = [], 0, 0.0
    for width in widths:
        if start + width > columns:
            line, start = line + 1, 0.0
        places.append((start, line))
        start += width
    step = 1.75 if any(notes) else 1.0  # a line of boxes, followed by a line of notes if there are any
    figure = Figure(figsize=(columns * CHARACTER, (line + 1) * step * LINE * 0.8), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, columns)
    axes.set_ylim((line + 1) * step, 0)
    for token, note, color, width, (left, row) in zip(tokens, notes, colors, widths, places, strict=True):
        top, middle = row * step, left + width / 2
        box = FancyBboxPatch((left + 0.25, top + 0.15), width - 0.5, 0.7, boxstyle="round,pad=0,rounding_size=0.2")
        box.set(facecolor=color, edgecolor="none")
        axes.add_patch(box)
        axes.text(middle, top + 0.5, token, ha="center", va="center_baseline", **TEXT)
        axes.text(middle, top + 1.15, note, ha="center", va="center_baseline", color="0.35", **TEXT)
    return figure


def role_colors(segments: Sequence[int], masked: Sequence[bool]) -> list[str]:
    """Return the color of each token of a training row: span, masked, or plain context.

    Example:
        >>> role_colors([0, 0, 1], [False, True, False]) == [PLAIN_COLOR, MASKED_COLOR, SPAN_COLOR]
        True
    """
    return [
        SPAN_COLOR if segment else MASKED_COLOR if hidden else PLAIN_COLOR
        for segment, hidden in zip(segments, masked, strict=True)
    ]


def probability_colors(probabilities: Sequence[float | None]) -> list[Any]:
    """Return colors from red (impossible) to green (certain); gray for given tokens.

    Example:
        >>> given, sure = probability_colors([None, 1.0])
        >>> given == PLAIN_COLOR, sure == colormaps["RdYlGn"](0.9)
        (True, True)
    """
    # The ends of the map are too dark for black letters.
    return [PLAIN_COLOR if share is None else colormaps["RdYlGn"](0.1 + 0.8 * share) for share in probabilities]


def draw_answers(
    bars: Mapping[str, Mapping[str, float]], *, title: str = "", truth: str | None = None, chance: bool = True
) -> Figure:
    """Draw the probabilities of the answers side by side, grouped by model."""
    figure = Figure(figsize=(9.5, 2.9), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    answers = list(next(iter(bars.values())))
    width = 0.8 / len(bars)
    for index, (name, shares) in enumerate(bars.items()):
        color = ("0.6", CONTEXT_COLOR, SPAN_COLOR)[(index + 3 - len(bars)) % 3]
        left = np.arange(len(answers)) + (index - (len(bars) - 1) / 2) * width
        axes.bar(left, [shares[answer] for answer in answers], width, label=name, color=color)
    if chance:
        axes.axhline(1 / len(answers), color="0.3", linestyle=":", linewidth=1, label="a guess")
    _name_ticks(axes, answers, None)
    for label in axes.get_xticklabels():
        label.set_fontweight("bold" if label.get_text() == truth else "normal")
    axes.set_ylim(0, 1)
    axes.set_ylabel("probability")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_grids(
    grids: Mapping[str, Any], *, rows: Sequence[str], columns: Sequence[str], label: str, low: float = 0.0
) -> Figure:
    """Draw numbers as colors, a panel per grid, on one scale.

    Args:
        grids (`Mapping[str, array]`): Title -> numbers up to 1, of shape `(len(rows), len(columns))`.
    """
    figure = Figure(figsize=(4.6 * len(grids) + 2.2, 4.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(panels, grids.items(), strict=True):
        image = axes.imshow(np.asarray(values), cmap="Blues", vmin=low, vmax=1)
        _name_ticks(axes, columns, rows)
        axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=list(panels), label=label, shrink=0.8)
    return figure


def _name_ticks(axes: Axes, columns: Sequence[str], rows: Sequence[str] | None) -> None:
    """Label the axes; tilt the lower labels to make room for long names."""
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    if rows is not None:
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
