"""Texts of a caller -> token rows: what is a text, where the prompt goes, what is cut."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .prompts_magnet import join_prompt

# Texts that a tokenizer is handed in one call.
TEXTS_AT_ONCE = 1024


def check_texts(texts: Any, *, name: str) -> list[str]:
    """A list of strings, or an error that names the first thing that is none.

    Any column of strings will do: a list, a tuple, an array, a column of a data set.

    Raises:
        ValueError: no sequence, something in it that is no string, or a string that is not Unicode text.
    """
    checked = items_of(texts, name=name)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise ValueError(
                f"`{name}[{index}]` is {type(text).__name__} ({text!r:.60}); expected a string. "
                "Convert it, or leave the row out."
            )
        check_is_unicode(text, name=f"{name}[{index}]")
    return checked


def items_of(column: Any, *, name: str) -> list[Any]:
    """What stands in a column of any kind, whatever its index.

    Raises:
        ValueError: it has no order, no length, or not one dimension: of a table, its column names would be read.
    """
    if isinstance(column, (dict, set, bytes)) or not hasattr(column, "__len__") or not hasattr(column, "__getitem__"):
        raise ValueError(f"`{name}` is {type(column).__name__}; expected a string or a list of strings.")
    is_array = isinstance(column, np.ndarray)
    dimensions = getattr(column, "ndim", 1)
    if dimensions == 0 or (dimensions > 1 and not is_array):
        raise ValueError(
            f"`{name}` is {type(column).__name__} of {dimensions} dimensions; expected a string or a list of strings. "
            "Pass one column of it, or `.item()` of a single string."
        )
    return column.tolist() if is_array else list(column)


def check_is_unicode(text: str, *, name: str) -> None:
    """Refuse half of a surrogate pair, which no tokenizer can read.

    Raises:
        ValueError: naming it and its place.
    """
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`{name}` has a lone surrogate {text[error.start]!r} at character {error.start}; expected Unicode text. "
            "Decode the source again, or replace it: text.encode('utf-8', 'replace').decode()."
        ) from error


def front_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """BOS, where the tokenizer has one."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, prompt: str | None, max_length: int
) -> list[list[int]]:
    """Token ids of `BOS prompt text EOS`; what is too long loses the text's end, never the EOS.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Needs an EOS token; BOS is put in front where there is one.
        texts (`Sequence[str]`): Any texts; an empty one is embedded as its prompt alone.
        prompt (`str`, *optional*): Put in front by `join_prompt`.
        max_length (`int`): Longest row in tokens, special tokens included, >= 3.

    Returns:
        `list[list[int]]`: one row per text, unpadded.

    Raises:
        ValueError: no EOS token, or no room for BOS, a token and EOS. See `check_room` for the prompt.
    """
    check_room(tokenizer, prompt=None, max_length=max_length)
    front = front_tokens(tokenizer)
    room = max_length - len(front) - 1
    rows: list[list[int]] = []
    # A tokenizer keeps far more of each text than its ids until the whole call is done.
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        ids = tokenizer(
            [join_prompt(prompt, text) for text in texts[start : start + TEXTS_AT_ONCE]],
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        rows += [front + row[:room] + [tokenizer.eos_token_id] for row in ids]
    return rows


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest row in tokens that model and tokenizer allow."""
    return int(min(config.max_position_embeddings, tokenizer.model_max_length))


def check_room(tokenizer: PreTrainedTokenizerBase, *, prompt: str | None, max_length: int) -> None:
    """Refuse a frame of BOS, prompt and EOS that leaves no room for a token of text: all texts would be alike.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the model.
        prompt (`str`, *optional*): As for `tokenize_texts`.
        max_length (`int`): Longest row in tokens.

    Raises:
        ValueError: no EOS token, a prompt that is no Unicode text, or no room.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no EOS token, whose output is the embedding. Set `tokenizer.eos_token`.")
    if max_length < 3:
        raise ValueError(f"`max_length` is {max_length}; expected at least 3 (BOS, one token, EOS).")
    if prompt:
        check_is_unicode(prompt, name="prompt")
        length = prompt_length(tokenizer, prompt)
        if length + 2 > max_length:
            raise ValueError(
                f"BOS and the prompt {prompt!r:.60} take {length} tokens of rows of {max_length}, which leaves no "
                "room for a token of text and EOS. Shorten the prompt, or raise `max_length` up to the context."
            )


def prompt_length(tokenizer: PreTrainedTokenizerBase, prompt: str | None) -> int:
    """How many tokens in front of a text are the prompt's, BOS included; 0 without a prompt.

    The prompt is counted alone, as sentence-transformers does: where its last space would join the first word's token,
    that token counts as the prompt's.
    """
    if not prompt:
        return 0
    ids = tokenizer(join_prompt(prompt, ""), add_special_tokens=False, verbose=False)["input_ids"]
    return len(front_tokens(tokenizer)) + len(ids)


__all__ = [
    "check_is_unicode",
    "check_room",
    "check_texts",
    "context_length",
    "front_tokens",
    "items_of",
    "prompt_length",
    "tokenize_texts",
]
