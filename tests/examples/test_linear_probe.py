"""Compare the probe with explicit Adam and with scikit-learn, and test that it depends only on the seed."""

import numpy as np
import pytest
import torch

from examples.evaluate.parts.linear_probe import ProbeSettings, train_probe


def make_words(number=60, *, hidden=6, num_labels=3, noise=1.0, seed=0):
    """Return words around a center per label, in sentences of one to four words."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_labels, size=number)
    centers = random.normal(size=(num_labels, hidden)) * 3
    states = (centers[labels] + noise * random.normal(size=(number, hidden))).astype(np.float32)
    bounds = [0]
    while bounds[-1] < number:
        bounds.append(min(bounds[-1] + int(random.integers(1, 5)), number))
    return states, labels, np.array(bounds)


def by_hand(states, labels, bounds, *, num_labels, settings, seed):
    """Train in float64 with an explicit rate and an explicit norm of the gradient, without dropout."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(states.shape[1], num_labels).double()
    optimizer = torch.optim.Adam(layer.parameters())
    generator = torch.Generator().manual_seed(seed)
    count = len(bounds) - 1
    epoch = -(-count // settings.batch_size)
    orders = [torch.randperm(count, generator=generator).tolist() for _ in range(settings.steps // epoch + 1)]
    batches = [order[k : k + settings.batch_size] for order in orders for k in range(0, count, settings.batch_size)]
    for step, batch in enumerate(batches[: settings.steps]):
        rows = [row for index in batch for row in range(bounds[index], bounds[index + 1])]
        loss = -layer(torch.tensor(states[rows]).double()).log_softmax(-1)[range(len(rows)), labels[rows]].mean()
        grads = torch.autograd.grad(loss, list(layer.parameters()))
        norm = sum((grad**2).sum() for grad in grads) ** 0.5
        for parameter, grad in zip(layer.parameters(), grads, strict=True):
            parameter.grad = grad * min(1.0, settings.max_grad_norm / (norm + 1e-6))
        rate = settings.learning_rate * (1 - step / max(settings.decay_epochs * epoch, settings.steps))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return layer


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_training_equals_explicit_adam(steps):
    states, labels, bounds = make_words()
    settings = ProbeSettings(steps=steps, batch_size=4, learning_rate=0.02, dropout=0.0, decay_epochs=2)
    given = {"num_labels": 3, "settings": settings, "seed": 5}
    layer, expected = train_probe(states, labels, bounds, **given), by_hand(states, labels, bounds, **given)
    for own, other in zip(layer.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own.double(), other, atol=2e-4, rtol=0)


def test_only_the_seed_affects_training():
    states, labels, bounds = make_words()
    settings = ProbeSettings(steps=20, dropout=0.5)
    before = torch.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        weights.append(train_probe(states, labels, bounds, num_labels=3, settings=settings, seed=seed).weight.detach())
        torch.rand(3)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    torch.set_rng_state(before)
    train_probe(states, labels, bounds, num_labels=3, settings=settings, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    still = train_probe(states, labels, bounds, num_labels=3, settings=ProbeSettings(steps=20, dropout=0.0), seed=1)
    assert not torch.equal(still.weight, weights[0]), "dropout does something"
