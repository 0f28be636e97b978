"""Draws, against warpers of transformers on the whole vocabulary and an inverse distribution over all of it."""

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modeling_magnet import drawing_magnet
from modeling_magnet.drawing_magnet import draw_tokens

CUTS = {
    "whole vocabulary": [],
    "temperature": [TemperatureLogitsWarper(0.7)],
    "top_k": [TopKLogitsWarper(50)],
    "top_k of all": [TopKLogitsWarper(10_000)],
    "top_p": [TopPLogitsWarper(0.9)],
    "top_p of little": [TopPLogitsWarper(1e-6)],
    "min_p": [MinPLogitsWarper(0.1)],
    "all": [TemperatureLogitsWarper(1.3), TopKLogitsWarper(64), TopPLogitsWarper(0.95), MinPLogitsWarper(0.02)],
    "top_p and min_p": [TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)],
}


class StableTopP(LogitsProcessor):
    """Top-p by its definition, in double precision: a stable sort cuts the first of equally likely tokens."""

    def __init__(self, share):
        self.share = share

    def __call__(self, input_ids, scores):
        ordered, order = torch.sort(scores, dim=-1, stable=True)
        is_cut = ordered.double().softmax(-1).cumsum(-1) <= 1 - self.share
        is_cut[:, -1] = False
        return scores.masked_fill(is_cut.scatter(-1, order, is_cut), -torch.inf)


def whole(scores, numbers, warpers):
    """The definition: cut the whole distribution, sum it in the order of the vocabulary, look the number up."""
    warped = warpers(torch.empty(0, dtype=torch.long), scores)
    cumulative = torch.softmax(warped.double(), -1).cumsum(-1)
    return torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True)[:, 0]


def make_scores(kind):
    """Peaked and flat rows; those of a bfloat16 model have many ties, and a healed seam leaves few tokens."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 1.0, 3.0, 8.0] * 6)[:, None]
    scores = torch.randn(24, 5000, generator=generator) * spread
    if kind == "ties":
        scores = scores.bfloat16().float()
    elif kind == "few":
        scores.masked_fill_(torch.rand(5000, generator=generator) < 0.996, -torch.inf)
    return scores, torch.rand(24, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["plain", "ties", "few"])
@pytest.mark.parametrize("cut", list(CUTS))
def test_draws_are_those_of_the_whole_distribution(cut, kind):
    scores, numbers = make_scores(kind)
    before, warpers = scores.clone(), LogitsProcessorList(CUTS[cut])
    found = draw_tokens(scores, numbers, warpers=warpers)
    reference = LogitsProcessorList(warpers)
    if kind == "ties":  # which of them stay, the sort of transformers leaves to chance
        reference = LogitsProcessorList(
            [StableTopP(one.top_p) if isinstance(one, TopPLogitsWarper) else one for one in warpers]
        )
    assert found.tolist() == whole(scores, numbers, reference).tolist()
    assert torch.equal(scores, before), "nothing is written to"


@pytest.mark.parametrize("kind", ["plain", "ties", "few"])
@pytest.mark.parametrize("cut", list(CUTS))
def test_a_draw_does_not_depend_on_the_rows_beside_it(cut, kind, monkeypatch):
    scores, numbers = make_scores(kind)
    warpers = LogitsProcessorList(CUTS[cut])
    together = draw_tokens(scores, numbers, warpers=warpers).tolist()
    monkeypatch.setattr(drawing_magnet, "_CPU_SCORES", 1)  # a row at a time
    assert draw_tokens(scores, numbers, warpers=warpers).tolist() == together
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(drawing_magnet, "_CPU_SCORES", 5 * 5000)
    shuffled = draw_tokens(scores[order], numbers[order], warpers=warpers).tolist()
    assert shuffled == [together[row] for row in order.tolist()]


@pytest.mark.parametrize("cut", list(CUTS))
@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_a_row_without_a_possible_token_leaves_the_others_alone(cut, value):
    scores, numbers = make_scores("plain")
    warpers = LogitsProcessorList(CUTS[cut])
    expected = draw_tokens(scores, numbers, warpers=warpers)
    scores[3] = value
    found = draw_tokens(scores, numbers, warpers=warpers)
    assert 0 <= int(found[3]) < 5000
    found[3] = expected[3]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("cut", list(CUTS))
def test_the_ends_of_the_interval_give_tokens_that_are_left(cut):
    scores, _ = make_scores("few")
    for number in (0.0, 1 - 2**-53):
        numbers = torch.full((24,), number, dtype=torch.float64)
        found = draw_tokens(scores, numbers, warpers=LogitsProcessorList(CUTS[cut]))
        assert bool((scores.gather(-1, found[:, None]) > -torch.inf).all())
