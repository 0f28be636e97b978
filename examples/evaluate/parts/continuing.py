"""Continue texts greedily from left to right.

The generation config of a model is ignored: no sampling, no penalty, and no forbidden tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from modeling_magnet.spans_magnet import decode_fill
from modeling_magnet.tokenization_magnet import (
    bos_ids,
    check_texts,
    context_length,
    pad_token_rows,
    read_texts,
    special_ids,
)


class Continuation(NamedTuple):
    """The text written after a prefix."""

    text: str
    token_ids: list[int]  # without the token that ended it
    has_ended: bool


@torch.no_grad()
def continue_texts(
    model: Any, texts: Sequence[str], *, max_new_tokens: int, batch_size: int = 16
) -> list[Continuation]:
    """Continue each text with the most likely tokens up to an end of text.

    Source: Khosla et al. 2025, section on repetition.
    """
    tokenizer = model.tokenizer
    rows = [bos_ids(tokenizer) + row for row in read_texts(tokenizer, check_texts(texts, name="texts")).input_ids]
    positions, longest = context_length(model.config, tokenizer), max(map(len, rows), default=0)
    if longest + max_new_tokens > positions:
        raise ValueError(
            f"`max_new_tokens` is {max_new_tokens}; expected 1 to {positions - longest}: the longest text has "
            f"{longest} tokens, the model {positions} positions."
        )
    known: Any = model.generation_config.eos_token_id
    known = tokenizer.eos_token_id if known is None else known
    ends = [int(token) for token in (known if isinstance(known, Iterable) else [known]) if token is not None]
    pad = (ends or [0])[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=pad
    )
    continuations = []
    for start in tqdm(range(0, len(rows), batch_size), desc="continuing", unit="batch", leave=False):
        batch = rows[start : start + batch_size]
        padded = pad_token_rows(batch, pad_token_id=pad, padding_side="left")
        with _generation_config(model, settings):
            output = model.generate(**{name: tensor.to(model.device) for name, tensor in padded.items()})
        written = output[:, padded["input_ids"].shape[1] :].tolist()
        continuations += [_finish(tokenizer, row, ids, ends) for row, ids in zip(batch, written, strict=True)]
    return continuations


@contextmanager
def _generation_config(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Return a config that replaces the model's own, from which `generate` would take unset values, bans included."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


def _finish(tokenizer: Any, row: Sequence[int], ids: list[int], ends: Sequence[int]) -> Continuation:
    """Remove the end of text and the padding after it, and decode."""
    length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    special = special_ids(tokenizer)
    before, new = ([token for token in part if token not in special] for part in (row, ids[:length]))
    return Continuation(decode_fill(tokenizer, before, new), ids[:length], length < len(ids))
