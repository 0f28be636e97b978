"""Scores of tagged words, by hand, by seqeval and scikit-learn, and with Hugging Face `evaluate`."""

import random

import pytest

evaluate = pytest.importorskip("evaluate", reason="an optional extra: pip install .[eval]")
seqeval = pytest.importorskip("seqeval.metrics", reason="an optional extra: pip install .[eval]")

from sklearn.metrics import precision_score  # noqa: E402

from trainer.metric_modules import METRIC_MODULES  # noqa: E402
from trainer.metric_modules.probe_scores import probe_scores  # noqa: E402

TRUTH = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"], ["B-LOC", "B-LOC"]]
GUESS = [["B-PER", "O", "O", "B-LOC"], ["O", "I-ORG"], ["B-LOC", "I-LOC"]]


def test_scores_by_hand():
    # Words: 5 of 8 are right. Spans found: PER(0), LOC(3), ORG(1) begun by an I-, LOC(0..1); there are PER(0..1),
    # LOC(3), ORG(1), LOC(0), LOC(1): two of four found are right, of five there: F1 = 2 * 2 / (4 + 5).
    scores = probe_scores(GUESS, TRUTH)
    assert scores == {"accuracy": pytest.approx(62.5), "f1": pytest.approx(100 * 4 / 9)}
    assert probe_scores(TRUTH, TRUTH) == {"accuracy": 100.0, "f1": 100.0}
    assert probe_scores([["O", "O"]], [["O", "O"]]) == {"accuracy": 100.0, "f1": 0.0}
    assert probe_scores([["NN", "VB"]], [["NN", "NN"]], spans=False) == {"accuracy": 50.0, "f1": 50.0}


def test_scores_are_those_of_seqeval_and_the_score_of_llm2vec():
    draw = random.Random(0)
    tags = ["O", "B-A", "I-A", "B-B", "I-B"]
    lengths = [draw.randint(1, 9) for _ in range(200)]
    truth = [[draw.choice(tags) for _ in range(length)] for length in lengths]
    guess = [[tag if draw.random() < 0.7 else draw.choice(tags) for tag in sentence] for sentence in truth]
    scores = probe_scores(guess, truth)
    assert scores["f1"] == pytest.approx(100 * seqeval.f1_score(truth, guess))
    assert scores["accuracy"] == pytest.approx(100 * seqeval.accuracy_score(truth, guess))
    flat = [[tag for sentence in side for tag in sentence] for side in (truth, guess)]
    assert scores["accuracy"] == pytest.approx(100 * precision_score(*flat, average="micro"))
    assert 20 < scores["f1"] < scores["accuracy"] < 90


def test_it_is_a_metric_of_evaluate(tmp_path):
    metric = evaluate.load(str(METRIC_MODULES / "probe_scores.py"), cache_dir=str(tmp_path))
    assert metric.compute(predictions=GUESS, references=TRUTH) == probe_scores(GUESS, TRUTH)
    for guess, truth in zip(GUESS, TRUTH, strict=True):
        metric.add(prediction=guess, reference=truth)
    assert metric.compute(spans=False) == {"accuracy": 62.5, "f1": 62.5}


@pytest.mark.parametrize("spans", [True, False])
@pytest.mark.parametrize("guess", [[["O"]], [["O"], ["O", "O"]]])
def test_missing_tags_raise(guess, spans):
    with pytest.raises(ValueError):
        probe_scores(guess, [["O", "O"], ["O"]], spans=spans)
