"""The metric modules, loaded by path without a network, one by one and combined."""

import math
from collections import Counter

import pytest

from trainer.metric_modules import METRIC_MODULES

evaluate = pytest.importorskip("evaluate")

TEXTS = ["a b c d a b c d. a b c d a b c d.", "He left. He left! She stayed. He left.", "one"]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Keep copies and caches of the modules in a folder of the test."""
    cache = str(tmp_path_factory.mktemp("metrics"))
    return lambda name: evaluate.load(str(METRIC_MODULES / f"{name}.py"), cache_dir=cache)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_rep_n_is_that_of_ngrams_by_nltk(load, n):
    ngrams = pytest.importorskip("nltk.util").ngrams
    shares = []
    for text in TEXTS:
        counts = Counter(ngrams(text.split(), n))
        shares.append(1 - len(counts) / counts.total() if counts else 0.0)
    assert load("rep_n").compute(predictions=TEXTS, n=n) == {f"rep_{n}": pytest.approx(sum(shares) / 3)}


def test_rep_sen_by_hand(load):
    # "a b c d a b c d." twice; "He left." twice among four; one sentence
    assert load("rep_sen").compute(predictions=TEXTS) == {"rep_sen": pytest.approx((1 / 2 + 1 / 4 + 0) / 3)}


def test_infilling_perplexity_by_hand(load):
    logprobs = [[math.log(1 / 2), math.log(1 / 8)], [], [math.log(1 / 4)]]
    values = load("infilling_perplexity").compute(predictions=logprobs)
    assert values == {"infilling_perplexity": pytest.approx(4.0), "tokens": 3}
