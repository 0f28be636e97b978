"""Measure how often generated text repeats its own sentences, as a module of `evaluate`."""

from collections.abc import Sequence

import datasets
import evaluate

from trainer.metric_modules import CITATION
from trainer.metrics import repetition_sentences


class RepSen(evaluate.Metric):
    """Compute Rep-Sen, named `rep_sen`.

    Example:
        >>> RepSen().compute(predictions=["It rained. It rained. It snowed. It rained."])
        {'rep_sen': 0.5}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation=CITATION,
            inputs_description=repetition_sentences.__doc__ or "",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, *, predictions: Sequence[str]) -> dict[str, float]:
        return {"rep_sen": repetition_sentences(predictions)}
