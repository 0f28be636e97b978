"""Texts -> rows of tokens -> batches: prompts, special tokens, truncation, padding and packing."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

DEFAULT_PROMPT = "Given the sentence, find its representation: "

# The paper's instructions under the names of their MTEB tasks, where its evaluators look for them: first under the
# task's own name, then under its type. Source: Khosla et al. 2025, Table 8.
PAPER_PROMPTS = {
    "STS": "Retrieve semantically similar text: ",
    "BiorxivClusteringP2P": "Identify the main category of Biorxiv papers based on the titles and abstracts: ",
    "BiorxivClusteringS2S": "Identify the main category of Biorxiv papers based on the titles: ",
    "MedrxivClusteringP2P": "Identify the main category of Medrxiv papers based on the titles and abstracts: ",
    "MedrxivClusteringS2S": "Identify the main category of Medrxiv papers based on the titles: ",
    "TwentyNewsgroupsClustering": "Identify the topic or theme of the given news articles: ",
}


def default_prompts() -> dict[str, str]:
    """Return what a new checkpoint stores: the prompt of the contrastive training, and the paper's for its tasks."""
    return {"sentence": DEFAULT_PROMPT, **PAPER_PROMPTS}


def join_prompt(prompt: str | None, text: str) -> str:
    """Join prompt and text before tokenising.

    A prompt that ends in white space is used as it is; otherwise a colon is added where there is none, and a space.

    Example:

        >>> join_prompt("Retrieve semantically similar text", "A cat.")
        'Retrieve semantically similar text: A cat.'
        >>> join_prompt(None, "A cat.")
        'A cat.'
    """
    if not prompt:
        return text
    if prompt[-1].isspace():
        return prompt + text
    return f"{prompt} {text}" if prompt.endswith(":") else f"{prompt}: {text}"


def choose_prompt(
    stored: Mapping[str, str], *, prompt: str | None, prompt_name: str | None, default_prompt_name: str | None
) -> str | None:
    """Return the prompt of a call: given (`""` for none), named among the stored ones, or the default.

    Raises:
        ValueError: both were given, one is not a string, or the name is unknown.

    Example:

        >>> choose_prompt({"query": "Find: "}, prompt=None, prompt_name="query", default_prompt_name=None)
        'Find: '
    """
    if prompt is not None and prompt_name is not None:
        raise ValueError(f"Both prompt={prompt!r} and prompt_name={prompt_name!r} were given. Choose one.")
    if prompt is not None:
        if not isinstance(prompt, str):
            raise ValueError(f"`prompt` is {type(prompt).__name__} ({prompt!r:.60}); expected a string, '' for none.")
        return prompt
    name = default_prompt_name if prompt_name is None else prompt_name
    if name is None:
        return None
    if not isinstance(name, str):
        raise ValueError(f"`prompt_name` is {type(name).__name__} ({name!r:.60}); expected one of {sorted(stored)}.")
    if name not in stored:
        lowered = {stored_name.lower(): stored_name for stored_name in stored}
        close = get_close_matches(name.lower(), lowered, n=1)
        hint = f"Did you mean {lowered[close[0]]!r}? " if close else ""
        raise ValueError(f"No prompt is named {name!r}; the model stores {sorted(stored)}. {hint}Or pass `prompt=`.")
    return stored[name]


class _Known(NamedTuple):
    """What was read of a tokenizer."""

    named: tuple[int, ...]  # BOS, EOS and their like
    size: int  # of the vocabulary; tokens that are added later have ids from here on
    ids: frozenset[int]


# `len(tokenizer)` and the list of added tokens take milliseconds where the vocabulary is large.
_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, _Known] = WeakKeyDictionary()


def special_ids(tokenizer: PreTrainedTokenizerBase, among: Iterable[int] | None = None) -> frozenset[int]:
    """Return the ids of all special tokens: the named ones and every added token that is flagged as special.

    `all_special_ids` holds only BOS, EOS and their like; chat marks and reserved tokens are flagged in
    `added_tokens_decoder`, 6,249 of them in Gemma's. `among` are the ids that are looked for; without them the size of
    the vocabulary is read again, to find tokens that were added since the last call.
    """
    known, named = _KNOWN.get(tokenizer), tuple(tokenizer.all_special_ids)
    newest = None if known is None else len(tokenizer) - 1 if among is None else max(among, default=0)
    if known is None or newest is None or known.named != named or newest >= known.size:
        flagged = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
        known = _KNOWN[tokenizer] = _Known(named, len(tokenizer), frozenset((*flagged, *named)))
    return known.ids


def plan_batches(
    lengths: Sequence[int], *, max_tokens: int, max_rows: int | None = None, padded: bool = True
) -> list[list[int]]:
    """Group rows so that no batch holds more than `max_tokens` (padding included, if `padded`) or `max_rows` rows.

    Rows of like length come together, the longest first: what cannot fit into memory fails at once. A row that is
    longer than the budget makes a batch of its own.

    Returns:
        `list[list[int]]`: indices of rows; each occurs once.

    Example:

        >>> plan_batches([3, 9, 2, 3, 8], max_tokens=18)
        [[1, 4], [0, 3, 2]]
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    used = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        # The first row of a batch is its longest: all others are padded to it.
        needed = (len(batch) + 1) * lengths[batch[0]] if padded and batch else used + lengths[index]
        if batch and (needed > max_tokens or len(batch) == max_rows):
            batches.append(batch)
            batch, used = [], 0
        batch.append(index)
        used += lengths[index]
    return [*batches, batch] if batch else batches


def pad_token_rows(
    rows: Sequence[Sequence[int]], *, pad_token_id: int, padding_side: str = "right", width: int | None = None
) -> dict[str, torch.Tensor]:
    """Pad token rows to one batch, `width` or the longest row wide.

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


