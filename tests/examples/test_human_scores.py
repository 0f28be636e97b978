"""Compare shares, intervals, agreement and tests with independent computations."""

import random

import numpy as np
import pytest

pytest.importorskip("scipy", reason="an optional extra: pip install .[eval]")
pytest.importorskip("sklearn", reason="an optional extra: pip install .[eval]")

from scipy.stats import binomtest

from examples.evaluate.parts.annotation_form import make_form
from examples.evaluate.parts.fill_systems import StoryBlank
from examples.evaluate.parts.human_scores import (
    agreement,
    answers_by_system,
    overall_agreement,
    score_systems,
    share_interval,
)


def two_by_two(both, first, second, neither):
    """Return the answers of two annotators from the four counts."""
    one = [True] * both + [True] * first + [False] * second + [False] * neither
    other = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array([one, other])


def test_kappa_equals_manual_calculation():
    # 20 both yes, 5 and 10 apart, 15 both no: agreement 35/50 = 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    assert agreement(two_by_two(20, 5, 10, 15)) == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert agreement(two_by_two(5, 0, 0, 5)) == 1
    assert agreement(two_by_two(0, 5, 5, 0)) == -1
    # One says yes always: agreement is what chance gives.
    assert agreement(two_by_two(4, 6, 0, 0)) == pytest.approx(0)


def test_interval_equals_a_plain_bootstrap_loop():
    shares = np.array([0.0] * 30 + [0.5] * 25 + [1.0] * 45)
    low, high = share_interval(shares, seed=0)
    assert (low, high) == share_interval(shares, seed=0)
    draw, means = random.Random(1), []
    for _ in range(4000):
        means.append(sum(draw.choice(shares) for _ in shares) / len(shares))
    means.sort()
    assert low == pytest.approx(means[100], abs=0.011)
    assert high == pytest.approx(means[-101], abs=0.011)
    assert low < shares.mean() < high


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_constant_shares_still_have_an_interval(share):
    low, high = share_interval(np.full(20, share), seed=0)
    wilson = binomtest(int(20 * share), 20).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high))
    assert high - low > 0.1


def test_figures_equal_unblinded_answers():
    blanks = [StoryBlank(f"Story {n}.", "", " End.") for n in range(4)]
    fills = {
        "unidirectional": ["a", "b", "c", "same"],
        "MAGNET": ["d", "e", "f", "same"],
        "other": ["g", "h", "i", "j"],
    }
    _, key = make_form(blanks, fills, annotators=2, seed=3)
    key["systems"] = dict.fromkeys(fills, {})
    yes = {"1": {"a", "d", "e", "f", "same"}, "2": {"d", "e", "same", "g", "h"}}
    text = {item: fills[owner["systems"][0]][owner["story"]] for item, owner in key["items"].items()}
    answers = {who: {item: text[item] in liked for item in text} for who, liked in yes.items()}

    tables = answers_by_system(key, answers)
    assert tables["MAGNET"].tolist() == [[True, True, True, True], [True, True, False, True]]
    assert tables["unidirectional"].tolist() == [[True, False, False, True], [False, False, False, True]]
    assert tables["other"].tolist() == [[False] * 4, [True, True, False, False]]
    scores = score_systems(tables, seed=0)
    assert {name: row["appropriate"] for name, row in scores.items()} == {
        "unidirectional": pytest.approx(100 * 3 / 8), "MAGNET": pytest.approx(100 * 7 / 8),
        "other": pytest.approx(25),
    }  # fmt: skip
    for row in scores.values():
        assert 0 <= row["interval_low"] <= row["appropriate"] <= row["interval_high"] <= 100
    # To both: MAGNET 0, 1 and 3; unidirectional 3 alone: two discordant stories, p = 2 * 1/4. Other none: 2 * 1/8.
    assert scores["unidirectional"]["mcnemar_p"] == pytest.approx(0.5)
    assert scores["other"]["mcnemar_p"] == pytest.approx(0.25)
    assert "mcnemar_p" not in scores["MAGNET"]
    assert "mcnemar_p" not in score_systems({"other": tables["other"]}, seed=0)["other"]
    assert scores["unidirectional"]["kappa"] == pytest.approx((0.75 - 0.5) / 0.5)
    # All 11 items, the shared one once: both yes 3 (d, e, same), apart 2 (a, f) and 2 (g, h), both no 4.
    observed, chance = 7 / 11, (5 * 5 + 6 * 6) / 121
    assert overall_agreement(key, answers) == pytest.approx((observed - chance) / (1 - chance))
