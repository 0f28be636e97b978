"""Draw the figures of the page as SVG: bars of tables, and curves over training steps with error bars."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError:  # the scripts report the missing extra; their `--help` works without it
    pass

from examples.evaluate.reporting.blocks import Picture
from examples.evaluate.reporting.cells import Cells, Value
from examples.evaluate.reporting.tables import MEASURED, Row, Table

# The salt makes the bytes reproducible; a dollar sign in a name is not a formula.
STYLE: Any = {"svg.hashsalt": "magnet", "text.parse_math": False, "font.size": 9}
# A system has the same color in all figures; the line style shows its reading. These are Okabe and Ito's colors, which
# suit any color vision, without yellow, which is too light for lines; the last two are from Tol's palette.
COLORS = {
    "base": "#000000",
    "MAGNET": "#0072b2",
    "LLM2Vec recipe": "#d55e00",
    "MNTP": "#009e73",
    "MTP": "#cc79a7",
    "SSCL": "#56b4e9",
    "MNTP + MSG": "#e69f00",
    "SSCL + MSG": "#882255",
    "Echo": "#999933",
}
OTHER_COLOR, QUOTED_COLOR = "0.45", "0.8"
LINES = {"": "-", "infill": "-", "left": ":", "causal": ":"}
BAR_COLUMNS = 4


@dataclass(frozen=True)
class Panel:
    """One pair of axes of curves; `level` is the figure of the untrained base."""

    title: str
    label: str
    curves: Mapping[str, Mapping[int, Value]]
    level: tuple[str, float] | None = None


def draw_bars(table: Table) -> Picture | None:
    """Draw a panel for each column with figures of ours and of the paper, one bar per row."""
    assert table.paper is not None
    measured, quoted = (
        {column for row in table.rows if (row.origin == MEASURED) is is_ours for column in row.values}
        for is_ours in (True, False)
    )
    columns = [column for column in table.columns if column in measured & quoted]
    if not columns:
        return None
    rows = [row for row in table.rows if any(column in row.values for column in columns)]
    down = -(-len(columns) // BAR_COLUMNS)
    across = -(-len(columns) // down)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 + 2.4 * across, down * (1.0 + 0.26 * len(rows))))
        panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
        for axes, column in zip(panels, columns, strict=False):
            _draw_bars(axes, rows, [row.values.get(column) for row in rows], digits=table.digits)
            axes.set_title(column.title)
        for axes in panels[len(columns) :]:
            axes.set_visible(False)
        figure.supxlabel(table.paper.unit, fontsize=9)
        svg = _save(figure)
    direction = "higher is better" if table.paper.higher_is_better else "lower is better"
    caption = f"{table.title}: {table.paper.unit}, {direction}. In color measured here; gray and with a star quoted."
    return Picture(f"{table.name}_bars", caption, svg)


def draw_curves(name: str, caption: str, panels: Sequence[Panel]) -> Picture | None:
    """Draw curves over training steps, with one legend for all panels."""
    panels = [panel for panel in panels if panel.curves]
    if not panels:
        return None
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 + 4.5 * across, 3.2 * down), layout="constrained")
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        handles = {
            label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside right upper")
        svg = _save(figure)
    return Picture(name, caption, svg)


def draw_repetition(cells: Cells, base: str | None) -> Picture | None:
    """Draw Figures 5 and 6: repetition over training steps."""
    panels = [
        _panel(cells, "repetition", unit, metric, base, title=f"{unit}, {metric}", label="share repeated")
        for metric in ("rep_sen", "rep_4", "rep_4_tokens")
        for unit in cells.units("repetition")
    ]
    caption = (
        "Repetition in greedy open-ended generation over training steps (Figures 5 and 6); lower is better. rep_4 "
        "counts words, rep_4_tokens tokens: it also sees a word without end."
    )
    return draw_curves("repetition_steps", caption, panels)


def draw_infilling(cells: Cells, base: str | None) -> Picture | None:
    """Draw the perplexity of the removed tokens over training steps."""
    panels = [
        _panel(cells, "infilling", unit, "perplexity", base, title=unit, label="perplexity per token removed")
        for unit in cells.units("infilling")
    ]
    return draw_curves("infilling_steps", "Infilling perplexity over training steps; lower is better.", panels)


def draw_objectives(cells: Cells) -> Picture | None:
    """Draw Figure 7: masked next-token prediction (MNTP) against masked token prediction (MTP) in training."""
    panels = []
    for metric, label in (("loss_mntp", "loss in nats"), ("masked_accuracy", "share of masked tokens found")):
        panel = _panel(cells, "curves", "training", metric, None, title=metric, label=label)
        curves = {name: curve for name, curve in panel.curves.items() if name in ("MNTP", "MTP")}
        panels.append(Panel(metric, label, curves))
    return draw_curves("mntp_mtp_steps", "MNTP against MTP over training steps (Figure 7).", panels)


def _panel(cells: Cells, table: str, unit: str, metric: str, base: str | None, *, title: str, label: str) -> Panel:
    """Collect the curves of all systems that have one, and the level of the base."""
    all_curves = {row: cells.curve(table, row, unit, metric) for row in cells.rows(table)}
    level = cells.value(table, base, unit, metric) if base else None
    curves = {row: curve for row, curve in all_curves.items() if len(curve) > 1}
    return Panel(title, label, curves, (str(base), level.mean) if level else None)


def _draw_bars(axes: Axes, rows: Sequence[Row], values: Sequence[Value | float | None], *, digits: int) -> None:
    """Draw one column of a table, with its first row on top."""
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        if value is None:
            continue
        if isinstance(value, Value):
            number, spread, color = value.mean, value.spread, _look_of(row.name)[0]
        else:
            number, spread, color = value, None, QUOTED_COLOR
        axes.barh(place, number, xerr=spread, height=0.7, capsize=2, color=color)
        end = (number + (spread or 0), place)
        axes.annotate(f"{number:.{digits}f}", end, (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [_short(row.name) + ("" if row.origin == MEASURED else " *") for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    """Draw the curves of one panel."""
    for name, curve in panel.curves.items():
        color, line = _look_of(name)
        means, spreads = [value.mean for value in curve.values()], [value.spread or 0.0 for value in curve.values()]
        look: Any = {"color": color, "linestyle": line, "marker": ".", "capsize": 2}
        axes.errorbar(list(curve), means, yerr=spreads, label=_short(name), **look)
    if panel.level is not None:
        name, height = panel.level
        axes.axhline(height, color=_look_of(name)[0], linewidth=1, linestyle="--", label=_short(name))
    axes.set_title(panel.title)
    axes.set_xlabel("training step")
    axes.set_ylabel(panel.label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _look_of(name: str) -> tuple[str, str]:
    """Return color and line style of a row."""
    system, _, reading = name.partition(", ")
    return COLORS.get(system, OTHER_COLOR), LINES.get(reading, "--")


def _short(name: str) -> str:
    """Shorten a name for a figure and remove characters that fonts lack."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name if len(name) <= 32 else f"{name[:31]}…"


def _save(figure: Figure) -> bytes:
    """Save as SVG without the time."""
    figure.set_layout_engine("constrained")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return buffer.getvalue()
