"""Greedy continuations of texts: left to right, or by models that fill masks, one appended mask after the other.

Nothing is sampled and nothing is forbidden: no penalty, no ban, whatever a model's generation config says.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from modeling_magnet.spans_magnet import decode_fill
from modeling_magnet.tokenization_magnet import (
    check_texts,
    context_length,
    front_tokens,
    pad_token_rows,
    read_texts,
    special_ids,
)

Reading = Literal["causal", "appended_masks", "masked"]
READINGS: tuple[Reading, ...] = get_args(Reading)


class Continuation(NamedTuple):
    """What was written after a text."""

    text: str
    token_ids: list[int]  # without the token that ended it
    has_ended: bool


class _Row(NamedTuple):
    """A text as tokens: what is read before the continuation, and special tokens that stay after it."""

    front: list[int]
    back: list[int]


@torch.no_grad()
def continue_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    reading: Reading = "causal",
    max_new_tokens: int,
    batch_size: int = 16,
) -> list[Continuation]:
    """Continue each text by the most likely token, again and again, up to an end of text.

    Reading `"causal"` is `generate`. The other two append a mask, put the most likely token in its place, and repeat,
    with attention in both directions: `"masked"` takes the output at the mask, before the tokens that close a text of
    such a model (`[SEP]`); `"appended_masks"` takes the output at the position before it, as MNTP trains it.

    Source: Khosla et al. 2025, section on repetition; generation by appended masks is the paper's for masked encoders.
    """
    if reading not in READINGS:
        raise ValueError(f"`reading` is {reading!r}; expected one of {list(READINGS)}.")
    rows = _token_rows(tokenizer, check_texts(texts, name="texts"), reading=reading)
    _check_room(model, tokenizer, rows, max_new_tokens=max_new_tokens)
    ends = _end_ids(model, tokenizer, reading=reading)
    continuations = []
    for start in tqdm(range(0, len(rows), batch_size), desc="continuing", unit="batch", leave=False):
        batch = rows[start : start + batch_size]
        if reading == "causal":
            written = _write_causally(model, tokenizer, batch, ends=ends, max_new_tokens=max_new_tokens)
        else:
            written = _write_into_masks(model, tokenizer, batch, ends=ends, max_new_tokens=max_new_tokens)
        continuations += [_finish(tokenizer, row, ids, ends) for row, ids in zip(batch, written, strict=True)]
    return continuations


def _mask_token_id(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the mask of one of our models, or of a masked language model."""
    settings = getattr(model, "magnet_settings", None)
    mask = tokenizer.mask_token_id if settings is None else settings.mask_token_id
    if mask is None:
        raise ValueError(
            f"{type(model).__name__} has no mask token to append. Name a model that was trained with one."
        )
    return int(mask)


def _token_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, reading: Reading) -> list[_Row]:
    """Return the texts in the frame of special tokens that the model knows."""
    if reading != "masked":
        return [_Row(front_tokens(tokenizer) + row, []) for row in read_texts(tokenizer, texts).input_ids]
    rows = []
    encoded = tokenizer(list(texts), return_special_tokens_mask=True, split_special_tokens=True, verbose=False)
    for framed, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        end = len(framed)
        while end and special[end - 1]:
            end -= 1
        rows.append(_Row(framed[:end], framed[end:]))
    return rows


def _end_ids(model: Any, tokenizer: PreTrainedTokenizerBase, *, reading: Reading) -> list[int]:
    """Return tokens that end a text; of a masked language model its separator, which follows every text."""
    if reading == "masked":
        known: Any = [tokenizer.sep_token_id, tokenizer.eos_token_id]
    else:
        known = getattr(model.generation_config, "eos_token_id", None)
        known = tokenizer.eos_token_id if known is None else known
    known = known if isinstance(known, Iterable) else [known]
    return sorted({int(token) for token in known if token is not None})


def _check_room(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[_Row], *, max_new_tokens: int) -> None:
    """Refuse texts whose continuation would run out of positions."""
    positions = context_length(model.config, tokenizer)
    longest = max((len(row.front) + len(row.back) for row in rows), default=0)
    if max_new_tokens < 1 or longest + max_new_tokens > positions:
        raise ValueError(
            f"`max_new_tokens` is {max_new_tokens}; expected 1 to {positions - longest}: the longest text has "
            f"{longest} tokens, the model {positions} positions."
        )


def _write_causally(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[_Row], *, ends: list[int], max_new_tokens: int
) -> list[list[int]]:
    """Return the new tokens of each row by greedy `generate`; padding follows an end of text."""
    pad = tokenizer.pad_token_id
    pad = (ends or [0])[0] if pad is None else pad
    batch = pad_token_rows([row.front for row in rows], pad_token_id=pad, padding_side="left")
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=pad
    )
    with _generation_config(model, settings):
        output = model.generate(**{name: tensor.to(model.device) for name, tensor in batch.items()})
    new: list[list[int]] = output[:, batch["input_ids"].shape[1] :].tolist()
    return new


@contextmanager
def _generation_config(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Take the place of the model's own: what a call leaves unset, `generate` takes from there, bans included."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


def _write_into_masks(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[_Row], *, ends: list[int], max_new_tokens: int
) -> list[list[int]]:
    """Return the new tokens of each row, one mask at a time; an end of text is the last of them."""
    mask = _mask_token_id(model, tokenizer)
    written: list[list[int]] = [[] for _ in rows]
    going_on = list(range(len(rows)))
    for _ in range(max_new_tokens):
        fronts = [rows[index].front + written[index] for index in going_on]
        padded = pad_token_rows(
            [front + [mask] + rows[index].back for front, index in zip(fronts, going_on, strict=True)],
            pad_token_id=mask,
        )
        tokens = _read_masks(model, padded, places=[len(front) for front in fronts])
        for index, token in zip(going_on, tokens, strict=True):
            written[index].append(token)
        going_on = [index for index in going_on if written[index][-1] not in ends]
        if not going_on:
            break
    return written


def _read_masks(model: Any, batch: dict[str, torch.Tensor], *, places: Sequence[int]) -> list[int]:
    """Return the most likely token of the mask of each row.

    Args:
        batch (`dict`): `input_ids` and `attention_mask` of shape `(B, S)`, padded on the right.
    """
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    rows = torch.arange(len(places), device=model.device)
    columns = torch.tensor(places, device=model.device)
    if hasattr(model, "magnet_settings"):
        asked = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        asked[rows, columns - 1] = True  # MNTP: the output at l predicts the token at l + 1
        logits = model(**batch, mode="bidirectional", logits_to_keep=asked).logits  # (B, V)
    else:
        logits = model(**batch).logits[rows, columns]
    tokens: list[int] = logits.argmax(-1).tolist()
    return tokens


def _finish(tokenizer: PreTrainedTokenizerBase, row: _Row, ids: list[int], ends: Sequence[int]) -> Continuation:
    """Cut off the end and what stands after it, and decode."""
    length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    special = special_ids(tokenizer)
    before, new = ([token for token in part if token not in special] for part in (row.front, ids[:length]))
    return Continuation(decode_fill(tokenizer, before, new), ids[:length], length < len(ids))


__all__ = ["READINGS", "Reading", "continue_texts"]
