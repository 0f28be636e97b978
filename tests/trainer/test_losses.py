"""The three losses against explicit loops, values and gradients, and at their edges."""

import math

import pytest
import torch
from torch import Tensor

from trainer.losses import sscl_loss, token_loss


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    states = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return states.requires_grad_()


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


# --- Token losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_items", [4, 2.5, torch.tensor(9)], ids=["int", "float", "tensor"])
def test_token_losses_are_summed_and_divided(num_items):
    losses = draw(2, 5)
    value, gradient = value_and_gradients(token_loss(losses, num_items=num_items), losses)
    assert value.shape == () and value.item() == pytest.approx(sum(losses.flatten().tolist()) / float(num_items))
    torch.testing.assert_close(gradient, torch.full_like(losses, 1 / float(num_items)))


def test_parts_of_a_batch_add_up_to_the_whole():
    losses = draw(7)
    parts = sum(token_loss(part, num_items=6) for part in losses.split([2, 5]))
    torch.testing.assert_close(parts, token_loss(losses, num_items=6))


@pytest.mark.parametrize("num_items", [0, torch.tensor(0), 5], ids=["int 0", "tensor 0", "items elsewhere"])
@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_no_label_gives_zero_that_can_be_back_propagated(num_items, shape):
    losses = torch.zeros(shape, requires_grad=True)
    value, gradient = value_and_gradients(token_loss(losses, num_items=num_items), losses)
    assert value.item() == 0 and value.shape == ()
    assert gradient.shape == losses.shape and gradient.isfinite().all()


# --- SSCL ------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-3])
def test_sscl_loss_survives_a_batch_of_identical_pairs(similarity, temperature):
    text = draw(1, 8).detach()
    anchors, positives = text.repeat(6, 1).requires_grad_(), text.repeat(6, 1).requires_grad_()
    loss = sscl_loss(anchors, positives, temperature=temperature, similarity=similarity)
    value, *gradients = value_and_gradients(loss, anchors, positives)
    assert value.item() == pytest.approx(math.log(6), rel=1e-3)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_processes_with_their_own_targets_average_to_the_whole_batch():
    anchors, positives = draw(4, 8), draw(4, 8, seed=1)
    whole = sscl_loss(anchors, positives, temperature=0.1)
    parts = [
        sscl_loss(anchors[rows], positives, temperature=0.1, targets=torch.tensor(rows)) for rows in ([0, 1], [2, 3])
    ]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)


@pytest.mark.parametrize("num_positives", [0, 3])
def test_no_anchor_gives_zero_that_can_be_back_propagated(num_positives):
    anchors, positives = draw(0, 4), draw(num_positives, 4)
    value, *gradients = value_and_gradients(sscl_loss(anchors, positives, temperature=0.1), anchors, positives)
    assert value.item() == 0 and value.shape == ()
    assert all(not gradient.any() for gradient in gradients)


def test_sscl_loss_reduces_half_precision_in_float32():
    anchors, positives = draw(16, 8, dtype=torch.bfloat16), draw(16, 8, seed=1, dtype=torch.bfloat16)
    loss = sscl_loss(anchors, positives, temperature=0.1)
    assert loss.dtype == torch.float32
    assert loss == sscl_loss(anchors.float(), positives.float(), temperature=0.1)


def test_sscl_loss_keeps_float32_under_autocast():
    anchors, positives = draw(16, 8), draw(16, 8, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sscl_loss(anchors, positives, temperature=0.1)
    assert loss == sscl_loss(anchors, positives, temperature=0.1)


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, math.inf])
def test_sscl_loss_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=f"`temperature` is {temperature}"):
        sscl_loss(torch.ones(2, 4), torch.ones(2, 4), temperature=temperature)


def test_sscl_loss_refuses_an_unknown_similarity():
    with pytest.raises(ValueError, match="'euclid'; pass 'cosine' or 'dot'"):
        sscl_loss(torch.ones(2, 4), torch.ones(2, 4), temperature=0.1, similarity="euclid")
