"""Tokenize texts and batch the rows: prompts, special tokens, truncation and padding."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

# BOS, a token of text and EOS.
SHORTEST_ROW = 3
MASK_TOKEN_CANDIDATES = ("_", "▁_", "<0x5F>")
# During a call, the tokenizer needs far more memory per text than the ids that it returns.
TEXTS_PER_TOKENIZER_CALL = 1024


def join_prompt(prompt: str | None, text: str) -> str:
    """Join prompt and text, with a colon and a space between them unless the prompt ends in a colon or white space.

    Example:

        >>> join_prompt("Retrieve semantically similar text", "A cat.")
        'Retrieve semantically similar text: A cat.'
    """
    if not prompt or prompt[-1].isspace():
        return (prompt or "") + text
    return f"{prompt} {text}" if prompt.endswith(":") else f"{prompt}: {text}"


def check_texts(texts: Any, *, name: str) -> list[str]:
    """Convert a column of strings (a list, an array, a column of a data set) to a list; raise for other items."""
    checked = items_of(texts, name=name)
    for index, text in enumerate(checked):
        check_text(text, name=f"{name}[{index}]")
    return checked


def check_pairs(prefix: Any, suffix: Any) -> tuple[bool, list[str], list[str]]:
    """Return whether both arguments are strings, and the lists of prefixes and suffixes.

    Raises:
        ValueError: If one is a string and the other a list, if the lists differ in length, or if an item is not text.
    """
    single = isinstance(prefix, str) and isinstance(suffix, str)
    prefixes = check_texts([prefix] if isinstance(prefix, str) else prefix, name="prefix")
    suffixes = check_texts([suffix] if isinstance(suffix, str) else suffix, name="suffix")
    if len(prefixes) != len(suffixes) or isinstance(prefix, str) != isinstance(suffix, str):
        raise ValueError(
            f"`prefix` is a {type(prefix).__name__} of length {len(prefixes)}, `suffix` is a {type(suffix).__name__} "
            f"of length {len(suffixes)}. Pass two strings, or two lists of the same length."
        )
    return single, prefixes, suffixes


def check_text(text: Any, *, name: str) -> None:
    """Raise unless a text is a string without lone surrogates, which no tokenizer can read."""
    try:
        str.encode(text)
    except (TypeError, UnicodeEncodeError) as error:
        raise ValueError(
            f"`{name}` is {type(text).__name__} ({text!r:.60}); expected a string of Unicode text ({error}). Convert "
            "it, or replace a lone surrogate: text.encode('utf-8', 'replace').decode()."
        ) from error


def items_of(column: Any, *, name: str) -> list[Any]:
    """Convert a column of any kind to a list; raise for other objects."""
    items = column.tolist() if hasattr(column, "tolist") else column
    is_table = hasattr(items, "columns")  # iterating it would yield the names of its columns
    if is_table or isinstance(items, (str, bytes, dict, set)) or not hasattr(items, "__len__"):
        raise ValueError(f"`{name}` is {type(column).__name__} ({column!r:.60}); expected a list of strings.")
    return list(items)


@dataclass
class _TokenizerCache:
    """Cached properties of a tokenizer; collecting them takes 30 ms with a large vocabulary."""

    state: tuple[list[int], int]  # `all_special_ids` and the vocabulary size, which change if tokens are added
    special: frozenset[int]
    splitter: PreTrainedTokenizerBase | None = None  # reads control tokens as text; copied when first needed


_CACHES: WeakKeyDictionary[PreTrainedTokenizerBase, _TokenizerCache] = WeakKeyDictionary()


def _cache_of(tokenizer: PreTrainedTokenizerBase) -> _TokenizerCache:
    """Return the cached properties of a tokenizer, and update them if it changed."""
    known, state = _CACHES.get(tokenizer), (tokenizer.all_special_ids, len(tokenizer))
    if known is None or known.state != state:
        # `all_special_ids` lacks chat markers and reserved tokens: 6,249 of them in Gemma's tokenizer.
        flagged = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
        known = _CACHES[tokenizer] = _TokenizerCache(state, frozenset((*flagged, *state[0])))
    return known


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all special tokens, including every added token that is flagged as special."""
    return _cache_of(tokenizer).special


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return `[bos_token_id]`, or `[]` if the tokenizer has no BOS token."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def resolve_mask_token(tokenizer: PreTrainedTokenizerBase, mask_token: str | None = None) -> tuple[str, int]:
    """Return the mask token and its id: the requested token, the tokenizer's own mask token, or an underscore.

    The paper uses `_` for Llama 2 (section 4.1); other vocabularies spell it differently.

    Raises:
        ValueError: If no candidate is a single token other than `<unk>`.
    """
    defaults = (
        MASK_TOKEN_CANDIDATES if tokenizer.mask_token is None else (tokenizer.mask_token, *MASK_TOKEN_CANDIDATES)
    )
    candidates = defaults if mask_token is None else (mask_token,)
    for token in candidates:
        token_id = tokenizer.convert_tokens_to_ids(token)
        if isinstance(token_id, int) and token_id >= 0 and token_id != tokenizer.unk_token_id:
            return token, token_id
    raise ValueError(
        f"No mask token: none of {list(candidates)} is a single token of this vocabulary of {len(tokenizer)} (the "
        "unknown token does not count). Pass a rare token of the vocabulary as `mask_token`."
    )


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise a `ValueError` if the tokenizer has ids beyond the embedding matrix."""
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, but the model embeds {vocab_size}. Pass the model's own "
            "tokenizer; if you added tokens to it, call `model.resize_token_embeddings(len(tokenizer))` first."
        )


class ReadTexts(NamedTuple):
    """Tokens of several texts, without BOS and EOS."""

    input_ids: list[list[int]]
    offsets: list[list[tuple[int, int]]]  # start and end of each token in characters; empty unless requested


def read_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    split_special_tokens: bool = True,
    return_offsets: bool = False,
) -> ReadTexts:
    """Tokenize texts without BOS and EOS, and without writing to the tokenizer, which threads share.

    Args:
        split_special_tokens (`bool`, defaults to `True`): Read control tokens in a text, such as `</s>`, as text.
        return_offsets (`bool`, defaults to `False`): Also return offsets; requires a fast tokenizer.
    """
    if not len(texts):
        return ReadTexts([], [])
    options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    if return_offsets:
        options["return_offsets_mapping"] = True
    if not split_special_tokens:
        options["split_special_tokens"] = False
    encoded = tokenizer(list(texts), **options)
    output = ReadTexts(encoded["input_ids"], encoded["offset_mapping"] if return_offsets else [])
    if not split_special_tokens:
        return output
    special, unknown = special_ids(tokenizer), {tokenizer.unk_token_id}
    with_control = [
        index
        for index, (text, ids) in enumerate(zip(texts, output.input_ids, strict=True))
        # The unknown token can also stem from an unknown character.
        if (in_text := special.intersection(ids)) and (in_text != unknown or str(tokenizer.unk_token) in text)
    ]
    if with_control:
        encoded = _splitter(tokenizer)([texts[index] for index in with_control], **options)
        for number, index in enumerate(with_control):
            output.input_ids[index] = encoded["input_ids"][number]
            if return_offsets:
                output.offsets[index] = encoded["offset_mapping"][number]
    return output


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, split_special_tokens: bool = True) -> list[int]:
    """Tokenize one text as `read_texts` does."""
    return read_texts(tokenizer, [text], split_special_tokens=split_special_tokens).input_ids[0] if text else []


def _splitter(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of the tokenizer that reads control tokens as text."""
    known = _cache_of(tokenizer)
    if known.splitter is None:
        splitter = copy.deepcopy(tokenizer)
        splitter.split_special_tokens = True
        if isinstance(splitter, PreTrainedTokenizerFast):  # set now; the first call would set it, maybe in two threads
            splitter.backend_tokenizer.encode_special_tokens = True
        known.splitter = splitter
    return known.splitter


