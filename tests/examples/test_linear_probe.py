"""Compare the probe with explicit Adam and with scikit-learn, and test that it depends only on the seed."""

import numpy as np
import pytest
import torch

from examples.evaluate.linear_probe import ProbeSettings, train_probe


def make_words(number=60, *, hidden=6, num_labels=3, noise=1.0, seed=0):
    """Return words around a center per label, in sentences of one to four words."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_labels, size=number)
    centres = random.normal(size=(num_labels, hidden)) * 3
    states = (centres[labels] + noise * random.normal(size=(number, hidden))).astype(np.float32)
    bounds = [0]
    while bounds[-1] < number:
        bounds.append(min(bounds[-1] + int(random.integers(1, 5)), number))
    return states, labels, np.array(bounds)


def by_hand(states, labels, bounds, *, num_labels, settings, seed):
    """Run Adam on softmax regression in float64 without dropout."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(states.shape[1], num_labels)
    params = [layer.weight.detach().double().numpy().copy(), layer.bias.detach().double().numpy().copy()]
    first, second = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
    generator = torch.Generator().manual_seed(seed)
    count = len(bounds) - 1
    epoch = -(-count // settings.batch_size)
    orders = [torch.randperm(count, generator=generator).tolist() for _ in range(settings.steps // epoch + 1)]
    batches = [order[k : k + settings.batch_size] for order in orders for k in range(0, count, settings.batch_size)]
    for step, batch in enumerate(batches[: settings.steps]):
        rows = [row for index in batch for row in range(bounds[index], bounds[index + 1])]
        inputs, truth = states[rows].astype(np.float64), labels[rows]
        logits = inputs @ params[0].T + params[1]
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        chances[np.arange(len(rows)), truth] -= 1
        grads = [chances.T @ inputs / len(rows), chances.mean(0)]
        norm = np.sqrt(sum((grad**2).sum() for grad in grads))
        rate = settings.learning_rate * (1 - step / max(settings.decay_epochs * epoch, settings.steps))
        for k, grad in enumerate(grads):
            grad = grad * min(1.0, settings.max_grad_norm / (norm + 1e-6))
            first[k] = 0.9 * first[k] + 0.1 * grad
            second[k] = 0.999 * second[k] + 0.001 * grad**2
            hat = [first[k] / (1 - 0.9 ** (step + 1)), second[k] / (1 - 0.999 ** (step + 1))]
            params[k] -= rate * hat[0] / (np.sqrt(hat[1]) + 1e-8)
    return params


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_training_equals_explicit_adam(steps):
    states, labels, bounds = make_words()
    settings = ProbeSettings(steps=steps, batch_size=4, learning_rate=0.02, dropout=0.0, decay_epochs=2)
    given = {"num_labels": 3, "settings": settings, "seed": 5}
    layer = train_probe(states, labels, bounds, **given)
    weight, bias = by_hand(states, labels, bounds, **given)
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, atol=2e-4)
    np.testing.assert_allclose(layer.bias.detach().numpy(), bias, atol=2e-4)


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
