"""Perplexity and repetition, by hand and by property tests."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics import perplexity, repetition_n, repetition_sentences


def test_perplexity_by_hand():
    assert perplexity(5 * math.log(32_000), 5) == pytest.approx(32_000), "a uniform guess"
    assert perplexity(0.0, 3) == 1.0
    assert perplexity(1e6, 1) == math.inf


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: perplexity(1.0, 0), "`num_tokens` is 0"),
        (lambda: repetition_n([]), "no text to measure"),
        (lambda: repetition_sentences([]), "no text to measure"),
        (lambda: repetition_n(["a"], n=0), "`n` is 0"),
    ],
)
def test_invalid_input_raises(measure, message):
    with pytest.raises(ValueError, match=message):
        measure()


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["the cat sat on the mat"], 1, 1 / 6),
        (["the cat sat on the mat"], 4, 0.0),
        (["a b c d a b c d"], 4, 1 / 5),  # abcd bcda cdab dabc abcd
        (["a a a a a a"], 4, 2 / 3),
        ([[5, 5, 5], [5, 6, 7]], 2, (1 / 2 + 0) / 2),
        (["a a a", "b"], 2, (1 / 2 + 0) / 2),  # too short for a bigram: nothing repeats
        ("a a a a", 1, 3 / 4),  # a lone text, not four texts
    ],
)
def test_repetition_n_by_hand(texts, n, expected):
    assert repetition_n(texts, n=n) == pytest.approx(expected)


def test_texts_that_share_their_words_do_not_repeat_each_other():
    assert repetition_n(["a b c d", "a b c d"]) == 0.0
    assert repetition_sentences(["He left.", "He left."]) == 0.0


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4), st.integers(1, 5))
def test_repetition_n_is_the_mean_of_an_explicit_count(token_lists, n):
    shares = []
    for tokens in token_lists:
        seen, repeated = [], 0
        for start in range(len(tokens) - n + 1):
            repeated += tokens[start : start + n] in seen
            seen.append(tokens[start : start + n])
        shares.append(repeated / len(seen) if seen else 0.0)
    assert repetition_n(token_lists, n=n) == pytest.approx(sum(shares) / len(shares))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        ("One sentence without an end", 0.0),
        ("He left. He left. He left. She stayed.", 2 / 4),
        ("He left. He  left.\nHe left!", 1 / 3),  # white space does not tell sentences apart, punctuation does
        ('"Go!" he said. "Go!" he said.', 2 / 4),
        ("It cost 3.50 in the U.S.A. in 1999.", 0.0),
        ("line one\nline one\n\nline two", 1 / 3),
        ("It fell . It fell . It rose .", 1 / 3),  # WikiText puts a space before the stop
    ],
)
def test_repetition_sentences_by_hand(text, expected):
    assert repetition_sentences(text) == pytest.approx(expected)