class TextRows(NamedTuple):
    """Rows `BOS prompt text EOS` of several texts."""

    input_ids: list[list[int]]
    num_removed: list[int]  # tokens of each text that truncation removed


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    prompt: str | None,
    max_length: int,
    split_special_tokens: bool = True,
) -> TextRows:
    """Tokenize each text to a row `BOS prompt text EOS`, and truncate the text to `max_length`.

    Args:
        max_length (`int`): Longest row in tokens, special tokens included, >= 3.
    """
    _check_row_length(tokenizer, max_length)
    bos = bos_ids(tokenizer)
    space = max_length - len(bos) - 1
    output = TextRows([], [])
    for start in range(0, len(texts), TEXTS_PER_TOKENIZER_CALL):
        joined = [join_prompt(prompt, text) for text in texts[start : start + TEXTS_PER_TOKENIZER_CALL]]
        ids = read_texts(tokenizer, joined, split_special_tokens=split_special_tokens).input_ids
        output.input_ids.extend(bos + row[:space] + [tokenizer.eos_token_id] for row in ids)
        output.num_removed.extend(max(0, len(row) - space) for row in ids)
    return output


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the length in tokens of the longest row that model and tokenizer support."""
    return int(min(config.max_position_embeddings, tokenizer.model_max_length))


def longest_row(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """Return `max_length` after checking it, or the context length by default."""
    context = context_length(config, tokenizer)
    if max_length is None:
        return context
    check_whole_number(max_length, name="max_length", minimum=1, maximum=context)
    return max_length


def check_choice(value: Any, choices: Sequence[Any], *, name: str) -> None:
    """Raise unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r:.60}; expected one of {list(choices)}.")


