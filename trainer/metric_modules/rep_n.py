"""Measure how often generated text repeats its own n-grams, as a module of `evaluate`."""

from collections.abc import Sequence

import datasets
import evaluate

from trainer.metric_modules import CITATION
from trainer.metrics import repetition_n


class RepN(evaluate.Metric):
    """Compute Rep-n, named `rep_<n>`.

    Example:
        >>> RepN().compute(predictions=["a b a b a b"], n=2)  # 5 bigrams, 2 of them unique
        {'rep_2': 0.6}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation=CITATION,
            inputs_description=repetition_n.__doc__ or "",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, *, predictions: Sequence[str], n: int = 4) -> dict[str, float]:
        return {f"rep_{n}": repetition_n(predictions, n=n)}