class PackedRows(NamedTuple):
    """Rows packed into one row of L tokens, with padding only at its end."""

    input_ids: torch.Tensor  # (1, L)
    position_ids: torch.Tensor  # (1, L): from 0 in each row
    row_ids: torch.Tensor  # (1, L): which row a token belongs to; one number more for padding


def pack_token_rows(rows: Sequence[Sequence[int]], *, pad_token_id: int, multiple: int) -> PackedRows:
    """Pack token rows into one row of L tokens, a multiple of `multiple`.

    Example:

        >>> packed = pack_token_rows([[1, 5, 2], [1, 2]], pad_token_id=0, multiple=4)
        >>> packed.input_ids.tolist(), packed.position_ids.tolist(), packed.row_ids.tolist()
        ([[1, 5, 2, 1, 2, 0, 0, 0]], [[0, 1, 2, 0, 1, 0, 1, 2]], [[0, 0, 0, 1, 1, 2, 2, 2]])
    """
    lengths = [len(row) for row in rows]
    lengths.append(-sum(lengths) % multiple)
    ids = torch.tensor([token for row in rows for token in row] + [pad_token_id] * lengths[-1])
    positions = torch.cat([torch.arange(length) for length in lengths])
    row_ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return PackedRows(ids[None], positions[None], row_ids[None])


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
    """Return a column of strings (a list, a tuple, an array, a column of a data set) as a list.

    Raises:
        ValueError: naming the first item that is not a Unicode string, or a column that is not a sequence.
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
    """Return the items of a column of any kind.

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
    """Refuse half of a surrogate pair, which no tokenizer can read."""
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
    """Return BOS, where the tokenizer has one."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def read_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    split_special_tokens: bool = True,
    return_offsets: bool = False,
) -> ReadTexts:
    """Tokenise texts without BOS and EOS, and without writing to the tokenizer, which threads share.

    Args:
        split_special_tokens (`bool`, defaults to `True`): Read control tokens in a text, such as `</s>`, as plain
            characters; `False` reads them as control tokens.
        return_offsets (`bool`, defaults to `False`): Also return the characters of each token; needs a fast tokenizer.

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
    """Return the token ids of one text, as `read_texts` reads it; none for an empty text."""
    if not text:
        return []
    return read_texts(tokenizer, [text], split_special_tokens=split_special_tokens).input_ids[0]


def _is_typed(tokenizer: PreTrainedTokenizerBase, text: str, found: frozenset[int]) -> bool:
    """Return whether a row's control tokens are in its text; the unknown token may be an unknown character."""
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
    """Return the token ids of `BOS prompt text EOS`, one row for each text; a text that is too long loses its end.

    Args:
        max_length (`int`): Longest row in tokens, special tokens included, >= 3.
        lost (`list[int]`, *optional*): Takes, for each text that was cut, how many tokens it lost.

    Raises:
        ValueError: no EOS token, or no space for BOS, a token and EOS. See `check_room` for the prompt.
    """
    check_room(tokenizer, prompt=None, max_length=max_length)
    front = front_tokens(tokenizer)
    space = max_length - len(front) - 1
    rows: list[list[int]] = []
    # A tokenizer keeps far more of each text than its ids until the whole call is done.
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        joined = [join_prompt(prompt, text) for text in texts[start : start + TEXTS_AT_ONCE]]
        ids = read_texts(tokenizer, joined, split_special_tokens=split_special_tokens).input_ids
        rows += [front + row[:space] + [tokenizer.eos_token_id] for row in ids]
        if lost is not None:
            lost += [len(row) - space for row in ids if len(row) > space]
    return rows


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the longest row in tokens that model and tokenizer allow."""
    return int(min(config.max_position_embeddings, tokenizer.model_max_length))


def check_room(
    tokenizer: PreTrainedTokenizerBase, *, prompt: str | None, max_length: int, split_special_tokens: bool = True
) -> None:
    """Refuse a BOS, prompt and EOS that leave no space for a token of text: all embeddings would be alike."""
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

    The prompt is tokenised without a text, as in sentence-transformers: where its last space would join the first
    word's token, that token counts as the prompt's.
    """
    if not prompt:
        return 0
    ids = text_ids(tokenizer, join_prompt(prompt, ""), split_special_tokens=split_special_tokens)
    return len(front_tokens(tokenizer)) + len(ids)


__all__ = [
    "DEFAULT_PROMPT",
    "PAPER_PROMPTS",
    "PackedRows",
    "ReadTexts",
    "check_is_unicode",
    "check_room",
    "check_texts",
    "choose_prompt",
    "context_length",
    "default_prompts",
    "front_tokens",
    "items_of",
    "join_prompt",
    "pack_token_rows",
    "pad_token_rows",
    "plan_batches",
    "prompt_length",
    "read_texts",
    "special_ids",
    "text_ids",
    "tokenize_texts",
]
