"""Texts of a caller -> token rows: what is a text, where the prompt goes, what is cut.

Text is text: a control token that a user or a corpus typed, such as `</s>` or `<unk>`, is read as its characters.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .prompts_magnet import join_prompt
from .special_tokens_magnet import special_ids

# Texts that a tokenizer is handed in one call.
TEXTS_AT_ONCE = 1024


class ReadTexts(NamedTuple):
    """Tokens of several texts, without BOS and EOS."""

    input_ids: list[list[int]]
    offsets: list[list[tuple[int, int]]]  # characters start and end of each token; empty unless asked for


# A copy of a tokenizer that reads control tokens as text, made when the first one is typed.
_SPLITTERS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[frozenset[int], int], PreTrainedTokenizerBase]] = (
    WeakKeyDictionary()
)


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


def read_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    split_special_tokens: bool = True,
    return_offsets: bool = False,
) -> ReadTexts:
    """Tokenise texts without adding BOS or EOS.

    The tokenizer is never written to: its own switch for this holds for all threads that share it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Any tokenizer.
        texts (`Sequence[str]`): Any texts.
        split_special_tokens (`bool`, defaults to `True`): Read control tokens that stand in a text, such as `</s>`, as
            the characters they are written with; `False` reads them as control tokens.
        return_offsets (`bool`, defaults to `False`): Also return the characters of each token; needs a fast tokenizer.

    Returns:
        `ReadTexts`: one row of ids, and of offsets, per text.

    Raises:
        ValueError: `split_special_tokens` is neither `True` nor `False`.
    """
    if not isinstance(split_special_tokens, bool):
        raise ValueError(f"`split_special_tokens` is {split_special_tokens!r:.60}; expected True or False.")
    if not len(texts):
        return ReadTexts([], [])
    options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    if return_offsets:
        options["return_offsets_mapping"] = True
    if not split_special_tokens:
        options["split_special_tokens"] = False
    encoded = tokenizer(list(texts), **options)
    read = ReadTexts(encoded["input_ids"], encoded["offset_mapping"] if return_offsets else [])
    if split_special_tokens:
        special = special_ids(tokenizer, (max(ids, default=0) for ids in read.input_ids))
        typed = [
            index
            for index, ids in enumerate(read.input_ids)
            if not special.isdisjoint(ids) and _is_typed(tokenizer, texts[index], special.intersection(ids))
        ]
        if typed:
            again = _splitter(tokenizer, special)([texts[index] for index in typed], **options)
            for number, index in enumerate(typed):
                read.input_ids[index] = again["input_ids"][number]
                if return_offsets:
                    read.offsets[index] = again["offset_mapping"][number]
    return read


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, split_special_tokens: bool = True) -> list[int]:
    """Token ids of one text, as `read_texts` reads it; none for an empty text.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Any tokenizer.
        text (`str`): Any text.
        split_special_tokens (`bool`, defaults to `True`): See `read_texts`.
    """
    if not text:
        return []
    return read_texts(tokenizer, [text], split_special_tokens=split_special_tokens).input_ids[0]


def _is_typed(tokenizer: PreTrainedTokenizerBase, text: str, found: frozenset[int]) -> bool:
    """Whether control tokens of a row stand in its text; the unknown token may be a character that is not known."""
    return found != {tokenizer.unk_token_id} or str(tokenizer.unk_token) in text


def _splitter(tokenizer: PreTrainedTokenizerBase, special: frozenset[int]) -> PreTrainedTokenizerBase:
    """Return a copy of the tokenizer that reads control tokens as text."""
    state = (special, len(tokenizer))
    known = _SPLITTERS.get(tokenizer)
    if known is None or known[0] != state:
        splitter = copy.deepcopy(tokenizer)
        splitter.split_special_tokens = True
        if isinstance(splitter, PreTrainedTokenizerFast):  # else the first call sets it, maybe in several threads
            splitter.backend_tokenizer.encode_special_tokens = True
        known = _SPLITTERS[tokenizer] = (state, splitter)
    return known[1]


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    prompt: str | None,
    max_length: int,
    split_special_tokens: bool = True,
    lost: list[int] | None = None,
) -> list[list[int]]:
    """Token ids of `BOS prompt text EOS`; what is too long loses the text's end, never the EOS.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Needs an EOS token; BOS is put in front where there is one.
        texts (`Sequence[str]`): Any texts; an empty one is embedded as its prompt alone.
        prompt (`str`, *optional*): Put in front by `join_prompt`.
        max_length (`int`): Longest row in tokens, special tokens included, >= 3.
        split_special_tokens (`bool`, defaults to `True`): See `read_texts`; holds for the prompt, too.
        lost (`list[int]`, *optional*): Takes, for each text that was cut, how many tokens it lost.

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
        joined = [join_prompt(prompt, text) for text in texts[start : start + TEXTS_AT_ONCE]]
        ids = read_texts(tokenizer, joined, split_special_tokens=split_special_tokens).input_ids
        rows += [front + row[:room] + [tokenizer.eos_token_id] for row in ids]
        if lost is not None:
            lost += [len(row) - room for row in ids if len(row) > room]
    return rows


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest row in tokens that model and tokenizer allow."""
    return int(min(config.max_position_embeddings, tokenizer.model_max_length))


def check_room(
    tokenizer: PreTrainedTokenizerBase, *, prompt: str | None, max_length: int, split_special_tokens: bool = True
) -> None:
    """Refuse a frame of BOS, prompt and EOS that leaves no room for a token of text: all texts would be alike.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the model.
        prompt (`str`, *optional*): As for `tokenize_texts`.
        max_length (`int`): Longest row in tokens.
        split_special_tokens (`bool`, defaults to `True`): As for `tokenize_texts`.

    Raises:
        ValueError: no EOS token, a prompt that is no Unicode text, or no room.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no EOS token, whose output is the embedding. Set `tokenizer.eos_token`.")
    if max_length < 3:
        raise ValueError(f"`max_length` is {max_length}; expected at least 3 (BOS, one token, EOS).")
    if prompt:
        check_is_unicode(prompt, name="prompt")
        length = prompt_length(tokenizer, prompt, split_special_tokens=split_special_tokens)
        if length + 2 > max_length:
            raise ValueError(
                f"BOS and the prompt {prompt!r:.60} take {length} tokens of rows of {max_length}, which leaves no "
                "room for a token of text and EOS. Shorten the prompt, or raise `max_length` up to the context."
            )


def prompt_length(tokenizer: PreTrainedTokenizerBase, prompt: str | None, *, split_special_tokens: bool = True) -> int:
    """Count the tokens in front of a text that are the prompt's, BOS included; 0 without a prompt.

    The prompt is counted alone, as sentence-transformers does: where its last space would join the first word's token,
    that token counts as the prompt's.
    """
    if not prompt:
        return 0
    ids = text_ids(tokenizer, join_prompt(prompt, ""), split_special_tokens=split_special_tokens)
    return len(front_tokens(tokenizer)) + len(ids)


__all__ = [
    "ReadTexts",
    "check_is_unicode",
    "check_room",
    "check_texts",
    "context_length",
    "front_tokens",
    "items_of",
    "prompt_length",
    "read_texts",
    "text_ids",
    "tokenize_texts",
]
