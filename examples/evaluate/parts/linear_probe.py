"""Train a linear layer that predicts the labels of words from frozen states.

These are pure functions of arrays and a seed, without models, texts or tasks.

Training follows the classifiers of LLM2Vec (experiments/run_word_task.py and train_configs/word-task of its
repository): AdamW without weight decay, which is Adam, with default moments; a learning rate that decreases linearly
to 0 after 10 epochs, cut off at 4000 steps; gradients clipped at norm 1; dropout on the states; cross entropy over the
words of the batch; a new order in each epoch, whose last batch may be smaller. One difference: their layer is kept in
bfloat16, ours in float32.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

# Rows of states that are classified at once.
_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Configure the training of a probe; the defaults are the paper's values.

    Args:
        steps (`int`): Updates, >= 1.
        batch_size (`int`): Sentences of an update, >= 1.
        learning_rate (`float`): At the first step, > 0.
        dropout (`float`): Share of each state's dimensions that a step leaves out, in [0, 1).
        decay_epochs (`int`): Epochs after which the falling rate would be 0; never before the last step.
        max_grad_norm (`float`): Longer gradients are scaled down to it.

    Source: Khosla et al. 2025, section 4.1; BehnamGhader et al. 2024 (LLM2Vec) for the last two.
    """

    steps: int = 4000
    batch_size: int = 8
    learning_rate: float = 5e-4
    dropout: float = 0.1
    decay_epochs: int = 10
    max_grad_norm: float = 1.0


def train_probe(
    states: np.ndarray,
    labels: np.ndarray,
    bounds: np.ndarray,
    *,
    num_labels: int,
    settings: ProbeSettings,
    seed: int,
    device: str = "cpu",
    description: str | None = None,
) -> torch.nn.Linear:
    """Train a linear layer to predict the labels of words from their states.

    Args:
        states (`numpy.ndarray` of shape `(num_words, hidden_size)`): Float32; a memory map is read batch by batch.
        labels (`numpy.ndarray` of shape `(num_words,)`): Whole numbers from 0 to `num_labels - 1`.
        bounds (`numpy.ndarray` of shape `(num_sentences + 1,)`): Words `bounds[i]` to `bounds[i + 1]` are sentence i.
    """
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(states.shape[1], num_labels).to(device)
        orders = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        num_sentences = len(bounds) - 1
        per_epoch = math.ceil(num_sentences / settings.batch_size)
        decay_steps = max(settings.decay_epochs * per_epoch, settings.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / decay_steps)
        order: list[int] = []
        for _ in tqdm(range(settings.steps), desc=description, unit="step", disable=description is None):
            order = order or torch.randperm(num_sentences, generator=orders).tolist()
            chosen, order = order[: settings.batch_size], order[settings.batch_size :]
            rows = np.concatenate([np.arange(bounds[index], bounds[index + 1]) for index in chosen])
            batch = torch.from_numpy(states[rows]).to(device)
            truth = torch.from_numpy(labels[rows]).long().to(device)
            logits = layer(torch.nn.functional.dropout(batch, settings.dropout))
            torch.nn.functional.cross_entropy(logits, truth).backward()
            torch.nn.utils.clip_grad_norm_(layer.parameters(), settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return layer


@torch.no_grad()
def predict(layer: torch.nn.Linear, states: np.ndarray) -> np.ndarray:
    """Return the likeliest label of each word.

    Args:
        states (`numpy.ndarray` of shape `(num_words, hidden_size)`): Float32.

    Returns:
        `numpy.ndarray` of shape `(num_words,)`, int64.
    """
    parts = [
        layer(torch.from_numpy(states[start : start + _ROWS_AT_ONCE].copy()).to(layer.weight.device)).argmax(-1).cpu()
        for start in range(0, len(states), _ROWS_AT_ONCE)
    ]
    return torch.cat(parts).numpy() if parts else np.empty(0, dtype=np.int64)
