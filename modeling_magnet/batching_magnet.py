"""Run rows of token ids through a model in batches, for hidden states or log-probabilities.

Shapes: B rows of a batch, S tokens of the longest, H hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

from .attention_magnet import takes_float_masks
from .configuration_magnet import AttentionMode, check_tokenizer_fits
from .losses_magnet import IGNORE_INDEX
from .tokenization_magnet import check_whole_number, pad_token_rows, plan_batches

# Tokens per forward. On a CPU their states should fit its caches; an accelerator needs more tokens to be fully used.
CPU_BATCH_TOKENS = 2048
ACCELERATOR_BATCH_TOKENS = 16_384
# In bfloat16 on a CPU, the shape of a matrix product selects the kernel and so the order of its sums. Over 18 layers
# this leads to a cosine of 0.994 between the vectors of a text alone and in a batch. All shapes with at least
# this many positions, in rows of 16 or a multiple of 32, use the same order (torch 2.13, AMX).
LEAST_BFLOAT16_POSITIONS = 1024
BFLOAT16_ROWS = (16, 32)
# A progress bar over fewer texts would only flicker. Infilling runs many forwards per batch, so it counts batches.
PROGRESS_FROM_TEXTS = 1000
PROGRESS_FROM_BATCHES = 8

ReadingMode = Literal["bidirectional", "causal"]


def is_progress_hidden(show_progress_bar: bool | None, number: int, *, least: int = PROGRESS_FROM_TEXTS) -> bool:
    """Return whether to hide the progress bar over `number` texts or batches."""
    return number < least if show_progress_bar is None else not show_progress_bar


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode for a block, and restore the training mode of each module afterwards.

    A model in evaluation mode is not written to, so that threads can share it.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def token_budget(model: Any, batch_tokens: int | None = None, batch_size: int | None = None) -> int:
    """Check both limits of a batch, and return the limit in tokens."""
    for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if value is not None:
            check_whole_number(value, name=name, least=1)
    default = CPU_BATCH_TOKENS if model.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS
    return default if batch_tokens is None else batch_tokens


def pad_token_id(model: Any) -> int:
    """Return the token that pads a batch: PAD, else EOS, else 0. No token attends to it.

    Raises:
        ValueError: the tokenizer has tokens for which the model has no embeddings.
    """
    tokenizer = model.tokenizer
    check_tokenizer_fits(tokenizer, model.config.vocab_size)
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token_id for token_id in candidates if token_id is not None)


def to_device(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move a batch to the model's device, on a GPU from pinned memory, so that the copy is asynchronous."""
    if model.device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(model.device, non_blocking=True) for name, tensor in batch.items()}


def even_shape(longest: int, num_rows: int) -> tuple[int, int]:
    """Return the padded width and row count that make bfloat16 results independent of the batch.

    Example:

        >>> even_shape(5, 2), even_shape(20, 40), even_shape(600, 1)
        ((16, 64), (32, 40), (608, 2))
    """
    small, multiple = BFLOAT16_ROWS
    width = small if longest <= small else -(-longest // multiple) * multiple
    return width, max(num_rows, -(-LEAST_BFLOAT16_POSITIONS // width))


class HiddenStates(NamedTuple):
    """Hidden states of some rows of a call."""

    indices: list[int]  # of these rows in the call
    rows: list[Sequence[int]]  # token ids
    states: torch.Tensor  # (B, S, H)
    attention_mask: torch.Tensor  # (B, S), right padded


def hidden_states(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    batch_tokens: int,
    batch_size: int | None,
    mode: ReadingMode = "bidirectional",
) -> Iterator[HiddenStates]:
    """Yield the hidden states of all rows, batch by batch, without synchronizing with the device.

    Args:
        rows (`Sequence[Sequence[int]]`): Token ids.
        batch_tokens, batch_size (`int`): Most tokens, padding included, and most rows of a forward.
        mode (`str`): Of the forwards.
    """
    padding = pad_token_id(model)
    is_evened = mode == "bidirectional" and takes_float_masks(model.dtype, model.device)
    for indices in plan_batches([len(row) for row in rows], max_tokens=batch_tokens, max_rows=batch_size):
        chosen = [rows[index] for index in indices]
        longest, shortest = len(chosen[0]), len(chosen[-1])
        width, num_rows = even_shape(longest, len(chosen)) if is_evened else (longest, len(chosen))
        extra_rows = [[padding]] * (num_rows - len(chosen))
        batch = to_device(model, pad_token_rows([*chosen, *extra_rows], pad_token_id=padding, width=width))
        attention_mask = batch["attention_mask"]
        # Computed from the lists, because reading the mask would synchronize with the device.
        is_padded = shortest < width or len(extra_rows) > 0
        outputs = model(
            batch["input_ids"],
            attention_mask=attention_mask if is_padded else None,
            mode=mode,
            use_cache=False,
            logits_to_keep=torch.arange(0, device=model.device),
        )
        states = outputs.last_hidden_state[: len(chosen), :longest]
        yield HiddenStates(indices, chosen, states, attention_mask[: len(chosen), :longest])


def infill_batch(
    model: Any, ids: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], segments: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Pad rows with their positions and segments to the arguments of an infill forward, on the model's device."""
    batch = pad_token_rows(ids, pad_token_id=pad_token_id(model))
    batch["position_ids"] = pad_token_rows(positions, pad_token_id=0)["input_ids"]
    batch["segment_ids"] = pad_token_rows(segments, pad_token_id=0)["input_ids"]
    return to_device(model, batch)


def target_logprobs(
    model: Any, batch: dict[str, torch.Tensor], targets: Sequence[tuple[int, int, int, int]], *, mode: AttentionMode
) -> list[float]:
    """Return the log-probabilities of tokens in one forward, without holding all their logits in memory.

    Args:
        batch (`dict`): Arguments of the forward, on the model's device.
        targets (`Sequence[tuple[int, int, int, int]]`): Layer, row, position and token: the output at the position
            predicts the token. Several tokens at one position go to different layers, counted from 0.
        mode (`str`): Of the forward.
    """
    if not targets:
        return []
    layers, rows, columns, tokens = to_device(model, {"all": torch.tensor(targets).T.contiguous()})["all"]
    shape = (1 + max(target[0] for target in targets), *batch["input_ids"].shape)
    target_ids = torch.full(shape, IGNORE_INDEX, device=model.device)
    target_ids[layers, rows, columns] = tokens
    outputs = model(**batch, mode=mode, target_ids=target_ids, num_targets=len(targets), use_cache=False)
    logprobs: list[float] = (-outputs.token_losses[layers, rows, columns]).tolist()
    return logprobs
