"""Compute infilling perplexity, over only the tokens of removed spans, as a module of `evaluate`."""

import math
from collections.abc import Sequence

import datasets
import evaluate

from trainer.metric_modules import CITATION
from trainer.metrics import perplexity

_INPUTS = """
Args:
    predictions (`list` of `list` of `float`): Log-probabilities of the removed tokens of each text, in nats, such as
        `Fill.logprobs` of `score_infill`.
Returns:
    infilling_perplexity (`float`): >= 1.
    tokens (`int`): Number of removed tokens.
"""


class InfillingPerplexity(evaluate.Metric):
    """Compute infilling perplexity with the same weight for each token.

    Example:

        >>> values = InfillingPerplexity().compute(predictions=[[math.log(0.5), math.log(0.125)], [math.log(0.25)]])
        >>> round(values["infilling_perplexity"], 6), values["tokens"]
        (4.0, 3)
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Infilling perplexity: over the tokens of removed spans in all texts. Lower is better.",
            citation=CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, *, predictions: Sequence[Sequence[float]]) -> dict[str, float]:
        values = [value for text in predictions for value in text]
        if invalid := [value for value in values if not value <= 0]:
            raise ValueError(
                f"{len(invalid)} of {len(values)} values of `predictions` are above 0, such as {invalid[0]}. Pass "
                "log-probabilities in nats, not losses."
            )
        return {"infilling_perplexity": perplexity(-math.fsum(values), len(values)), "tokens": len(values)}
