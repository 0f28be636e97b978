"""Greedy and sampled choices: which tokens can come out, how often, and what a gap's stream depends on."""

import pytest
import torch
from transformers import GenerationConfig

from modeling_magnet.sampling_magnet import TokenChooser, merge_generation_config

LOGITS = torch.log(torch.tensor([[0.05, 0.4, 0.3, 0.15, 0.1]]))


def draws(number, *, barred=(), **knobs):
    """How often each token comes out of as many gaps of one token."""
    torch.manual_seed(0)
    config = GenerationConfig(do_sample=True, **knobs)
    chooser = TokenChooser(config, gap_lengths=[1] * number, barred_ids=barred)
    tokens, _ = chooser.choose(LOGITS.expand(number, -1), gaps=range(number), step=0)
    return torch.bincount(tokens, minlength=5) / number


def test_greedy_takes_the_likeliest_token_that_is_allowed():
    chooser = TokenChooser(GenerationConfig(), gap_lengths=[1], barred_ids=[1])
    token, logprob = chooser.choose(LOGITS, gaps=[0], step=0)
    assert token.tolist() == [2]
    torch.testing.assert_close(logprob, LOGITS[0, 2:3])


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
    for top_k, highest in ((None, 49), (0, 199)):
        torch.manual_seed(0)
        config = GenerationConfig(do_sample=True, top_k=top_k)
        chooser = TokenChooser(config, gap_lengths=[1] * 2000, barred_ids=[])
        assert int(chooser.choose(flat.expand(2000, -1), gaps=range(2000), step=0)[0].max()) == highest


def test_a_gap_has_its_own_stream():
    config = GenerationConfig(do_sample=True)
    torch.manual_seed(3)
    together = TokenChooser(config, gap_lengths=[4, 2, 5], barred_ids=[])
    torch.manual_seed(3)
    apart = [TokenChooser(config, gap_lengths=[length], barred_ids=[]) for length in (4, 2, 5)]
    for gap, chooser in enumerate(apart):
        for step in range([4, 2, 5][gap]):
            alone = chooser.choose(LOGITS, gaps=[0], step=step)[0]
            # Beside other rows, in any order.
            rows = together.choose(LOGITS.expand(2, -1), gaps=[gap, 0 if step < 4 else 2], step=step)[0]
            assert rows[0] == alone[0]


def test_a_greedy_choice_draws_no_random_number():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    TokenChooser(GenerationConfig(), gap_lengths=[3], barred_ids=[]).choose(LOGITS, gaps=[0], step=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_calls_arguments_win_and_the_given_config_stays():
    base = GenerationConfig(temperature=0.5, top_k=7)
    merged = merge_generation_config(base, {"do_sample": True, "temperature": 0.9})
    assert (merged.do_sample, merged.temperature, merged.top_k) == (True, 0.9, 7)
    assert (base.temperature, bool(base.do_sample)) == (0.5, False)


def test_what_a_gap_cannot_use_is_named():
    with pytest.raises(ValueError, match=r"does not know \['max_length', 'repetition_penalty'\]. It takes do_sample"):
        merge_generation_config(GenerationConfig(), {"repetition_penalty": 1.2, "max_length": 3})
    with pytest.raises(ValueError, match="num_beams=2"):
        merge_generation_config(GenerationConfig(num_beams=2), {})


def test_logits_that_are_no_numbers_are_reported():
    chooser = TokenChooser(GenerationConfig(), gap_lengths=[3], barred_ids=[])
    with pytest.raises(ValueError, match="NaN logits for token 2 of a gap"):
        chooser.choose(torch.full((1, 5), torch.nan), gaps=[0], step=2)
