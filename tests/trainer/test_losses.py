"""The three losses against explicit loops, values and gradients, and at their edges."""

import math

import pytest
import torch
from torch import Tensor

from trainer.losses import mntp_loss, msg_loss, sscl_loss

NUM_POSITIONS, VOCAB_SIZE = 7, 11
TOKEN_LOSSES = pytest.mark.parametrize("token_loss", [mntp_loss, msg_loss])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    states = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return states.requires_grad_()


def value_and_gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def looped_cross_entropy(logits: Tensor, labels: Tensor, num_items: float) -> Tensor:
    total = logits.sum() * 0
    for position in range(len(labels)):
        if labels[position] != -100:
            normalizer = sum(logits[position, token].exp() for token in range(logits.shape[1]))
            total = total - (logits[position, labels[position]].exp() / normalizer).log()
    return total / num_items


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


# --- MNTP and MSG ----------------------------------------------------------------------------------------------------


@TOKEN_LOSSES
@pytest.mark.parametrize("num_items", [4, 2.5, torch.tensor(9)], ids=["int", "float", "tensor"])
def test_token_losses_equal_the_explicit_loop(token_loss, num_items):
    logits = draw(NUM_POSITIONS, VOCAB_SIZE)
    labels = torch.tensor([3, -100, 0, 10, -100, -100, 3])
    found = value_and_gradients(token_loss(logits, labels, num_items=num_items), logits)
    expected = value_and_gradients(looped_cross_entropy(logits, labels, num_items), logits)
    torch.testing.assert_close(found, expected)
    assert not found[1][labels == -100].any(), "positions without a label get no gradient"


@TOKEN_LOSSES
def test_token_losses_by_hand(token_loss):
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    loss = token_loss(logits, torch.tensor([1, 0]), num_items=1)
    assert loss.item() == pytest.approx(math.log(2) + math.log(4 / 3))


@TOKEN_LOSSES
def test_parts_of_a_batch_add_up_to_the_whole(token_loss):
    logits, labels = draw(NUM_POSITIONS, VOCAB_SIZE), torch.tensor([3, -100, 0, 10, 2, 5, 3])
    whole = token_loss(logits, labels, num_items=6)
    parts = sum(token_loss(logits[part], labels[part], num_items=6) for part in (slice(0, 2), slice(2, 7)))
    torch.testing.assert_close(parts, whole)


@TOKEN_LOSSES
@pytest.mark.parametrize("num_items", [0, torch.tensor(0), 5], ids=["int 0", "tensor 0", "items elsewhere"])
@pytest.mark.parametrize("num_positions", [0, 3])
def test_no_label_gives_zero_that_can_be_back_propagated(token_loss, num_items, num_positions):
    logits = draw(num_positions, VOCAB_SIZE)
    loss = token_loss(logits, torch.full((num_positions,), -100), num_items=num_items)
    value, gradient = value_and_gradients(loss, logits)
    assert value.item() == 0 and value.shape == ()
    assert torch.equal(gradient, torch.zeros_like(logits))


@TOKEN_LOSSES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_token_losses_reduce_half_precision_in_float32(token_loss, dtype):
    logits, labels = draw(400, VOCAB_SIZE, dtype=dtype), torch.arange(400) % VOCAB_SIZE
    wide = logits.detach().float().requires_grad_()
    loss, gradient = value_and_gradients(token_loss(logits, labels, num_items=1), logits)
    expected, wide_gradient = value_and_gradients(token_loss(wide, labels, num_items=1), wide)
    assert loss.dtype == torch.float32 and loss == expected
    assert torch.equal(gradient, wide_gradient.to(dtype)), "only the last step is rounded"


@TOKEN_LOSSES
def test_token_losses_pass_the_gradient_check_in_float64(token_loss):
    labels = torch.tensor([3, -100, 0])
    logits = draw(3, VOCAB_SIZE, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda logits: token_loss(logits, labels, num_items=2), logits)


@TOKEN_LOSSES
@pytest.mark.parametrize(("logits_shape", "labels_shape"), [((2, 3, 5), (2, 3)), ((4, 5), (3,)), ((4, 5), (4, 1))])
def test_token_losses_name_both_shapes(token_loss, logits_shape, labels_shape):
    with pytest.raises(ValueError) as error:
        token_loss(torch.zeros(logits_shape), torch.zeros(labels_shape, dtype=torch.long), num_items=1)
    assert str(logits_shape) in str(error.value) and str(labels_shape) in str(error.value)


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


def test_sscl_loss_by_hand():
    anchors, positives = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    cosine = sscl_loss(anchors, positives, temperature=0.5)
    assert cosine.item() == pytest.approx(math.log(1 + math.exp(-2)))
    dot = sscl_loss(anchors, positives, temperature=0.5, similarity="dot")
    assert dot.item() == pytest.approx((math.log(1 + math.exp(-4)) + math.log(1 + math.exp(-6))) / 2)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-3])
def test_sscl_loss_survives_a_batch_of_identical_pairs(similarity, temperature):
    text = draw(1, 8).detach()
    anchors, positives = text.repeat(6, 1).requires_grad_(), text.repeat(6, 1).requires_grad_()
    loss = sscl_loss(anchors, positives, temperature=temperature, similarity=similarity)
    value, *gradients = value_and_gradients(loss, anchors, positives)
    assert value.item() == pytest.approx(math.log(6), rel=1e-3)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_cosine_ignores_lengths_and_dot_does_not():
    anchors, positives = draw(3, 4).detach(), draw(3, 4, seed=1).detach()

    def change(similarity):
        losses = [sscl_loss(a, positives, temperature=0.1, similarity=similarity) for a in (anchors, 7 * anchors)]
        return (losses[0] - losses[1]).abs().item()

    assert change("cosine") < 1e-5 < change("dot")


def test_more_negatives_make_the_task_harder():
    anchors, positives, others = draw(3, 4), draw(3, 4, seed=1), draw(9, 4, seed=2)
    alone = sscl_loss(anchors, positives, temperature=0.1)
    assert sscl_loss(anchors, torch.cat([positives, others]), temperature=0.1) > alone


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


@pytest.mark.parametrize(
    ("anchors_shape", "positives_shape"), [((4, 8), (3, 8)), ((4, 8), (4, 6)), ((4,), (4,)), ((2, 4, 8), (2, 4, 8))]
)
def test_sscl_loss_names_both_shapes(anchors_shape, positives_shape):
    with pytest.raises(ValueError) as error:
        sscl_loss(torch.ones(anchors_shape), torch.ones(positives_shape), temperature=0.1)
    assert str(anchors_shape) in str(error.value) and str(positives_shape) in str(error.value)


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [([0], r"shape \(1,\)"), ([[0, 1]], r"shape \(1, 2\)"), ([0, 3], "from 0 to 3"), ([-100, 0], "from -100 to 0")],
)
def test_sscl_loss_refuses_targets_that_are_no_rows(targets, complaint):
    with pytest.raises(ValueError, match=complaint):
        sscl_loss(torch.ones(2, 4), torch.ones(3, 4), temperature=0.1, targets=torch.tensor(targets))


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, math.inf])
def test_sscl_loss_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=f"`temperature` is {temperature}"):
        sscl_loss(torch.ones(2, 4), torch.ones(2, 4), temperature=temperature)


def test_sscl_loss_refuses_an_unknown_similarity():
    with pytest.raises(ValueError, match="'euclid'; pass 'cosine' or 'dot'"):
        sscl_loss(torch.ones(2, 4), torch.ones(2, 4), temperature=0.1, similarity="euclid")
