"""Test that the tour's pictures show the given numbers."""

import numpy as np
import torch
from matplotlib.colors import to_rgb

from examples.tour.pictures import CONTEXT_COLOR, SPAN_COLOR, draw_attention, draw_objectives


def test_mask_is_drawn_in_the_color_of_the_visible_token() -> None:
    allowed = torch.tensor([[1, 0], [1, 1]]).bool()
    figure = draw_attention({"causal": (allowed, [1, 1]), "infill": (allowed, [0, 1])}, ["a", "b"])
    causal, infill = (axes.images[0].get_array() for axes in figure.axes)
    white, context, span = (1, 1, 1), to_rgb(CONTEXT_COLOR), to_rgb(SPAN_COLOR)
    np.testing.assert_allclose(causal, [[span, white], [span, span]])
    np.testing.assert_allclose(infill, [[context, white], [context, span]])
    assert [axes.get_title() for axes in figure.axes] == ["causal", "infill"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_each_objective_has_a_panel_with_training_and_evaluation(tmp_path) -> None:
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
    # 4.5 inches of 120 dots for each objective in the log.
    widths = {name: int.from_bytes(picture[16:20]) for name, picture in pictures.items()}
    assert (widths["whole"], widths["without a step"]) == (1080, 540)
    assert b"Software" not in pictures["whole"] and b"atplotlib" not in pictures["whole"]
    assert draw_objectives(tmp_path / "none.png", [{"step": 1, "train_runtime": 3.0}]) is None
    assert {file.stem for file in tmp_path.iterdir()} == set(pictures)
