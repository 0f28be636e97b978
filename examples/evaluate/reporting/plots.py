"""The figures of the report, as SVG: bars of tables, and curves over training steps with error bars over replicas."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError:  # the scripts say what to install; their `--help` works without it
    pass
from typing import Any

from examples.evaluate.reporting.cells import Cells, Value
from examples.evaluate.reporting.tables import MEASURED, Row, Table

# The same bytes from the same records, and no formulas in names.
STYLE: Any = {"svg.hashsalt": "magnet", "text.parse_math": False, "font.size": 9}
# A system has one colour in all figures; how it was read or trained besides is told by the line. Okabe and Ito's
# colours, told apart with any kind of sight, and for the last two Tol's; yellow is too light for lines.
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
MARKERS = "xos^vDPX*"
PEER_COLOR = "0.45"
STYLES = {"": "-", "infill": "-", "left": ":", "mixture": "-.", "causal": ":"}
QUOTED_COLOR = "0.8"


def look_of(name: str) -> tuple[str, str, str]:
    """Return colour, line and marker of a row."""
    system, _, rest = name.partition(", ")
    marker = MARKERS[list(COLORS).index(system)] if system in COLORS else "."
    return COLORS.get(system, PEER_COLOR), STYLES.get(rest, "--"), marker


def short(name: str) -> str:
    """Return a name as a figure has room for it."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name if len(name) <= 32 else f"{name[:31]}…"


BAR_COLUMNS = 4


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    name: str
    caption: str
    alternative: str
    svg: bytes


@dataclass(frozen=True)
class Panel:
    """One pair of axes of curves."""

    title: str
    label: str
    curves: Mapping[str, Mapping[int, Value]]
    level: tuple[str, float] | None = None


def draw_bars(table: Table) -> Picture | None:
    """Return one panel for each column, one bar for each row; the paper's bars are grey and hatched."""
    measured = [row for row in table.rows if row.origin == MEASURED]
    columns = [column for column in table.columns if any(column in row.values for row in measured)]
    quoted = {column for row in table.rows if row.origin != MEASURED for column in row.values}
    columns = [column for column in columns if column in quoted]
    if not columns:
        return None
    rows = [row for row in table.rows if any(column in row.values for column in columns)]
    down = -(-len(columns) // BAR_COLUMNS)
    across = -(-len(columns) // down)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 + 2.4 * across, down * (1.0 + 0.26 * len(rows))))
        panels = figure.subplots(down, across, squeeze=False, sharey=True)
        for axes, column in zip(panels.flat, columns, strict=False):
            _draw_bars(axes, rows, [row.values.get(column) for row in rows], digits=table.digits)
            axes.set_title(column.title)
        for axes in list(panels.flat)[len(columns) :]:
            axes.set_visible(False)
        figure.supxlabel(table.unit, fontsize=9)
        svg = _save(figure)
    direction = "higher is better" if table.higher_is_better else "lower is better"
    caption = (
        f"{table.title}: {table.unit}, {direction}. In colour measured here; grey, hatched and with a star quoted."
    )
    return Picture(
        f"{table.name}_bars", caption, f"Bars of the table {table.title}; its figures are in the table.", svg
    )


def draw_curves(name: str, caption: str, panels: Sequence[Panel]) -> Picture | None:
    """Draw curves over training steps, named beside their ends."""
    panels = [panel for panel in panels if any(len(curve) > 1 for curve in panel.curves.values())]
    if not panels:
        return None
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.5 * across, 3.2 * down))
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        svg = _save(figure)
    systems = sorted({system for panel in panels for system in panel.curves})
    return Picture(name, caption, f"{caption} Curves of {', '.join(systems)}.", svg)


def draw_repetition(cells: Cells, base: str | None) -> Picture | None:
    """Draw Figures 5 and 6: repetition over training steps; the base as a level."""
    panels = []
    for metric in ("rep_sen", "rep_4", "rep_4_tokens"):
        for unit in cells.units("repetition"):
            start = cells.value("repetition", base, unit, metric) if base else None
            level = (str(base), start.mean) if start else None
            panels.append(
                Panel(f"{unit}, {metric}", "share repeated", _curves(cells, "repetition", unit, metric), level)
            )
    caption = (
        "Repetition in greedy open-ended generation over training steps (Figures 5 and 6); lower is better. rep_4 "
        "counts words, rep_4_tokens tokens: it also sees a word without end."
    )
    return draw_curves("repetition_steps", caption, panels)


