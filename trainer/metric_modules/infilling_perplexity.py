"""Infilling perplexity as a module of `evaluate`: of the tokens of the removed spans, and of no others."""

import math
from collections.abc import Sequence

import datasets
import evaluate

from trainer.metric_modules import CITATION
from trainer.metrics import perplexity

_DESCRIPTION = "Infilling perplexity: of the tokens of removed spans alone, over all texts at once. Lower is better."
_INPUTS = """
Args:
    predictions (`list` of `list` of `float`): For each text the log-probabilities of its removed tokens, in nats, such
        as `Fill.logprobs` of `score_infill`.
Returns:
    infilling_perplexity (`float`): >= 1.
    tokens (`int`): Tokens that count.
"""


class InfillingPerplexity(evaluate.Metric):
    """Infilling perplexity, each token with the same weight.

    Example:

        >>> values = InfillingPerplexity().compute(predictions=[[math.log(0.5), math.log(0.125)], [math.log(0.25)]])
        >>> round(values["infilling_perplexity"], 6), values["tokens"]
        (4.0, 3)
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, *, predictions: Sequence[Sequence[float]]) -> dict[str, float]:
        values = [value for text in predictions for value in text]
        if wrong := [value for value in values if not value <= 0]:
            raise ValueError(
                f"`predictions` has {wrong[0]}, {len(wrong)} of {len(values)} values; expected log-probabilities in "
                "nats, which are 0 at most. Pass logarithms of probabilities, not losses."
            )
        return {"infilling_perplexity": perplexity(-math.fsum(values), len(values)), "tokens": len(values)}
