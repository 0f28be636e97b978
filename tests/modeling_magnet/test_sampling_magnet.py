"""Greedy and sampled choices: which tokens can come out, how often, and what a span's stream depends on."""

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList

from modeling_magnet.sampling_magnet import TokenChooser, merge_generation_config
from modeling_magnet.spans_magnet import Span

LOGITS = torch.log(torch.tensor([[0.05, 0.4, 0.3, 0.15, 0.1]]))


def make_spans(lengths, **fields):
    return [
        Span(gap=index, before=[], gap_length=length, stream=index, **fields) for index, length in enumerate(lengths)
    ]


def make_chooser(spans, *, barred=(), **knobs):
    return TokenChooser(GenerationConfig(**knobs), spans=spans, barred_ids=barred)


def draws(number, *, barred=(), **knobs):
    """How often each token comes out of as many spans of one token."""
    torch.manual_seed(0)
    spans = make_spans([1] * number)
    chooser = make_chooser(spans, barred=barred, do_sample=True, **knobs)
    choice = chooser.choose(LOGITS.expand(number, -1), spans, indices=[0] * number)
    return torch.bincount(choice.tokens, minlength=5) / number


def test_greedy_takes_the_likeliest_token_that_is_allowed():
    spans = make_spans([1])
    choice = make_chooser(spans, barred=[1]).choose(LOGITS, spans, indices=[0])
    assert choice.tokens.tolist() == [2]
    torch.testing.assert_close(choice.logprobs, LOGITS[0, 2:3])
    assert choice.is_possible.tolist() == [True]


def test_several_greedy_answers_begin_with_different_tokens_and_go_on_alike():
    spans = [Span(gap=0, before=[], gap_length=2, stream=rank, rank=rank) for rank in range(4)]
    chooser = make_chooser(spans, barred=[3])
    logits = LOGITS.expand(4, -1)
    assert chooser.choose(logits, spans, indices=[0] * 4).tokens.tolist() == [1, 2, 4, 0]
    assert chooser.choose(logits, spans, indices=[1] * 4).tokens.tolist() == [1] * 4


def test_a_choice_among_nothing_is_impossible():
    spans = [Span(gap=0, before=[], gap_length=1, stream=rank, rank=rank) for rank in range(3)]
    choice = make_chooser(spans, barred=[0, 1, 2]).choose(LOGITS.expand(3, -1), spans, indices=[0] * 3)
    assert choice.is_possible.tolist() == [True, True, False]
    sampled = make_chooser(spans, barred=range(5), do_sample=True).choose(LOGITS.expand(3, -1), spans, indices=[0] * 3)
    assert sampled.is_possible.tolist() == [False] * 3


def test_a_greedy_span_ends_at_the_median_of_its_length():
    """Chances of 0.4, 0.15 and 0.05 that it ends at a step: it goes on with 0.6, 0.51, 0.4845."""
    spans = make_spans([9])
    chooser = TokenChooser(GenerationConfig(), spans=spans, barred_ids=[2], end_of_span_id=1)
    chances = (0.99, 0.4, 0.15, 0.05)
    tokens = []
    for index, chance in enumerate(chances):
        rest = (1 - chance) / 4
        logits = torch.log(torch.tensor([[rest, chance, rest, rest * 1.1, rest * 0.9]]))
        choice = chooser.choose(logits, spans, indices=[index])
        assert choice.is_possible.all()
        tokens.append(choice.tokens.item())
    assert tokens == [3, 3, 3, 1], "the first token is never the end, and the likeliest one ends nothing by itself"


