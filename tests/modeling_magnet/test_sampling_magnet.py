"""Test the choice of tokens: barred tokens, sampling frequencies and random generators."""

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modeling_magnet import sampling_magnet
from modeling_magnet.sampling_magnet import TokenChooser, draw_tokens, left_contexts
from modeling_magnet.spans_magnet import Span

LOGITS = torch.log(torch.tensor([[0.05, 0.4, 0.3, 0.15, 0.1]]))


def make_spans(lengths, **fields):
    return [
        Span(blank=index, before=[], length=length, number=index, **fields) for index, length in enumerate(lengths)
    ]


def make_chooser(spans, *, barred=(), **knobs):
    return TokenChooser(GenerationConfig(**knobs), spans=spans, excluded_ids=barred)


def test_greedy_takes_the_most_likely_token_that_is_not_barred():
    spans = make_spans([1])
    choice = make_chooser(spans, barred=[1]).choose(LOGITS, spans, indices=[0])
    assert choice.tokens.tolist() == [2]
    torch.testing.assert_close(choice.logprobs, LOGITS[0, 2:3])
    assert choice.is_possible.tolist() == [True]


def test_greedy_answers_differ_only_in_the_rank_of_their_first_token():
    spans = [Span(blank=0, before=[], length=2, number=rank, rank=rank) for rank in range(4)]
    chooser = make_chooser(spans, barred=[3])
    logits = LOGITS.expand(4, -1)
    assert chooser.choose(logits, spans, indices=[0] * 4).tokens.tolist() == [1, 2, 4, 0]
    assert chooser.choose(logits, spans, indices=[1] * 4).tokens.tolist() == [1] * 4


def test_a_choice_is_impossible_if_all_tokens_are_barred():
    spans = [Span(blank=0, before=[], length=1, number=rank, rank=rank) for rank in range(3)]
    choice = make_chooser(spans, barred=[0, 1, 2]).choose(LOGITS.expand(3, -1), spans, indices=[0] * 3)
    assert choice.is_possible.tolist() == [True, True, False]
    sampled = make_chooser(spans, barred=range(5), do_sample=True).choose(LOGITS.expand(3, -1), spans, indices=[0] * 3)
    assert sampled.is_possible.tolist() == [False] * 3


def test_a_greedy_span_ends_at_the_median_of_its_length():
    """With probabilities of 0.4, 0.15 and 0.05 to end at a step, a span continues with 0.6, 0.51 and 0.4845."""
    spans = make_spans([9])
    chooser = TokenChooser(GenerationConfig(), spans=spans, excluded_ids=[2], end_of_span_id=1)
    chances = (0.99, 0.4, 0.15, 0.05)
    tokens = []
    for index, chance in enumerate(chances):
        rest = (1 - chance) / 4
        logits = torch.log(torch.tensor([[rest, chance, rest, rest * 1.1, rest * 0.9]]))
        choice = chooser.choose(logits, spans, indices=[index])
        assert choice.is_possible.all()
        tokens.append(choice.tokens.item())
    assert tokens == [3, 3, 3, 1], "the first token is never the end, and a most likely end does not suffice"


def test_a_sampled_span_ends_when_the_end_token_is_drawn():
    torch.manual_seed(0)
    spans = make_spans([4] * 3000)
    config = GenerationConfig(do_sample=True, top_k=0)
    chooser = TokenChooser(config, spans=spans, excluded_ids=[1, 2], end_of_span_id=1)
    for index, expected in ((0, 0.0), (1, 0.4 / 0.7)):
        tokens = chooser.choose(LOGITS.expand(3000, -1), spans, indices=[index] * 3000).tokens
        assert (tokens == 1).float().mean() == pytest.approx(expected, abs=0.03)


def test_top_k_defaults_to_that_of_generate():
    flat = torch.zeros(1, 200)
    flat[0, :50] = 0.1
    spans = make_spans([1] * 2000)
    for top_k, highest in ((None, 49), (0, 199)):
        torch.manual_seed(0)
        chooser = make_chooser(spans, do_sample=True, top_k=top_k)
        assert int(chooser.choose(flat.expand(2000, -1), spans, indices=[0] * 2000).tokens.max()) == highest


def test_random_numbers_depend_only_on_the_span():
    lengths = [4, 2, 5]
    spans = make_spans(lengths)
    torch.manual_seed(3)
    together = make_chooser(spans, do_sample=True)
    torch.manual_seed(3)
    apart = [make_chooser(make_spans([length]), do_sample=True) for length in lengths]
    for number, chooser in enumerate(apart):
        for index in range(lengths[number]):
            alone = chooser.choose(LOGITS, make_spans([lengths[number]]), indices=[index]).tokens
            # Next to another row.
            other = 0 if index < 4 else 2
            rows = together.choose(LOGITS.expand(2, -1), [spans[number], spans[other]], indices=[index, index]).tokens
            assert rows[0] == alone[0]


