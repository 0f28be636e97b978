"""Losses against explicit loops, and a fourth objective in one file and one entry."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.objectives import OBJECTIVES, Objective, count_items, sscl_loss, token_labels, token_loss

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


def test_objective_with_own_count(monkeypatch):
    rare = Objective(
        labels=lambda batch: batch["msg_labels"],
        count=lambda labels, batch, as_printed: torch.tensor(3 if as_printed else 4),
    )
    monkeypatch.setitem(OBJECTIVES, "rare", rare)
    batch = {name: torch.ones(1, 2, dtype=torch.long) for name in ("attention_mask", "mntp_labels", "msg_labels")}
    assert count_items(batch, as_printed=True).tolist() == [2, 1, 3]
    assert count_items(batch, as_printed=False).tolist() == [2, 2, 4]


# ---- Losses ----


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def value_and_gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def looped_info_nce(
    anchors: Tensor, positives: Tensor, targets: list[int], temperature: float, cosine: bool
) -> Tensor:
    total = anchors.sum() * 0
    for anchor, target in zip(anchors, targets, strict=True):
        scores = []
        for positive in positives:
            score = sum(a * b for a, b in zip(anchor, positive, strict=True))
            if cosine:
                score = score / (sum(a * a for a in anchor) * sum(b * b for b in positive)).sqrt()
            scores.append((score / temperature).exp())
        total = total - (scores[target] / sum(scores)).log()
    return total / len(anchors)


# ---- Token losses ----


@pytest.mark.parametrize("num_items", [4, 2.5, torch.tensor(9)], ids=["int", "float", "tensor"])
def test_token_losses_are_summed_and_divided(num_items):
    losses = draw(2, 5)
    value, gradient = value_and_gradients(token_loss(losses, num_items=num_items), losses)
    assert value.shape == () and value.item() == pytest.approx(sum(losses.flatten().tolist()) / float(num_items))
    torch.testing.assert_close(gradient, torch.full_like(losses, 1 / float(num_items)))


@pytest.mark.parametrize("num_items", [0, torch.tensor(0), 5], ids=["int 0", "tensor 0", "items elsewhere"])
@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_no_label_gives_zero_that_can_be_back_propagated(num_items, shape):
    losses = torch.zeros(shape, requires_grad=True)
    value, gradient = value_and_gradients(token_loss(losses, num_items=num_items), losses)
    assert value.item() == 0 and value.shape == ()
    assert gradient.shape == losses.shape and gradient.isfinite().all()


# ---- SSCL ----


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("targets", [None, [0, 1, 2], [4, 0, 2]], ids=["default", "diagonal", "elsewhere"])
def test_sscl_loss_equals_the_explicit_double_loop(similarity, targets):
    anchors, positives = draw(3, 4), draw(5, 4, seed=1)
    loss = sscl_loss(
        anchors,
        positives,
        temperature=0.5,
        similarity=similarity,
        targets=None if targets is None else torch.tensor(targets),
    )
    expected = looped_info_nce(
        anchors, positives, targets or [0, 1, 2], temperature=0.5, cosine=similarity == "cosine"
    )
    torch.testing.assert_close(
        value_and_gradients(loss, anchors, positives), value_and_gradients(expected, anchors, positives)
    )


def test_processes_with_their_own_targets_average_to_the_whole_batch():
    anchors, positives = draw(4, 8), draw(4, 8, seed=1)
    whole = sscl_loss(anchors, positives, temperature=0.1)
    parts = [
        sscl_loss(anchors[rows], positives, temperature=0.1, targets=torch.tensor(rows)) for rows in ([0, 1], [2, 3])
    ]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)
