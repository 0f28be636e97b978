"""A further objective is one file and one entry: phases, losses, counts, logs and evaluation follow."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from trainer.objectives import OBJECTIVES, Objective, count_items, token_labels

from .tiny import tiny_args, tiny_rows, tiny_trainer


@pytest.fixture
def mtp():
    """Register the objective of `two_ahead.py` for one test."""
    before = dict(OBJECTIVES)
    importlib.reload(importlib.import_module("tests.trainer.two_ahead"))
    yield OBJECTIVES["mtp"]
    OBJECTIVES.clear()
    OBJECTIVES.update(before)


def test_a_fourth_objective_is_trained_logged_and_evaluated(tmp_path, mtp):
    args = tiny_args(tmp_path, loss_phases=["2: msg=1 mtp=0.5"], gradient_accumulation_steps=2)
    trainer = tiny_trainer(args, eval_dataset=tiny_rows(6))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    for log in logs:
        assert 0 < log["loss_mtp"] < 10 and log["loss_mtp"] != log["loss_msg"]
        assert log["loss"] == pytest.approx(log["loss_msg"] + 0.5 * log["loss_mtp"], rel=1e-5)
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss_mtp"])
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_loss_msg"] + 0.5 * metrics["eval_loss_mtp"])


def test_a_fourth_objective_s_loss_equals_an_explicit_loop(tmp_path, mtp):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["1: mtp=2"]))
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    logits = trainer.model(
        batch["input_ids"], attention_mask=batch["attention_mask"], mode="infill", segment_ids=batch["segment_ids"]
    ).logits
    labels = token_labels(batch)["mtp"]
    assert batch["num_labels"] == sum(int((each != -100).sum()) for each in token_labels(batch).values())
    for row, position in (labels != -100).nonzero().tolist():
        assert labels[row, position] == batch["input_ids"][row, position + 2]
    torch.testing.assert_close(loss, 2 * F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_a_run_that_names_an_objective_that_is_not_registered_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no objective 'mtp'"):
        tiny_args(tmp_path, loss_phases=["2: msg=1 mtp=0.5"])


def test_an_objective_may_count_its_items_and_say_where_it_has_none(tmp_path, monkeypatch):
    rare = Objective(
        labels=lambda batch: batch["msg_labels"],
        count=lambda labels, batch, normalization: torch.tensor(3 if normalization == "three" else 4),
        remedy=lambda settings: "Lower `mask_ratio`" if settings.mask_ratio > 0.5 else None,
    )
    monkeypatch.setitem(OBJECTIVES, "rare", rare)
    batch = {name: torch.ones(1, 2, dtype=torch.long) for name in ("attention_mask", "mntp_labels", "msg_labels")}
    assert count_items(batch, normalization={"rare": "three"}).tolist() == [2, 2, 3]
    assert count_items(batch, normalization={}).tolist() == [2, 2, 4]
    with pytest.raises(ValueError, match="weigh rare, .* Lower `mask_ratio`, or set its weight to 0"):
        tiny_args(tmp_path, loss_phases=["2: rare=1"], mask_ratio=0.6)
