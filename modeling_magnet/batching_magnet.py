"""Rows of token ids -> batches on a device -> hidden states or log-probabilities, for encoding and infilling.

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

# Tokens of a forward. On a CPU they should stay in its caches; an accelerator needs more work to be busy.
CPU_BATCH_TOKENS = 2048
ACCELERATOR_BATCH_TOKENS = 16_384
# In bfloat16 on a CPU the kernels of matrix products change with the shape, and sum in another order. 18 layers turn
# that into cosines of 0.994 between a text alone and in a batch. These shapes get kernels with the same sums (torch
# 2.13, AMX): at least so many positions in all, in rows of 16 or of a multiple of 32.
LEAST_BFLOAT16_POSITIONS = 1024
BFLOAT16_ROWS = (16, 32)
# A progress bar over fewer texts only flickers; fewer batches suffice for fills, each of which takes many forwards.
PROGRESS_FROM_TEXTS = 1000
PROGRESS_FROM_BATCHES = 8

ReadingMode = Literal["bidirectional", "causal"]


def is_progress_hidden(show_progress_bar: bool | None, number: int, *, least: int = PROGRESS_FROM_TEXTS) -> bool:
    """Return whether to show no progress over so many texts or batches."""
    return number < least if show_progress_bar is None else not show_progress_bar


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Run a block without dropout; modules that were in training mode are so again afterwards.

    A model that is not in training mode is not written to, so that threads can share it.
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
    """Check both limits of a batch, and return how many tokens it may have."""
    for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if value is not None:
            check_whole_number(value, name=name, least=1)
    default = CPU_BATCH_TOKENS if model.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS
    return default if batch_tokens is None else batch_tokens


def pad_token_id(model: Any) -> int:
    """Return the token that fills up a batch; it is never attended to.

    Raises:
        ValueError: tokens were added to the tokenizer that the model has no embeddings for.
    """
    tokenizer = model.tokenizer
    check_tokenizer_fits(tokenizer, model.config.vocab_size)
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token_id for token_id in known if token_id is not None)


def to_device(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move a batch to the model's device; a GPU fetches pinned memory without the host waiting."""
    if model.device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(model.device, non_blocking=True) for name, tensor in batch.items()}


def even_shape(longest: int, num_rows: int) -> tuple[int, int]:
    """Return the width and the number of rows with which a bfloat16 batch has the same sums as any other.

    Example:

        >>> even_shape(5, 2), even_shape(20, 40), even_shape(600, 1)
        ((16, 64), (32, 40), (608, 2))
    """
    small, multiple = BFLOAT16_ROWS
    width = small if longest <= small else -(-longest // multiple) * multiple
    return width, max(num_rows, -(-LEAST_BFLOAT16_POSITIONS // width))


class HiddenStates(NamedTuple):
    """Hidden states of some rows of a call."""

    indices: list[int]  # which rows these are
    rows: list[Sequence[int]]  # their token ids
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
    """Yield the hidden states of all rows, batch by batch, without waiting for the device.

    Args:
        model: One of our models.
        rows (`Sequence[Sequence[int]]`): Token ids.
        batch_tokens (`int`): Tokens of a forward, padding included.
        batch_size (`int`, *optional*): Rows of a forward.
        mode (`str`): Of the forwards.
    """
    filler = pad_token_id(model)
    is_evened = mode == "bidirectional" and takes_float_masks(model.dtype, model.device)
    for indices in plan_batches([len(row) for row in rows], max_tokens=batch_tokens, max_rows=batch_size):
        own = [rows[index] for index in indices]
        longest, shortest = len(own[0]), len(own[-1])
        width, num_rows = even_shape(longest, len(own)) if is_evened else (longest, len(own))
        fillers = [[filler]] * (num_rows - len(own))
        batch = to_device(model, pad_token_rows([*own, *fillers], pad_token_id=filler, width=width))
        attention_mask = batch["attention_mask"]
        # Read off the lists: the device is not waited for.
        is_padded = shortest < width or len(fillers) > 0
        outputs = model(
            batch["input_ids"],
            attention_mask=attention_mask if is_padded else None,
            mode=mode,
            use_cache=False,
            logits_to_keep=torch.arange(0, device=model.device),
        )
        states = outputs.last_hidden_state[: len(own), :longest]
        yield HiddenStates(indices, own, states, attention_mask[: len(own), :longest])


def infill_batch(
    model: Any, ids: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], segments: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Return rows with their positions and segments as arguments of an infill forward, on the model's device."""
    batch = pad_token_rows(ids, pad_token_id=pad_token_id(model))
    batch["position_ids"] = pad_token_rows(positions, pad_token_id=0)["input_ids"]
    batch["segment_ids"] = pad_token_rows(segments, pad_token_id=0)["input_ids"]
    return to_device(model, batch)


def target_logprobs(
    model: Any, batch: dict[str, torch.Tensor], targets: Sequence[tuple[int, int, int, int]], *, mode: AttentionMode
) -> list[float]:
    """Return the log-probabilities of tokens in one forward, with memory for the logits of a few of them.

    Args:
        model: One of our models.
        batch (`dict`): Arguments of the forward, on the model's device.
        targets (`Sequence[tuple[int, int, int, int]]`): Layer, row, position and token: the output at the position
            predicts the token. Tokens of one position are in different layers, numbered from 0.
        mode (`str`): Of the forward.
    """
    if not targets:
        return []
    layers, rows, columns, tokens = to_device(model, {"all": torch.tensor(targets).T.contiguous()})["all"]
    shape = (1 + max(target[0] for target in targets), *batch["input_ids"].shape)
    target_ids = torch.full(shape, IGNORE_INDEX, device=model.device)
    target_ids[layers, rows, columns] = tokens
    outputs = model(**batch, mode=mode, target_ids=target_ids, num_targets=len(targets), use_cache=False)
    found: list[float] = (-outputs.token_losses[layers, rows, columns]).tolist()
    return found
