"""Tokenize texts and batch the rows: prompts, special tokens, truncation and padding."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

DEFAULT_PROMPT = "Given the sentence, find its representation: "

# The paper's instructions, under names of MTEB tasks or task types, by which its evaluators select them.
# Source: Khosla et al. 2025, Table 8.
PAPER_PROMPTS = {
    "STS": "Retrieve semantically similar text: ",
    "BiorxivClusteringP2P": "Identify the main category of Biorxiv papers based on the titles and abstracts: ",
    "BiorxivClusteringS2S": "Identify the main category of Biorxiv papers based on the titles: ",
    "MedrxivClusteringP2P": "Identify the main category of Medrxiv papers based on the titles and abstracts: ",
    "MedrxivClusteringS2S": "Identify the main category of Medrxiv papers based on the titles: ",
    "TwentyNewsgroupsClustering": "Identify the topic or theme of the given news articles: ",
}
# Texts per call of the tokenizer, which until it returns needs far more memory for each text than the ids.
TEXTS_AT_ONCE = 1024


def default_prompts() -> dict[str, str]:
    """Return the prompts of a new checkpoint: that of the contrastive training, and those of the paper's tasks."""
    return {"sentence": DEFAULT_PROMPT, **PAPER_PROMPTS}


def join_prompt(prompt: str | None, text: str) -> str:
    """Join prompt and text, with a colon and a space between them unless the prompt ends in a colon or white space.

    Example:

        >>> join_prompt("Retrieve semantically similar text", "A cat.")
        'Retrieve semantically similar text: A cat.'
    """
    if not prompt or prompt[-1].isspace():
        return (prompt or "") + text
    return f"{prompt} {text}" if prompt.endswith(":") else f"{prompt}: {text}"


def choose_prompt(settings: Any, *, prompt: str | None, prompt_name: str | None) -> str | None:
    """Return the prompt of a call: `prompt` (`""` for none), else the stored prompt of that name, else the default.

    Raises:
        ValueError: If both were passed, the prompt is not a Unicode string, or the name is unknown.
    """
    if prompt is not None and prompt_name is not None:
        raise ValueError(f"Both prompt={prompt!r} and prompt_name={prompt_name!r} were passed. Choose one.")
    if prompt is not None:
        check_text(prompt, name="prompt")
        return prompt
    name, stored = settings.default_prompt_name if prompt_name is None else prompt_name, settings.prompts
    if name is not None and (not isinstance(name, str) or name not in stored):
        raise ValueError(f"`prompt_name` is {name!r:.60}; the model stores {sorted(stored)}. Or pass `prompt=`.")
    return None if name is None else stored[name]


def check_texts(texts: Any, *, name: str) -> list[str]:
    """Convert a column of strings (a list, an array, a column of a data set) to a list; raise for other items."""
    checked = items_of(texts, name=name)
    for index, text in enumerate(checked):
        check_text(text, name=f"{name}[{index}]")
    return checked


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
    """Return a list of BOS, or an empty list if the tokenizer has none."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


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
    read = ReadTexts(encoded["input_ids"], encoded["offset_mapping"] if return_offsets else [])
    if not split_special_tokens:
        return read
    special, unknown = special_ids(tokenizer), {tokenizer.unk_token_id}
    with_control = [
        index
        for index, (text, ids) in enumerate(zip(texts, read.input_ids, strict=True))
        # The unknown token can also stem from an unknown character.
        if (in_text := special.intersection(ids)) and (in_text != unknown or str(tokenizer.unk_token) in text)
    ]
    if with_control:
        encoded = _splitter(tokenizer)([texts[index] for index in with_control], **options)
        for number, index in enumerate(with_control):
            read.input_ids[index] = encoded["input_ids"][number]
            if return_offsets:
                read.offsets[index] = encoded["offset_mapping"][number]
    return read


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


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    prompt: str | None,
    max_length: int,
    split_special_tokens: bool = True,
    lost: list[int] | None = None,
) -> list[list[int]]:
    """Tokenize each text to a row `BOS prompt text EOS`, and truncate the text to `max_length`.

    Args:
        max_length (`int`): Longest row in tokens, special tokens included, >= 3.
        lost (`list[int]`, *optional*): Receives the number of tokens removed from each truncated text.
    """
    check_room(tokenizer, prompt=None, max_length=max_length)
    bos = bos_ids(tokenizer)
    space = max_length - len(bos) - 1
    rows: list[list[int]] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        joined = [join_prompt(prompt, text) for text in texts[start : start + TEXTS_AT_ONCE]]
        ids = read_texts(tokenizer, joined, split_special_tokens=split_special_tokens).input_ids
        rows += [bos + row[:space] + [tokenizer.eos_token_id] for row in ids]
        if lost is not None:
            lost += [len(row) - space for row in ids if len(row) > space]
    return rows


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the length in tokens of the longest row that model and tokenizer support."""
    return int(min(config.max_position_embeddings, tokenizer.model_max_length))


def longest_row(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """Return `max_length` after checking it, or the context length by default."""
    context = context_length(config, tokenizer)
    if max_length is None:
        return context
    check_whole_number(max_length, name="max_length", least=1, most=context)
    return max_length


def check_whole_number(value: Any, *, name: str, least: int, most: int | None = None) -> None:
    """Raise unless a value is a whole number from `least` to `most`; `True` and `False` are not numbers here."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"`{name}` is {value!r:.60}; expected a whole number {limit}.")


def check_room(
    tokenizer: PreTrainedTokenizerBase, *, prompt: str | None, max_length: int, split_special_tokens: bool = True
) -> int:
    """Return the length of the prompt; raise if it leaves no space for text, because all embeddings would be equal."""
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no EOS token, whose state is the embedding. Set `tokenizer.eos_token`.")
    if max_length < 3:
        raise ValueError(f"`max_length` is {max_length}; expected at least 3 (BOS, one token, EOS).")
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
