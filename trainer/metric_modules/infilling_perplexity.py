"""Compute infilling perplexity, over only the tokens of removed spans, as a module of `evaluate`."""

import math
from collections.abc import Sequence

import datasets
import evaluate

from trainer.metric_modules import CITATION
from trainer.metrics import perplexity


class InfillingPerplexity(evaluate.Metric):
    """Compute infilling perplexity with the same weight for each token.

    `predictions` are the log-probabilities of the removed tokens of each text in nats, such as `Fill.logprobs` of
    `score_infill`.

    Example:
        >>> values = InfillingPerplexity().compute(predictions=[[math.log(0.5), math.log(0.125)], [math.log(0.25)]])
        >>> round(values["infilling_perplexity"], 6), values["tokens"]
        (4.0, 3)
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation=CITATION,
            inputs_description=type(self).__doc__ or "",
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, *, predictions: Sequence[Sequence[float]]) -> dict[str, float]:
        values = [value for text in predictions for value in text]
        return {"infilling_perplexity": perplexity(-math.fsum(values), len(values)), "tokens": len(values)}
