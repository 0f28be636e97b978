"""Numerical edge cases: half precision, no labels, identical pairs, extreme values."""

import math

import pytest
import torch
import torch.nn.functional as F

from modeling_magnet.losses_magnet import token_losses
from modeling_magnet.pooling_magnet import POOLINGS, pool_states
from trainer.objectives import sscl_loss, token_loss

from .processes import KeepGradients
from .tiny import tiny_args, tiny_model, tiny_trainer

# ---- Half precision ----


def many_labels():
    """Make rows with about 20,000 labels of each objective."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 44, (1100, 20), generator=generator)
    is_set = torch.rand((2, *ids.shape), generator=generator) < 0.95
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "segment_ids": torch.zeros_like(ids).index_fill_(1, torch.arange(7, 14), 1),
    }
    return batch, torch.stack([ids, ids.roll(1, 1)]).where(is_set, -100)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_losses_of_tens_of_thousands_of_half_precise_labels_are_those_of_float64(autocast, frozen):
    model = tiny_model() if autocast else tiny_model().bfloat16()
    head = model.get_output_embeddings().requires_grad_(not frozen)
    batch, targets = many_labels()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(**batch, mode="infill", target_ids=targets)
        logits = head(output.last_hidden_state.detach()).double()
    total = torch.zeros(())
    for token, own in zip(output.token_losses, targets, strict=True):
        number = int((own != -100).sum())
        assert number > 20_000
        expected = F.cross_entropy(logits.flatten(0, 1), own.flatten(), reduction="sum").item() / number
        found = token_loss(token, num_items=number)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(expected, rel=5e-6)
        in_half = (token.bfloat16().sum() / number).item()
        assert in_half != pytest.approx(expected, rel=1e-4), "which a sum in bfloat16 would not be"
        total = total + found
    total.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


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


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_as_large_as_half_precision_has_them_give_finite_losses_and_gradients(dtype, trained):
    head = torch.nn.Linear(8, 20, bias=False).to(dtype).requires_grad_(trained)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1e4, 1e4, 160).view(20, 8)[torch.arange(20).roll(7)])
    states = torch.eye(8, dtype=dtype).expand(3, 8, 8).clone().requires_grad_()
    targets = torch.arange(24).view(3, 8) % 20
    losses = token_losses(states, targets, head=head, vocab_size=20, chunk_size=8).losses
    logits = head(states).detach().double()
    assert logits.abs().max() > 9e3
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, 8)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    assert losses.max() > 1e3
    token_loss(losses, num_items=24).backward()
    assert states.grad.isfinite().all() and states.grad.any()
    assert not trained or (head.weight.grad.isfinite().all() and head.weight.grad.any())


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_vectors_have_no_gradient(similarity, dtype):
    anchors, positives = torch.zeros(2, 6, 8, dtype=dtype).requires_grad_().unbind()
    loss = sscl_loss(anchors, positives, temperature=0.05, similarity=similarity)
    assert loss.item() == pytest.approx(math.log(6))
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (anchors, positives)))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_one_zero_vector_keeps_all_gradients_finite(similarity):
    generator = torch.Generator().manual_seed(0)
    anchors, positives = torch.randn(2, 6, 8, generator=generator)
    anchors[2] = 0
    anchors.requires_grad_(), positives.requires_grad_()
    loss = sscl_loss(anchors, positives, temperature=1e-3, similarity=similarity)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (anchors, positives)))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", [1e-6, 1e-20])
def test_a_tiny_temperature_leaves_loss_and_gradients_finite(similarity, temperature):
    anchors, positives = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
    loss = sscl_loss(anchors, positives, temperature=temperature, similarity=similarity)
    assert loss.isfinite() and loss > 1
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (anchors, positives)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pair_without_negatives_has_zero_loss(tmp_path, dtype):
    anchors, positives = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    loss = sscl_loss(anchors, positives, temperature=0.05)
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (anchors, positives)))
    with pytest.raises(ValueError, match="`contrastive_batch_size` is 1"):
        tiny_trainer(tiny_args(tmp_path, contrastive_batch_size=1))


# ---- Rows of only padding ----


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "infill"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_of_only_padding_is_finite_and_does_not_change_others(mode, implementation, dtype):
    model = tiny_model(attn_implementation=implementation).to(dtype)
    ids = torch.randint(4, 44, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1], mask[2, 6:] = 0, 0
    segments = {"segment_ids": torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 0]] * 3)} if mode == "infill" else {}
    targets = ids.masked_fill(mask == 0, -100)
    weights = {}
    for rows in ([0, 1, 2], [0, 2]):
        given = {name: value[rows] for name, value in segments.items()}
        output = model(ids[rows], attention_mask=mask[rows], mode=mode, target_ids=targets[rows], **given)
        assert output.last_hidden_state.isfinite().all() and output.token_losses.isfinite().all()
        model.zero_grad()
        token_loss(output.token_losses, num_items=15).backward()
        weights[len(rows)] = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    for found, expected in zip(weights[3], weights[2], strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_row_of_only_padding_has_a_vector(pooling):
    states = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    vectors = pool_states(states, torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]]), pooling=pooling)
    assert vectors.isfinite().all() and (pooling == "last" or not vectors[0].any())
    (gradient,) = torch.autograd.grad(vectors.sum(), states)
    assert gradient.isfinite().all() and gradient[1].any()