def test_processors_receive_the_input_ids_of_generate():
    spans = make_spans([3, 3])
    spans[0].before, spans[0].token_ids = [4, 2], [1]
    spans[1].before, spans[1].token_ids = [3], []
    seen = []

    def forbid_two(input_ids, scores):
        seen.append(input_ids.tolist())
        scores[:, 2] = -torch.inf
        return scores

    chooser = TokenChooser(
        GenerationConfig(), spans=spans, excluded_ids=[0, 1], processors=LogitsProcessorList([forbid_two])
    )
    assert left_contexts(spans, pad_token_id=0).tolist() == [[4, 2, 1], [0, 0, 3]]
    assert chooser.choose(LOGITS.expand(2, -1), spans, indices=[1, 0]).tokens.tolist() == [3, 3]
    assert seen == [[[4, 2, 1], [0, 0, 3]]]


def test_penalties_count_tokens_before_the_span_and_in_it():
    spans = make_spans([3, 3])
    spans[0].token_ids, spans[1].before = [1], [1]
    chooser = make_chooser(spans, repetition_penalty=1.5)
    assert chooser.choose(LOGITS.expand(2, -1), spans, indices=[1, 0]).tokens.tolist() == [2, 2]
    spans[0].token_ids, spans[1].before = [2, 1, 2], [3, 1, 3]
    chooser = make_chooser(spans, no_repeat_ngram_size=2)
    assert chooser.choose(LOGITS.expand(2, -1), spans, indices=[2, 0]).tokens.tolist() == [2, 2]


def test_nan_logits_are_reported():
    spans = make_spans([3])
    for do_sample in (False, True):
        choice = make_chooser(spans, do_sample=do_sample).choose(torch.full((1, 5), torch.nan), spans, indices=[2])
        assert choice.is_nan
        assert 0 <= choice.tokens.item() < 5


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
    """Apply top-p by definition, in double precision; a stable sort removes the first of equally likely tokens."""

    def __init__(self, share):
        self.share = share

    def __call__(self, input_ids, scores):
        ordered, order = torch.sort(scores, dim=-1, stable=True)
        is_cut = ordered.double().softmax(-1).cumsum(-1) <= 1 - self.share
        is_cut[:, -1] = False
        return scores.masked_fill(is_cut.scatter(-1, order, is_cut), -torch.inf)


def whole(scores, numbers, warpers):
    """Sample by definition: truncate the whole distribution, sum it in vocabulary order and look up the number."""
    warped = warpers(torch.empty(0, dtype=torch.long), scores)
    cumulative = torch.softmax(warped.double(), -1).cumsum(-1)
    return torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True)[:, 0]


def make_scores(kind):
    """Return peaked and flat rows, with ties as from a bfloat16 model or few tokens as from token healing."""
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
def test_samples_equal_those_of_the_whole_distribution(cut, kind):
    scores, numbers = make_scores(kind)
    before, warpers = scores.clone(), LogitsProcessorList(CUTS[cut])
    found = draw_tokens(scores, numbers, warpers=warpers)
    reference = LogitsProcessorList(warpers)
    if kind == "ties":  # transformers leaves the order of ties undefined
        reference = LogitsProcessorList(
            [StableTopP(one.top_p) if isinstance(one, TopPLogitsWarper) else one for one in warpers]
        )
    assert found.tolist() == whole(scores, numbers, reference).tolist()
    assert torch.equal(scores, before), "scores are not modified"


@pytest.mark.parametrize("kind", ["plain", "ties", "few"])
@pytest.mark.parametrize("cut", list(CUTS))
def test_a_sample_does_not_depend_on_other_rows(cut, kind, monkeypatch):
    scores, numbers = make_scores(kind)
    warpers = LogitsProcessorList(CUTS[cut])
    together = draw_tokens(scores, numbers, warpers=warpers).tolist()
    monkeypatch.setattr(sampling_magnet, "_CPU_DRAWN", 1)  # one row at a time
    assert draw_tokens(scores, numbers, warpers=warpers).tolist() == together
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(sampling_magnet, "_CPU_DRAWN", 5 * 5000)
    shuffled = draw_tokens(scores[order], numbers[order], warpers=warpers).tolist()
    assert shuffled == [together[row] for row in order.tolist()]


@pytest.mark.parametrize("cut", list(CUTS))
@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_a_row_without_a_possible_token_does_not_change_other_rows(cut, value):
    scores, numbers = make_scores("plain")
    warpers = LogitsProcessorList(CUTS[cut])
    expected = draw_tokens(scores, numbers, warpers=warpers)
    scores[3] = value
    found = draw_tokens(scores, numbers, warpers=warpers)
    assert 0 <= int(found[3]) < 5000
    found[3] = expected[3]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("cut", list(CUTS))
def test_the_ends_of_the_interval_give_possible_tokens(cut):
    scores, _ = make_scores("few")
    for number in (0.0, 1 - 2**-53):
        numbers = torch.full((24,), number, dtype=torch.float64)
        found = draw_tokens(scores, numbers, warpers=LogitsProcessorList(CUTS[cut]))
        assert bool((scores.gather(-1, found[:, None]) > -torch.inf).all())
