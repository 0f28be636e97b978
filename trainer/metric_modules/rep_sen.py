"""Measure how often generated text repeats its own sentences, as a module of `evaluate`."""

from collections.abc import Sequence

import datasets
import evaluate

from trainer.metric_modules import CITATION
from trainer.metrics import repetition_sentences

_DESCRIPTION = "Rep-Sen: 1 - unique sentences / sentences of a text, averaged over the texts. Lower is better."
_INPUTS = """
Args:
    predictions (`list` of `str`): Generated texts.
Returns:
    rep_sen (`float`): in [0, 1).
"""


class RepSen(evaluate.Metric):
    """Compute Rep-Sen, named `rep_sen`.

    Example:

        >>> RepSen().compute(predictions=["It rained. It rained. It snowed. It rained."])
        {'rep_sen': 0.5}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, *, predictions: Sequence[str]) -> dict[str, float]:
        return {"rep_sen": repetition_sentences(predictions)}
