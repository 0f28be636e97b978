"""Measure how often generated text repeats its own n-grams, as a module of `evaluate`."""

from collections.abc import Sequence

import datasets
import evaluate

from trainer.metric_modules import CITATION
from trainer.metrics import repetition_n

_DESCRIPTION = "Rep-n: 1 - unique n-grams / n-grams of a text, averaged over the texts. Lower is better."
_INPUTS = """
Args:
    predictions (`list` of `str`): Generated texts; tokens are separated by white space.
    n (`int`, defaults to 4): Tokens in an n-gram, >= 1.
Returns:
    rep_<n> (`float`): in [0, 1).
"""


class RepN(evaluate.Metric):
    """Compute Rep-n, named `rep_<n>`.

    Example:

        >>> RepN().compute(predictions=["a b a b a b"], n=2)  # 5 bigrams, 2 of them unique
        {'rep_2': 0.6}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, *, predictions: Sequence[str], n: int = 4) -> dict[str, float]:
        return {f"rep_{n}": repetition_n(predictions, n=n)}
