"""The figures of the report: one colour for a system everywhere, names that do not lie upon each other."""

import pytest
from matplotlib.figure import Figure

from examples.evaluate.reporting import plots
from examples.evaluate.reporting.cells import Cells, Value
from examples.evaluate.reporting.paper_values import read_paper_values
from examples.evaluate.reporting.plots import COLORS
from examples.evaluate.reporting.tables import build_table

from .report_records import STS, make_record

SYSTEMS = ["base, causal", "base, bidirectional", *list(COLORS)[1:], "MAGNET, mean", "MAGNET, mixture", "peer"]


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they are before they are files."""
    figures = []
    save = plots._save

    def keep(figure):
        figures.append(figure)
        return save(figure)

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def overlaps(figure: Figure, texts):
    """Pairs of texts whose boxes have a common area."""
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9))]


def test_bars_of_thirteen_systems_have_room_for_their_names_and_colours_of_their_own(drawn):
    records = [
        make_record("sts", system, unit, metrics={"spearman": 30.0 + number})
        for number, system in enumerate(SYSTEMS)
        for unit in STS
    ]
    assert len(SYSTEMS) == 13
    plots.draw_bars(build_table(Cells(records), "sts", read_paper_values().tables["sts"]))
    (figure,) = drawn
    names = figure.axes[0].get_yticklabels()
    assert len(names) == 13 + 7
    assert overlaps(figure, names) == []
    for axes in figure.axes[:8]:
        assert overlaps(figure, axes.texts) == []
    colors = {name.get_text(): bar.get_facecolor() for name, bar in zip(names, figure.axes[0].patches, strict=True)}
    assert colors["MAGNET"] == colors["MAGNET, mean"] != colors["MNTP"]
    assert len(set(colors.values())) == len(COLORS) + 2  # peers, and what is quoted


@pytest.mark.parametrize("heights", [[0.5] * 9, [0.0] * 9, [1.0] * 9, [0.0, 0.5, 1.0], [0.1 * n for n in range(9)]])
def test_names_of_curves_stand_apart_and_inside(drawn, heights):
    names = list(COLORS)
    curves = {
        name: {step: Value(height * step / 2, None, 1, (0.0,)) for step in (1, 2)}
        for name, height in zip(names, heights, strict=False)
    }
    plots.draw_curves("x", "Curves.", [plots.Panel("t", "y", curves, ("base, left", 0.3))])
    (figure,) = drawn
    (axes,) = figure.axes
    assert len(axes.texts) == len(curves) + 1
    assert overlaps(figure, axes.texts) == []
    low, high = axes.get_ylim()
    assert all(low <= text.xy[1] <= high for text in axes.texts)
    colors = {text.get_text(): text.get_color() for text in axes.texts}
    assert all(colors[name] == COLORS[name] for name in curves)
    assert colors["base, left"] == COLORS["base"]