def check_whole_number(value: Any, *, name: str, minimum: int, maximum: int | None = None) -> None:
    """Raise unless a value is a whole number from `minimum` to `maximum`; `True` and `False` are not numbers here."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < minimum or (maximum is not None and value > maximum):
        limit = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ValueError(f"`{name}` is {value!r:.60}; expected a whole number {limit}.")


def _check_row_length(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raise unless a row has space for BOS, a token of text and EOS."""
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no EOS token, whose state is the embedding. Set `tokenizer.eos_token`.")
    if max_length < SHORTEST_ROW:
        raise ValueError(f"`max_length` is {max_length}; expected at least {SHORTEST_ROW} (BOS, one token, EOS).")


def checked_prompt_length(
    tokenizer: PreTrainedTokenizerBase, *, prompt: str | None, max_length: int, split_special_tokens: bool = True
) -> int:
    """Return `prompt_length`; raise if it leaves no space for text and EOS, because all embeddings would be equal."""
    _check_row_length(tokenizer, max_length)
    length = prompt_length(tokenizer, prompt, split_special_tokens=split_special_tokens)
    if length and length + 2 > max_length:
        raise ValueError(
            f"BOS and the prompt {prompt!r:.60} take {length} of {max_length} tokens, which leaves no room for a "
            "token of text and EOS. Shorten the prompt, or raise `max_length` up to the context length."
        )
    return length


def prompt_length(tokenizer: PreTrainedTokenizerBase, prompt: str | None, *, split_special_tokens: bool = True) -> int:
    """Count the tokens of BOS and prompt; 0 without a prompt.

    The prompt is tokenized without a text, as in sentence-transformers. If its last space would become part of the
    first word's token, that token therefore counts as part of the prompt.
    """
    if not prompt:
        return 0
    ids = text_ids(tokenizer, join_prompt(prompt, ""), split_special_tokens=split_special_tokens)
    return len(bos_ids(tokenizer)) + len(ids)


def pad_token_rows(
    rows: Sequence[Sequence[int]], *, pad_token_id: int, padding_side: str = "right", width: int | None = None
) -> dict[str, torch.Tensor]:
    """Pad token rows to `width` or the length of the longest row.

    Returns:
        `dict`: `input_ids` and `attention_mask`, both `torch.LongTensor` of shape `(len(rows), width)`.

    Example:

        >>> pad_token_rows([[1, 5, 2], [1, 2]], pad_token_id=0)["input_ids"].tolist()
        [[1, 5, 2], [1, 2, 0]]
    """
    width = width or max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        cells = slice(0, len(row)) if padding_side == "right" else slice(width - len(row), width)
        input_ids[index, cells] = torch.tensor(row, dtype=torch.long)
        attention_mask[index, cells] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
