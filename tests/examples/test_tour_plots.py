"""The tour's pictures show the numbers that they were given."""

import io

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch

from examples.tour.pictures import (
    CONTEXT_COLOR,
    MASKED_COLOR,
    SPAN_COLOR,
    draw_answers,
    draw_attention,
    draw_grids,
    draw_objectives,
    draw_tokens,
    probability_colors,
)


def boxes_of(figure):
    (axes,) = figure.axes
    return [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]


def test_a_mask_is_drawn_in_the_colour_of_what_is_seen() -> None:
    allowed = torch.tensor([[1, 0], [1, 1]]).bool()
    figure = draw_attention({"causal": (allowed, [1, 1]), "infill": (allowed, [0, 1])}, ["a", "b"])
    causal, infill = (axes.images[0].get_array() for axes in figure.axes)
    white, context, span = (1, 1, 1), to_rgb(CONTEXT_COLOR), to_rgb(SPAN_COLOR)
    np.testing.assert_allclose(causal, [[span, white], [span, span]])
    np.testing.assert_allclose(infill, [[context, white], [context, span]])
    assert [axes.get_title() for axes in figure.axes] == ["causal", "infill"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_tokens_stand_in_boxes_that_fit_their_line_and_do_not_overlap() -> None:
    tokens = [word * 3 for word in "one two three four five six seven".split()]
    figure = draw_tokens(tokens, colors=[MASKED_COLOR] * 7, notes=["", "a long note below", *[""] * 5], columns=40)
    boxes = boxes_of(figure)
    lines: dict[float, list[FancyBboxPatch]] = {}
    for box in boxes:
        assert to_rgb(box.get_facecolor()[:3]) == to_rgb(MASKED_COLOR)
        lines.setdefault(box.get_y(), []).append(box)
    assert len(boxes) == 7 and len(lines) > 1
    for line in lines.values():
        ends = [box.get_x() + box.get_width() for box in line]
        assert all(end < box.get_x() for end, box in zip(ends, line[1:], strict=False)) and ends[-1] <= 40
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written[::2] == tokens and written[3] == "a long note below"


def test_a_likelier_token_is_greener_and_a_given_one_grey() -> None:
    low, high, given = (to_rgb(color) for color in probability_colors([0.01, 0.99, None]))
    assert low[0] > low[1] and high[1] > high[0]
    assert len(set(given)) == 1


def test_bars_are_as_high_as_the_answers_are_probable() -> None:
    bars = {"left": {"kite": 0.25, "boat": 0.75}, "both": {"kite": 1.0, "boat": 0.0}}
    figure = draw_answers(bars, truth="kite")
    (axes,) = figure.axes
    assert [[bar.get_height() for bar in group] for group in axes.containers] == [[0.25, 0.75], [1.0, 0.0]]
    weights = {label.get_text(): label.get_fontweight() for label in axes.get_xticklabels()}
    assert weights == {"kite": "bold", "boat": "normal"}
    assert axes.lines[0].get_ydata()[0] == 0.5  # the guess
    assert len({group[0].get_facecolor() for group in axes.containers}) == 2


@pytest.mark.parametrize("number", [1, 3])
def test_grids_share_one_scale(number) -> None:
    grids = {f"grid {index}": torch.eye(2) * (index + 1) / 3 for index in range(number)}
    figure = draw_grids(grids, rows=["a", "b"], columns=["c", "d"], label="cosine")
    panels = figure.axes[:number]
    assert {axes.images[0].get_clim() for axes in panels} == {(0.0, 1.0)}
    assert [axes.get_title() for axes in panels] == list(grids)
    figure.savefig(io.BytesIO(), format="png")


def test_each_objective_has_a_panel_with_its_training_and_its_evaluations(tmp_path) -> None:
    log = [
        {"step": 0, "eval_loss_mntp": 9.0},
        {"step": 2, "loss_mntp": 5.0},
        {"step": 4, "loss_mntp": 4.0, "loss_sscl": 2.0, "eval_loss_mntp": 4.5},
    ]
    pictures = {}
    for name, part in {"whole": log, "again": log, "without a step": log[:2], "other": [*log, {"step": 9}]}.items():
        pictures[name] = draw_objectives(tmp_path / f"{name}.png", part).read_bytes()
    assert pictures["whole"] == pictures["again"]
    assert len(set(pictures.values())) == 3
    # 4.5 inches of 120 dots for each objective that the log has.
    widths = {name: int.from_bytes(picture[16:20]) for name, picture in pictures.items()}
    assert (widths["whole"], widths["without a step"]) == (1080, 540)
    assert b"Software" not in pictures["whole"] and b"atplotlib" not in pictures["whole"]
    assert draw_objectives(tmp_path / "none.png", [{"step": 1, "train_runtime": 3.0}]) is None
    assert {file.stem for file in tmp_path.iterdir()} == set(pictures)