def test_a_sample_ends_where_the_end_is_drawn():
    torch.manual_seed(0)
    spans = make_spans([4] * 3000)
    chooser = TokenChooser(GenerationConfig(do_sample=True, top_k=0), spans=spans, barred_ids=[1, 2], end_of_span_id=1)
    for index, expected in ((0, 0.0), (1, 0.4 / 0.7)):
        tokens = chooser.choose(LOGITS.expand(3000, -1), spans, indices=[index] * 3000).tokens
        assert (tokens == 1).float().mean() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, [0.05, 0.4, 0.3, 0.15, 0.1]),
        ({"barred": [1]}, [0.0833, 0.0, 0.5, 0.25, 0.1667]),
        ({"top_k": 2}, [0.0, 0.5714, 0.4286, 0.0, 0.0]),
        ({"top_p": 0.65}, [0.0, 0.5714, 0.4286, 0.0, 0.0]),
        ({"min_p": 0.3}, [0.0, 0.4706, 0.3529, 0.1765, 0.0]),
        ({"temperature": 0.5}, [0.0088, 0.5614, 0.3158, 0.0789, 0.0351]),
        ({"top_k": 1}, [0.0, 1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_samples_follow_the_distribution_of_the_knobs(knobs, expected):
    frequencies = draws(4000, **knobs)
    torch.testing.assert_close(frequencies, torch.tensor(expected), atol=0.03, rtol=0)
    assert frequencies[torch.tensor(expected) == 0].sum() == 0


def test_top_k_is_what_generate_uses_unless_it_is_set():
    flat = torch.zeros(1, 200)
    flat[0, :50] = 0.1
    spans = make_spans([1] * 2000)
    for top_k, highest in ((None, 49), (0, 199)):
        torch.manual_seed(0)
        chooser = make_chooser(spans, do_sample=True, top_k=top_k)
        assert int(chooser.choose(flat.expand(2000, -1), spans, indices=[0] * 2000).tokens.max()) == highest


def test_a_span_has_its_own_stream():
    lengths = [4, 2, 5]
    spans = make_spans(lengths)
    torch.manual_seed(3)
    together = make_chooser(spans, do_sample=True)
    torch.manual_seed(3)
    apart = [make_chooser(make_spans([length]), do_sample=True) for length in lengths]
    for number, chooser in enumerate(apart):
        for index in range(lengths[number]):
            alone = chooser.choose(LOGITS, make_spans([lengths[number]]), indices=[index]).tokens
            # Beside other rows, in any order.
            other = 0 if index < 4 else 2
            rows = together.choose(LOGITS.expand(2, -1), [spans[number], spans[other]], indices=[index, index]).tokens
            assert rows[0] == alone[0]


def test_a_greedy_choice_draws_no_random_number():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    spans = make_spans([3])
    make_chooser(spans).choose(LOGITS, spans, indices=[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_processors_see_what_generate_would_show_them():
    spans = make_spans([3, 3])
    spans[0].before, spans[0].token_ids = [4, 2], [1]
    spans[1].before, spans[1].token_ids = [3], []
    seen = []

    def forbid_two(input_ids, scores):
        seen.append(input_ids.tolist())
        scores[:, 2] = -torch.inf
        return scores

    chooser = TokenChooser(
        GenerationConfig(), spans=spans, barred_ids=[0, 1], processors=LogitsProcessorList([forbid_two])
    )
    assert chooser.left_contexts(spans).tolist() == [[4, 2, 1], [0, 0, 3]]
    assert chooser.choose(LOGITS.expand(2, -1), spans, indices=[1, 0]).tokens.tolist() == [3, 3]
    assert seen == [[[4, 2, 1], [0, 0, 3]]]


def test_penalties_count_what_stands_in_front_and_what_was_written():
    spans = make_spans([3, 3])
    spans[0].token_ids, spans[1].before = [1], [1]
    chooser = make_chooser(spans, repetition_penalty=1.5)
    assert chooser.choose(LOGITS.expand(2, -1), spans, indices=[1, 0]).tokens.tolist() == [2, 2]
    spans[0].token_ids, spans[1].before = [2, 1, 2], [3, 1, 3]
    chooser = make_chooser(spans, no_repeat_ngram_size=2)
    assert chooser.choose(LOGITS.expand(2, -1), spans, indices=[2, 0]).tokens.tolist() == [2, 2]


def test_the_calls_arguments_win_and_the_given_config_stays():
    base = GenerationConfig(temperature=0.5, top_k=7)
    merged = merge_generation_config(base, {"do_sample": True, "temperature": 0.9, "num_return_sequences": 3})
    assert (merged.do_sample, merged.temperature, merged.top_k, merged.num_return_sequences) == (True, 0.9, 7, 3)
    assert (base.temperature, bool(base.do_sample), base.num_return_sequences or 1) == (0.5, False, 1)


def test_what_a_gap_cannot_use_is_named():
    with pytest.raises(ValueError, match=r"does not know \['max_length', 'penalty_alpha'\]. It takes do_sample"):
        merge_generation_config(GenerationConfig(), {"penalty_alpha": 1.2, "max_length": 3})
    with pytest.raises(ValueError, match="num_beams=2"):
        merge_generation_config(GenerationConfig(num_beams=2), {})
    for answers in (0, -1, 2.5, "two"):
        with pytest.raises(ValueError, match="`num_return_sequences` is"):
            merge_generation_config(GenerationConfig(), {"num_return_sequences": answers})


def test_logits_that_are_no_numbers_are_reported():
    spans = make_spans([3])
    for do_sample in (False, True):
        choice = make_chooser(spans, do_sample=do_sample).choose(torch.full((1, 5), torch.nan), spans, indices=[2])
        assert choice.is_nan
        assert 0 <= choice.tokens.item() < 5


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", "auto", "a number"),
        ("top_p", [0.5], "a number"),
        ("min_p", {}, "a number"),
        ("repetition_penalty", True, "a number"),
        ("top_k", 1.5, "a whole number"),
        ("no_repeat_ngram_size", "2", "a whole number"),
        ("do_sample", 1, "true or false"),
        ("stop_strings", 3, "a string or a list of strings"),
        ("cache_implementation", torch.zeros(2), "'dynamic' or 'static'"),
        ("compile_config", {}, "a CompileConfig"),
    ],
)
def test_options_of_another_kind_are_named(name, value, expected):
    with pytest.raises(ValueError, match=rf"`{name}` is .*; expected {expected}"):
        merge_generation_config(GenerationConfig(), {name: value})
