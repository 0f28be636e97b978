"""Numerical edge cases: half precision, no labels, identical pairs, extreme values."""

import math

import pytest
import torch
import torch.nn.functional as F

from trainer.objectives import sscl_loss, token_loss

from .processes import KeepGradients
from .tiny import tiny_args, tiny_trainer

# ---- Half precision ----


def test_half_precise_token_losses_are_added_and_divided_in_float32():
    losses = torch.rand(40_001, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    for number in (40_001, torch.tensor(40_001)):
        found = token_loss(losses, num_items=number)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(losses.double().mean().item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(found, losses)
    assert gradient.isfinite().all() and gradient.all()


@pytest.mark.parametrize("autocast", [False, True])
def test_the_contrastive_loss_of_half_precise_vectors_is_that_of_float64(autocast):
    generator = torch.Generator().manual_seed(0)
    anchors, positives = torch.randn(2, 512, 64, generator=generator).bfloat16().requires_grad_().unbind()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = sscl_loss(anchors, positives, temperature=0.05)
    scores = F.normalize(anchors.double(), dim=-1) @ F.normalize(positives.double(), dim=-1).T / 0.05
    expected = F.cross_entropy(scores, torch.arange(512)).item()
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected, rel=2e-6)
    in_half = F.normalize(anchors, dim=-1) @ F.normalize(positives, dim=-1).T / 0.05
    assert F.cross_entropy(in_half, torch.arange(512)).item() != pytest.approx(expected, rel=1e-4)


# ---- Nothing to learn from ----

# Rows whose tokens are special are never masked; the shortest with a span has four tokens here.
BARE, SPANS_ALONE, MASKS_ALONE = [1, 2], [1, *[2] * 9], [1, 5, 6]


def steps_on(tmp_path, row, *, phase, accumulation=1, **changes):
    """Run two steps on copies of a row; a valid row, which is not drawn, passes the checks of the run."""
    rows = [{"input_ids": row}] * 400 + [{"input_ids": [1, *range(5, 20)]}]
    args = tiny_args(
        tmp_path,
        **{"loss_phases": [f"2:{phase}"], "gradient_accumulation_steps": accumulation, "mask_ratio": 1.0},
        **{"per_device_train_batch_size": 2, "max_grad_norm": 0, **changes},
    )
    keep = KeepGradients()
    trainer = tiny_trainer(args, train_dataset=rows, callbacks=[keep])
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == len(keep.steps) == 2
    moved = [name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])]
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    return logs, keep.steps, moved


@pytest.mark.parametrize(
    ("phase", "accumulation", "changes"),
    [
        *((phase, number, {}) for phase in ("1,0,0", "0,0,1", "1,0,1") for number in (1, 2)),
        ("1,0,1", 2, {"bf16": True}),
    ],
)
def test_rows_without_labels_give_zero_loss_and_gradients(tmp_path, phase, accumulation, changes):
    logs, gradients, moved = steps_on(tmp_path, BARE, phase=phase, accumulation=accumulation, **changes)
    assert {log[name] for log in logs for name in ("loss", "loss_mntp", "loss_msg", "grad_norm")} == {0.0}
    assert all(not gradient.any() for step in gradients for gradient in step.values()), "zeros, and no NaN"
    assert len(gradients[0]) > 10 and not moved


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("row", "empty", "full"), [(SPANS_ALONE, "mntp", "msg"), (MASKS_ALONE, "msg", "mntp")])
@pytest.mark.parametrize("phase", ["1,0,1", "1,9,1"])
def test_objective_without_labels_is_0_with_another_that_has_some(tmp_path, row, empty, full, phase, accumulation):
    logs, gradients, moved = steps_on(tmp_path, row, phase=phase, accumulation=accumulation)
    for log in logs:
        assert log[f"loss_{empty}"] == 0.0 and 1 < log[f"loss_{full}"] < 10
        assert log["loss"] == pytest.approx(log[f"loss_{full}"] + 9 * log.get("loss_sscl", 0.0), rel=1e-5)
    assert all(gradient.isfinite().all() for step in gradients for gradient in step.values()) and moved


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("phase", ["0,1,0", "1,1,1"])
def test_pairs_train_if_rows_have_no_labels(tmp_path, phase, accumulation):
    logs, gradients, moved = steps_on(tmp_path, BARE, phase=phase, accumulation=accumulation)
    for log in logs:
        assert log.get("loss_mntp", 0.0) == log.get("loss_msg", 0.0) == 0.0
        assert log["loss"] == pytest.approx(log["loss_sscl"], rel=1e-5) and log["loss"] > 0
    assert all(gradient.isfinite().all() for step in gradients for gradient in step.values()) and moved


# ---- Pairs without a difference ----


@pytest.mark.parametrize(("head", "mini_batch_tokens"), [("tanh", None), ("tanh", 60), ("none", None)])
def test_batch_of_one_repeated_sentence_trains(tmp_path, head, mini_batch_tokens):
    args = tiny_args(
        tmp_path,
        loss_phases=["3:0,1,0"],
        contrastive_head=head,
        contrastive_mini_batch_tokens=mini_batch_tokens,
        max_grad_norm=0,
        temperature=1e-4,
    )
    keep = KeepGradients()
    trainer = tiny_trainer(args, pair_dataset=[{"anchor": "w1 w2", "positive": "w1 w2"}] * 12, callbacks=[keep])
    trainer.train()
    for log in trainer.state.log_history[:3]:
        assert log["loss_sscl"] == pytest.approx(math.log(4), abs=0.02), "four that are alike, but for rounding"
    assert all(gradient.isfinite().all() for step in keep.steps for gradient in step.values())
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize(("temperature", "zeros"), [(0.05, 6), (1e-3, 1), (1e-6, 0), (1e-20, 0)])
def test_zero_vectors_and_tiny_temperatures_keep_gradients_finite(similarity, temperature, zeros):
    anchors, positives = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    anchors[:zeros] = 0
    anchors.requires_grad_(), positives.requires_grad_()
    loss = sscl_loss(anchors, positives, temperature=temperature, similarity=similarity)
    assert loss.isfinite() and (loss.item() == pytest.approx(math.log(6)) if zeros == 6 else loss > 1)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (anchors, positives)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pair_without_negatives_has_zero_loss(tmp_path, dtype):
    anchors, positives = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    loss = sscl_loss(anchors, positives, temperature=0.05)
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (anchors, positives)))
    with pytest.raises(ValueError, match="`contrastive_batch_size` is 1"):
        tiny_trainer(tiny_args(tmp_path, contrastive_batch_size=1))
