"""Run rows of token ids through a model in batches, after a check that its attention follows the modes.

Shapes: B rows of a batch, S tokens of the longest, H hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import transformers

from .attention_magnet import takes_float_masks
from .tokenization_magnet import bos_ids, check_tokenizer_fits, check_whole_number, pad_token_rows

# Tokens per forward. On a CPU their states should fit its caches; an accelerator needs more tokens to be fully used.
CPU_BATCH_TOKENS = 2048
ACCELERATOR_BATCH_TOKENS = 16_384
# In bfloat16 on a CPU, the shape of a matrix product selects the kernel and so the order of its sums. Over 18 layers
# this leads to a cosine of 0.994 between the vectors of a text alone and in a batch. All shapes with at least
# this many positions, in rows of 16 or a multiple of 32, use the same order (torch 2.13, AMX).
MIN_BFLOAT16_POSITIONS = 1024
BFLOAT16_ROWS = (16, 32)
# A progress bar over fewer texts would only flicker. Infilling runs many forwards per batch, so it counts batches.
PROGRESS_FROM_TEXTS = 1000
PROGRESS_FROM_BATCHES = 8

# Tokens of any vocabulary; special tokens work as well.
PROBE_IDS = (3, 7, 4, 9, 5, 8)
NUM_KEPT = 3
# Equal rows of one batch may differ in their last bits.
NOISE_FACTOR = 10

_REMEDY = (
    "Either the weights are damaged (check the checkpoint for NaN), or the states overflow in this dtype (load the "
    "model with dtype='bfloat16' or dtype='float32')."
)

ReadingMode = Literal["bidirectional", "causal"]


def is_progress_hidden(show_progress_bar: bool | None, number: int, *, minimum: int = PROGRESS_FROM_TEXTS) -> bool:
    """Return whether to hide the progress bar over `number` texts or batches."""
    return number < minimum if show_progress_bar is None else not show_progress_bar


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
            check_whole_number(value, name=name, minimum=1)
    default = CPU_BATCH_TOKENS if model.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS
    return default if batch_tokens is None else batch_tokens


def pad_token_id(model: Any) -> int:
    """Return the token that pads a batch: PAD, else EOS, else 0. No token attends to it.

    Raises:
        ValueError: If the tokenizer has tokens for which the model has no embeddings.
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


def plan_batches(lengths: Sequence[int], *, max_tokens: int, max_rows: int | None = None) -> list[list[int]]:
    """Group rows into batches of at most `max_tokens` tokens, padding included, and at most `max_rows` rows.

    Rows are sorted by length, the longest first, so that a batch that does not fit into memory fails at once. A row
    longer than `max_tokens` is a batch by itself.

    Returns:
        `list[list[int]]`: indices of the rows of each batch; each row occurs once.

    Example:

        >>> plan_batches([3, 9, 2, 3, 8], max_tokens=18)
        [[1, 4], [0, 3, 2]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        batch = batches[-1] if batches else []
        # The first row of a batch is its longest, and all others are padded to it.
        if not batch or (len(batch) + 1) * lengths[batch[0]] > max_tokens or len(batch) == max_rows:
            batches.append([])
        batches[-1].append(index)
    return batches


def even_shape(longest: int, num_rows: int) -> tuple[int, int]:
    """Return the padded width and row count that make bfloat16 results independent of the batch.

    Example:

        >>> even_shape(5, 2), even_shape(20, 40), even_shape(600, 1)
        ((16, 64), (32, 40), (608, 2))
    """
    small, multiple = BFLOAT16_ROWS
    width = small if longest <= small else -(-longest // multiple) * multiple
    return width, max(num_rows, -(-MIN_BFLOAT16_POSITIONS // width))


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
        batch_tokens, batch_size (`int`): Maximum number of tokens, padding included, and of rows per forward.
        mode (`str`): Attention mode.
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


# --- Checks of the model, not of its input.


def probe_attention(model: Any) -> None:
    """Call `check_attention` once for each back-end, device and dtype with which a model is used."""
    used_with = (str(model.config._attn_implementation), model.device.type, str(model.dtype))
    if used_with not in model._probed:
        check_attention(model)
        model._probed.add(used_with)


@torch.no_grad()
def check_attention(model: Any) -> None:
    """Check with two short forwards that later tokens change earlier hidden states in bidirectional mode only.

    The batch contains a row, the same row with other tokens at its end, and the first row again, which measures the
    rounding noise of the back-end. Rows begin with BOS like real texts, because its state is the first to overflow.

    Raises:
        RuntimeError: If a mode attends to too many or too few tokens, or hidden states are not finite.
    """
    vocab_size = model.config.vocab_size
    ids = torch.tensor([PROBE_IDS] * 3) % vocab_size
    ids[1, NUM_KEPT:] = (ids[1, NUM_KEPT:] + 1) % vocab_size
    try:
        front = bos_ids(model.tokenizer)
    except ValueError:  # a model without a tokenizer
        front = []
    ids = torch.cat([torch.tensor([front] * 3, dtype=torch.long), ids], dim=1).to(model.device)
    moved, noise = {}, {}
    for mode in ("bidirectional", "causal"):  # a back-end without bidirectional attention raises
        outputs = model(ids, mode=mode, use_cache=False, logits_to_keep=torch.arange(0))
        kept = outputs.last_hidden_state[:, : len(front) + NUM_KEPT]
        if not kept.isfinite().all():
            raise RuntimeError(f"The model's hidden states are not finite, with {_used_with(model)}. {_REMEDY}")
        moved[mode], noise[mode] = (float((kept[row] - kept[0]).abs().max()) for row in (1, 2))
    complaints = []
    if not moved["bidirectional"] > NOISE_FACTOR * noise["bidirectional"]:
        complaints.append("bidirectional mode does not see later tokens: embeddings would silently be causal")
    if moved["causal"] > NOISE_FACTOR * noise["causal"] and moved["causal"] > 0.01 * moved["bidirectional"]:
        complaints.append("causal mode sees later tokens: generation would silently be wrong")
    if complaints:
        raise RuntimeError(
            f"The attention back-end does not implement the requested mode, with {_used_with(model)}: "
            f"{'; '.join(complaints)} (hidden states moved by {moved}, noise {noise}). Choose another back-end with "
            "`model.set_attn_implementation(...)` or other versions, and report this error."
        )


def check_vectors(model: Any, is_finite: torch.Tensor, *, texts: Sequence[str], indices: Sequence[int]) -> None:
    """Raise a RuntimeError that names the first texts whose vectors are not finite. Synchronizes with the device once.

    Args:
        is_finite (`torch.BoolTensor` of shape `(N,)`): Whether all vectors of a text are finite.
        texts (`Sequence[str]`): All texts of the call.
        indices (`Sequence[int]`): The N texts that were embedded.
    """
    if bool(is_finite.all()):
        return
    wrong = sorted(index for index, fine in zip(indices, is_finite.tolist(), strict=True) if not fine)
    named = ", ".join(f"{index} ({texts[index]!r:.40})" for index in wrong[:3]) + (", ..." if len(wrong) > 3 else "")
    raise RuntimeError(
        f"The vectors of {len(wrong)} of {len(indices)} texts are not finite: texts {named}, with "
        f"{_used_with(model)}. {_REMEDY}"
    )


def _used_with(model: Any) -> str:
    """Describe back-end, device, dtype and versions for an error message."""
    return (
        f"attn_implementation={model.config._attn_implementation!r} on {model.device.type} in {model.dtype}, "
        f"transformers {transformers.__version__}, torch {torch.__version__}"
    )