def draw_infilling(cells: Cells, base: str | None) -> Picture | None:
    """Return the perplexity of what was removed over training steps; the base from the left as a level."""
    panels = []
    for unit in cells.units("infilling"):
        start = cells.value("infilling", base, unit, "perplexity") if base else None
        curves = _curves(cells, "infilling", unit, "perplexity")
        panels.append(Panel(unit, "perplexity per token removed", curves, (str(base), start.mean) if start else None))
    caption = "Infilling perplexity over training steps; lower is better."
    return draw_curves("infilling_steps", caption, panels)


def draw_objectives(cells: Cells) -> Picture | None:
    """Draw Figure 7: masked next-token prediction (MNTP) against masked token prediction (MTP) while training."""
    panels = []
    for metric in cells.metrics("curves", "training"):
        short = metric.removeprefix("eval_")
        label = {"masked_accuracy": "share of masked tokens found", "loss_mntp": "loss in nats"}.get(short)
        if label:
            every = _curves(cells, "curves", "training", metric)
            panels.append(Panel(short, label, {name: every[name] for name in ("MNTP", "MTP") if name in every}))
    return draw_curves("mntp_mtp_steps", "MNTP against MTP over training steps (Figure 7).", panels)


def _curves(cells: Cells, table: str, unit: str, metric: str) -> dict[str, dict[int, Value]]:
    """Return the curve of every system that has one."""
    found = {row: cells.curve(table, row, unit, metric) for row in cells.rows(table)}
    return {row: curve for row, curve in found.items() if len(curve) > 1}


def _draw_bars(axes: Axes, rows: Sequence[Row], values: Sequence[Value | float | None], *, digits: int) -> None:
    """Draw one column of a table, its first row on top."""
    for place, value in enumerate(values):
        if value is None:
            continue
        is_ours = isinstance(value, Value)
        number = value.mean if isinstance(value, Value) else value
        spread = value.spread if isinstance(value, Value) else None
        look = (
            {"color": look_of(rows[place].name)[0]}
            if is_ours
            else {"color": QUOTED_COLOR, "hatch": "///", "edgecolor": "0.5"}
        )
        axes.barh(place, number, xerr=spread, height=0.7, capsize=2, **look)  # type: ignore[arg-type]
        axes.annotate(
            f"{number:.{digits}f}",
            (number + (spread or 0), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(rows)), [short(row.name) + ("" if row.origin == MEASURED else " *") for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    """Draw the curves of one panel, with names at their ends that do not overlap."""
    ends = []
    for name, curve in panel.curves.items():
        steps = sorted(curve)
        color, line, marker = look_of(name)
        means, spreads = [curve[step].mean for step in steps], [curve[step].spread or 0.0 for step in steps]
        look = {"color": color, "linestyle": line, "marker": marker}
        axes.errorbar(steps, means, yerr=spreads, markersize=4, capsize=2, **look)  # type: ignore[arg-type]
        ends.append((means[-1], name, color))
    if panel.level is not None:
        name, height = panel.level
        color = look_of(name)[0]
        axes.axhline(height, color=color, linewidth=1, linestyle=(0, (1, 1)))
        ends.append((height, name, color))
    for place, (_, name, color) in zip(_apart(sorted(ends), axes.get_ylim()), sorted(ends), strict=True):
        axes.annotate(
            short(name),
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=color,
            annotation_clip=False,
        )
    axes.set_title(panel.title)
    axes.set_xlabel("training step")
    axes.set_ylabel(panel.label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _apart(ends: Sequence[tuple[float, str, str]], limits: tuple[float, float]) -> list[float]:
    """Return where names stand that would lie upon each other: as near to their ends as there is room in the panel."""
    low, high = limits
    gap = min((high - low) * 0.07, (high - low) / max(len(ends), 1))
    places: list[float] = []
    for height, _, _ in ends:
        places.append(max(height, places[-1] + gap) if places else height)
    top = high
    for index in reversed(range(len(places))):  # what was pushed out at the top pushes the others down
        places[index] = min(places[index], top)
        top = places[index] - gap
    return places


def _save(figure: Figure) -> bytes:
    """Save as SVG, without the time."""
    figure.set_layout_engine("constrained")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return buffer.getvalue()


__all__ = ["COLORS", "Picture", "draw_bars", "draw_infilling", "draw_objectives", "draw_repetition"]
