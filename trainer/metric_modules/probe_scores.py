"""Compute accuracy over words and F1 of tagged words, in percent, as a module of `evaluate`.

    >>> ProbeScores().compute(predictions=[["B-LOC", "O"]], references=[["B-LOC", "O"]])
    {'accuracy': 100.0, 'f1': 100.0}

The paper follows LLM2Vec (experiments/test_word_task.py of its repository), which reports micro-averaged precision
over words for all three tasks. With one tag a word this equals the accuracy, and micro-averaged recall and F1. The F1
of spans, the measure of CoNLL, is also reported; for parts of speech, which are not spans, it equals the accuracy.
"""

from collections.abc import Sequence

import datasets
import evaluate
from seqeval.metrics import f1_score

_CITATION = "BehnamGhader et al. 2024, LLM2Vec; Nakayama 2018, seqeval; Khosla et al. 2025, MAGNET"


def probe_scores(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], *, spans: bool = True
) -> dict[str, float]:
    """Score the tags of sentences.

    Args:
        predictions, references (`Sequence[Sequence[str]]`): Predicted and correct tags by sentence.
        spans (`bool`): Whether tags are spans in IOB2. A predicted `I-` without a preceding tag begins a span, as in
            the script of the shared task (`seqeval`'s default mode).

    Returns:
        `dict[str, float]`: `accuracy` over all words and `f1`, both in [0, 100]. F1 is micro-averaged over all spans,
        or over words if `spans` is `False`, and 0 if there are no spans.

    Raises:
        ValueError: If the numbers of sentences or words differ.

    Source: section 4.1 and table 1 of the paper; LLM2Vec, as above.

    Example:
        >>> probe_scores([["B-PER", "O", "O", "O"]], [["B-PER", "O", "B-LOC", "I-LOC"]])["accuracy"]
        50.0
    """
    hits = [
        predicted == correct
        for predicted_tags, correct_tags in zip(predictions, references, strict=True)
        for predicted, correct in zip(predicted_tags, correct_tags, strict=True)
    ]
    accuracy = 100 * sum(hits) / len(hits)
    if not spans:
        return {"accuracy": accuracy, "f1": accuracy}
    sides = [[list(sentence) for sentence in side] for side in (references, predictions)]
    return {"accuracy": accuracy, "f1": 100 * float(f1_score(*sides, zero_division=0))}


class ProbeScores(evaluate.Metric):
    """Compute `probe_scores` as a metric of Hugging Face `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation=_CITATION,
            inputs_description=probe_scores.__doc__ or "",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(
        self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], spans: bool = True
    ) -> dict[str, float]:
        return probe_scores(predictions, references, spans=spans)
