"""Evaluation equals explicit loops over rows and positions, and does not change training."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer.corruption import corrupt_row
from trainer.evaluation import EVALUATION_SEED, INFILLING_SETTINGS, language_metrics
from trainer.samplers import row_generator

from ..peak_bytes import PeakBytes
from .tiny import MASK_TOKEN_ID, tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_trainer

SPECIAL_IDS = torch.tensor([0, 1, 2])
REPLACEMENT_IDS = torch.arange(3, 44)


def corrupted(row_id, row, *, settings, seed):
    return corrupt_row(
        torch.tensor(row["input_ids"]),
        settings=settings,
        mask_token_id=MASK_TOKEN_ID,
        special_token_ids=SPECIAL_IDS,
        replacement_ids=REPLACEMENT_IDS,
        generator=row_generator(seed, epoch=0, row_id=row_id),
    )


def reference(model, rows, args):
    """Compute the metrics for one row and position at a time."""
    sums = dict.fromkeys(("mntp", "mntp_n", "hits", "msg", "msg_n", "infill", "left", "span_n", "causal", "n"), 0.0)
    for row_id, row in enumerate(rows):
        masked = corrupted(row_id, row, settings=args.corruption_settings, seed=EVALUATION_SEED)
        gapped = corrupted(row_id, row, settings=INFILLING_SETTINGS, seed=EVALUATION_SEED)
        clean = torch.tensor([row["input_ids"]])
        assert torch.equal(gapped.input_ids, clean[0])
        with torch.no_grad():
            joint = model(masked.input_ids[None], mode="infill", segment_ids=masked.segment_ids[None]).logits[0]
            fills = model(clean, mode="infill", segment_ids=gapped.segment_ids[None]).logits[0]
            left = model(clean, mode="causal").logits[0]
        for position in range(clean.shape[1] - 1):
            token = clean[0, position + 1]
            for name, label in (("mntp", masked.mntp_labels[position]), ("msg", masked.msg_labels[position])):
                if label >= 0:
                    assert label == token
                    sums[name] += F.cross_entropy(joint[position], label).item()
                    sums[f"{name}_n"] += 1
            if masked.mntp_labels[position] >= 0:
                sums["hits"] += float(joint[position].argmax() == token)
            causal = F.cross_entropy(left[position], token).item()
            sums["causal"] += causal
            sums["n"] += 1
            if gapped.segment_ids[position + 1] > 0:
                sums["infill"] += F.cross_entropy(fills[position], token).item()
                sums["left"] += causal
                sums["span_n"] += 1
    return {
        "eval_loss_mntp": sums["mntp"] / sums["mntp_n"],
        "eval_loss_msg": sums["msg"] / sums["msg_n"],
        "eval_masked_accuracy": sums["hits"] / sums["mntp_n"],
        "eval_infilling_perplexity": math.exp(sums["infill"] / sums["span_n"]),
        "eval_left_to_right_perplexity": math.exp(sums["left"] / sums["span_n"]),
        "eval_causal_perplexity": math.exp(sums["causal"] / sums["n"]),
    }


def test_every_metric_equals_an_explicit_loop(tmp_path):
    args = tiny_args(tmp_path, loss_phases=["4:1,0,1"], mask_ratio=0.4)
    rows, model = tiny_rows(11, seed=5), tiny_model(hidden_size=32, initializer_range=0.5)
    expected = reference(model.eval(), rows, args)
    metrics = tiny_trainer(args, model=model, eval_dataset=rows).evaluate()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss_mntp"] + expected["eval_loss_msg"], rel=1e-5)
    assert metrics["eval_infilling_perplexity"] != pytest.approx(metrics["eval_left_to_right_perplexity"], rel=1e-3)


def test_losses_as_printed_change_the_reported_losses(tmp_path):
    rows = tiny_rows(11, seed=5)
    by_label = tiny_trainer(tiny_args(tmp_path, loss_phases=["4:1,0,1"]), eval_dataset=rows).evaluate()
    args = tiny_args(tmp_path, loss_phases=["4:1,0,1"], losses_as_printed=True)
    by_equation = tiny_trainer(args, eval_dataset=rows).evaluate()
    masked = [corrupted(n, row, settings=args.corruption_settings, seed=0) for n, row in enumerate(rows)]
    num_selected = sum((row.mntp_labels >= 0).sum().item() for row in masked)
    num_missing = sum((row.msg_labels >= 0).sum().item() for row in masked)
    num_tokens = sum(len(row["input_ids"]) for row in rows)
    num_with_span = sum((row.segment_ids > 0).any().item() for row in masked)
    assert by_equation["eval_loss_mntp"] == pytest.approx(by_label["eval_loss_mntp"] * num_selected / num_tokens)
    assert by_equation["eval_loss_msg"] == pytest.approx(by_label["eval_loss_msg"] * num_missing / num_with_span)


def test_the_contrastive_loss_is_that_of_whole_batches(tmp_path):
    args = tiny_args(tmp_path, contrastive_batch_size=4)
    trainer = tiny_trainer(args, eval_dataset=tiny_rows(4), eval_pair_dataset=tiny_pairs(11))
    whole = tiny_trainer(args, eval_dataset=tiny_rows(4), eval_pair_dataset=tiny_pairs(8))
    assert trainer.evaluate()["eval_loss_sscl"] == whole.evaluate()["eval_loss_sscl"]
    losses = []
    for first in (0, 4):
        pairs = tiny_pairs(8)[first : first + 4]
        batch = trainer.pair_collator(pairs)
        with torch.no_grad():
            states = trainer.model(**batch, mode="bidirectional").last_hidden_state
        last = batch["attention_mask"].sum(dim=1) - 1
        vectors = F.normalize(torch.tanh(trainer.head.linear(states[torch.arange(8), last])), dim=-1)
        for anchor in range(4):
            scores = torch.stack([vectors[anchor] @ vectors[4 + other] / 0.1 for other in range(4)])
            losses.append((torch.logsumexp(scores, 0) - scores[anchor]).item())
    assert trainer.evaluate()["eval_loss_sscl"] == pytest.approx(sum(losses) / 8, rel=1e-5)


def test_evaluation_does_not_change_training_or_later_evaluations(tmp_path):
    extras = {"eval_dataset": tiny_rows(6, seed=2), "eval_pair_dataset": tiny_pairs(9)}
    plain = tiny_trainer(tiny_args(tmp_path / "plain", view_dropout=0.3))
    plain.train()
    often = tiny_trainer(
        tiny_args(tmp_path / "often", view_dropout=0.3, eval_strategy="steps", eval_steps=1, eval_on_start=True),
        **extras,
    )
    often.train()
    for (name, expected), weight in zip(
        plain.model.state_dict().items(), often.model.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, expected), name
    often.model.train()
    first, second = often.evaluate(), often.evaluate()
    assert often.model.training
    speed = ("_runtime", "_per_second")
    assert {k: v for k, v in first.items() if not k.endswith(speed)} == {
        k: v for k, v in second.items() if not k.endswith(speed)
    }
    assert [log["eval_loss"] for log in often.state.log_history if "eval_loss" in log][-1] == first["eval_loss"]


def test_several_evaluation_sets_are_reported_by_name(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path), eval_dataset={"a": tiny_rows(4), "b": tiny_rows(5, seed=1)})
    metrics = trainer.evaluate()
    assert metrics["eval_a_causal_perplexity"] != metrics["eval_b_causal_perplexity"]
    assert trainer.predict(tiny_rows(4)).metrics["test_causal_perplexity"] == metrics["eval_a_causal_perplexity"]


def test_metrics_without_tokens_are_omitted():
    names = ("mntp_loss", "mntp_items", "mntp_tokens", "mntp_hits", "msg_loss", "msg_items")
    sums = dict.fromkeys((*names, "infilling_loss", "span_tokens", "left_to_right_loss", "causal_loss"), 0.0)
    assert language_metrics({**sums, "causal_tokens": 0}) == {}


# ---- compute_metrics ----


def explicit_predictions(trainer, rows):
    """Return position, objective, most likely token and label of each label of the corrupted rows."""
    found = []
    for batch in trainer.get_eval_dataloader(rows):
        corrupted = batch["corrupted"]
        inputs = {name: corrupted[name] for name in ("input_ids", "attention_mask", "segment_ids", "position_ids")}
        with torch.no_grad():
            tokens = trainer.model(**inputs, mode="infill").logits.argmax(-1)
        labels = torch.stack([corrupted["mntp_labels"], corrupted["msg_labels"]], dim=-1)
        for row, position, objective in (labels != -100).nonzero().tolist():
            label = labels[row, position, objective].item()
            found.append((position, objective, tokens[row, position].item(), label))
    return found


@pytest.mark.parametrize("shift", ["next", "same"])
def test_compute_metrics_gets_predicted_and_correct_tokens(tmp_path, shift):
    got = {}

    def compute_metrics(evaluated):
        predictions, labels, _ = evaluated  # two where no inputs are asked for
        got.update(predictions=predictions, labels=labels, inputs=evaluated.inputs)
        is_label = labels != -100
        return {"accuracy": float((predictions == labels)[is_label].mean()), "rows": len(labels)}

    rows = tiny_rows(7, seed=3)
    trainer = tiny_trainer(
        tiny_args(tmp_path, mntp_shift=shift, include_for_metrics=["inputs"]),
        eval_dataset=rows,
        compute_metrics=compute_metrics,
    )
    trainer.model.eval()
    metrics = trainer.evaluate()
    predictions, labels = got["predictions"], got["labels"]
    assert isinstance(predictions, np.ndarray) and predictions.dtype.kind == "i"
    assert predictions.shape == labels.shape == (7, max(len(row["input_ids"]) for row in rows), 2)
    assert ((predictions == -100) == (labels == -100)).all()
    assert got["inputs"].shape == predictions.shape[:2]
    places = np.argwhere(labels != -100).tolist()
    found = [(at[1], at[2], int(predictions[tuple(at)]), int(labels[tuple(at)])) for at in places]
    assert found == explicit_predictions(trainer, rows) and found
    assert metrics["eval_rows"] == 7
    first = labels[..., 0] != -100
    assert metrics["eval_masked_accuracy"] == pytest.approx((predictions == labels)[..., 0][first].mean())
    assert metrics["eval_accuracy"] == pytest.approx(np.mean([guess == label for _, _, guess, label in found]))


def test_user_metrics_are_logged(tmp_path):
    trainer = tiny_trainer(
        tiny_args(tmp_path, eval_strategy="steps", eval_steps=4),
        eval_dataset=tiny_rows(5),
        compute_metrics=lambda evaluated: {"mine": float(evaluated.predictions.max())},
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_mine" in log]
    assert [log["step"] for log in logs] == [4, 8] and all("eval_loss_mntp" in log for log in logs)
    predicted = trainer.predict(tiny_rows(3))
    assert predicted.predictions.shape == predicted.label_ids.shape and predicted.predictions.shape[::2] == (3, 2)
    assert "test_mine" in predicted.metrics


def test_compute_metrics_keeps_no_logits(tmp_path):
    vocab_size, rows = 70_000, [{"input_ids": [1, *range(4, 44)]}] * 64
    args = tiny_args(tmp_path, loss_phases=["1:1,0,1"], per_device_eval_batch_size=64, mask_ratio=0.5)
    trainer = tiny_trainer(
        args, model=tiny_model(vocab_size=vocab_size), eval_dataset=rows, compute_metrics=lambda evaluated: {}
    )
    with PeakBytes() as counted:
        trainer.evaluate()
    assert counted.most < 0.4 * 64 * 41 * vocab_size * 4
