"""Draw bars and curves as SVG elements that take their colors and their font from the page around them."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.evaluate.reporting.blocks import clean
from examples.evaluate.reporting.cells import Value
from examples.evaluate.reporting.names import short_name, show

# Legible on a phone without scaling.
WIDTH = 340
LABELS, VALUES = 130, 42
STYLE = Path(__file__).with_name("chart.css").read_text(encoding="utf-8")
# The systems that have a color of their own in all charts.
COLORS = {"MAGNET": 1, "MAGNET, infill": 1, "LLM2Vec recipe": 2, "base": 0}
OTHER_COLORS, DASHES = (3, 4, 5), ("none", "5 3", "2 2")


@dataclass(frozen=True)
class Group:
    """Bars of one measure by row; `level` is the figure of the base, and what exceeds `most` is cut."""

    title: str
    bars: Mapping[str, Value]
    level: tuple[str, float] | None = None
    digits: int = 3
    most: float = math.inf


def draw_bars(groups: Sequence[Group], *, caption: str, is_shared: bool = False) -> str:
    """Draw groups of bars, with a dot for each training and a dashed line for the base.

    Bars begin at zero. Each group has its own scale, or all share one.
    """
    groups = [group for group in groups if group.bars]
    tops = [
        min(
            group.most,
            max(group.level[1] if group.level else 0.0, *(max(v.mean, *v.runs) for v in group.bars.values())),
        )
        for group in groups
    ]
    parts, y = [], 0.0
    for group, top in zip(groups, tops, strict=True):
        scale = (WIDTH - LABELS - VALUES) / ((max(tops) if is_shared else top) or 1.0)
        parts.append(_text(0, y + 12, group.title, "head"))
        if group.level:
            name, height = group.level
            x = LABELS + height * scale
            parts.append(_text(WIDTH, y + 12, f"{short_name(name)} {show(height, group.digits)} ┆", anchor="end"))
            parts.append(f'<path class="level" d="M{x:.1f} {y + 16:.1f}V{y + 19 + 16 * len(group.bars):.1f}"/>')
        for number, (row, value) in enumerate(group.bars.items()):
            parts += _bar(row, value, y + 18 + 16 * number, scale, group.digits)
        y += 28 + 16 * len(group.bars)
    return _svg(parts, y - 6, caption)


def draw_curves(
    title: str, curves: Mapping[str, Mapping[int, Value]], *, level: tuple[str, float] | None, caption: str
) -> str:
    """Draw curves with a legend below them and a dashed line for the base."""
    height, left = 170.0, 44.0
    points = [(step, value.mean) for curve in curves.values() for step, value in curve.items()]
    means = [mean for _, mean in points] + ([level[1]] if level else [])
    ticks = _ticks(min(means), max(means))
    low, high, last = min(ticks[0], *means), max(ticks[-1], *means), max(step for step, _ in points) or 1

    def place(step: float, mean: float) -> tuple[float, float]:
        return left + (WIDTH - left - 14) * step / last, 24 + (height - 46) * (high - mean) / ((high - low) or 1)

    parts = [_text(0, 12, title, "head")]
    for tick in ticks:
        y = place(0, tick)[1]
        parts += [_text(left - 5, y + 4, f"{tick:g}", anchor="end")]
        parts += [f'<path class="axis" d="M{left:g} {y:.1f}H{WIDTH - 10}"/>']
    for tick in _ticks(0, last):
        parts.append(_text(place(tick, 0)[0], height - 6, f"{tick:g}", anchor="middle"))
    legend = []
    if level:
        y = place(0, level[1])[1]
        parts.append(f'<path class="level" d="M{left:g} {y:.1f}H{WIDTH - 10}"/>')
        legend.append((level[0], 'class="level"'))
    others = [row for row in curves if row not in COLORS]
    for row, curve in curves.items():
        number = others.index(row) if row in others else 0
        color = COLORS.get(row, OTHER_COLORS[number % 3])
        look = f'class="s{color}" stroke-width="1.8" stroke-dasharray="{DASHES[number // 3 % 3]}"'
        places = [place(step, value.mean) for step, value in curve.items()]
        parts.append(f'<polyline {look} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        parts += [f'<circle class="f{color}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in places]
        legend.append((row, look))
    for number, (row, look) in enumerate(legend):
        x, y = 8 + number % 2 * WIDTH / 2, height + 10 + 15 * (number // 2)
        parts += [f'<path {look} d="M{x:g} {y - 4:g}h18"/>', _text(x + 24, y, short_name(row))]
    return _svg(parts, height + 18 + 15 * ((len(legend) - 1) // 2), caption)


def as_file(svg: str) -> bytes:
    """Make an SVG file of an element, on white."""
    own = f'<svg xmlns="http://www.w3.org/2000/svg" color="#1f2328" width="{1.4 * WIDTH:g}" '
    start, inner = svg.replace("<svg ", own, 1).split(">", 1)
    return f'{start}><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{inner}\n'.encode()


def _bar(row: str, value: Value, y: float, scale: float, digits: int) -> list[str]:
    """Draw the label, the bar, the dots and the figure of a row."""
    end = WIDTH - VALUES
    color = COLORS.get(row.split(", ")[0], OTHER_COLORS[0])
    length = max(0.0, min(value.mean * scale, end - LABELS))
    opacity = "" if row in COLORS or color == OTHER_COLORS[0] else ' opacity="0.6"'
    parts = [
        _text(LABELS - 5, y + 10, short_name(row), anchor="end"),
        f'<rect class="f{color}" x="{LABELS}" y="{y + 1:.1f}" width="{length:.1f}" height="11"{opacity}/>',
    ]
    places = [LABELS + run * scale for run in value.runs] if value.is_trained else []
    parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y + 6.5:.1f}" r="2.4"/>' for x in places if LABELS <= x <= end]
    is_cut = value.mean * scale > end - LABELS + 0.01
    right = max([LABELS + length, *(x for x in places if x <= end)]) + 5
    return [*parts, _text(right, y + 10, ("» " if is_cut else "") + show(value.mean, digits))]


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers within a range.

    Example:
        >>> _ticks(0, 900), _ticks(0.41, 0.48)
        ([0, 200, 400, 600, 800], [0.42, 0.44, 0.46, 0.48])
    """
    width = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(width / 3))
    step = next(power * factor for factor in (1, 2, 5, 10) if width / (power * factor) <= 5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 9) for number in range(first, last + 1)] or [low]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    """Draw a text."""
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}"{anchor}>{html.escape(clean(text))}</text>'


def _svg(parts: Sequence[str], height: float, caption: str) -> str:
    """Join the parts of a chart."""
    view, label = f"0 0 {WIDTH} {height:g}", html.escape(clean(caption))
    return f'<svg class="chart" viewBox="{view}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
