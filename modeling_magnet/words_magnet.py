"""Embed every token or word of texts of any length, with its character offsets."""

import re
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from transformers.utils.logging import tqdm

from .batching_magnet import (
    ReadingMode,
    check_vectors,
    evaluating,
    hidden_states,
    is_progress_hidden,
    probe_attention,
    token_budget,
)
from .tokenization_magnet import bos_ids, check_choice, check_texts, join_prompt, longest_row, read_texts

Shift = Literal["next", "same"]
CharacterRanges = list[tuple[int, int]]


class OffsetVectors(NamedTuple):
    """Vectors of the tokens or words of one text, in order."""

    vectors: np.ndarray  # (n, hidden size), float32
    offsets: np.ndarray  # (n, 2), start and end in characters of the text


class Window(NamedTuple):
    """The range of tokens that the model reads at once, and the part of it whose states are kept."""

    start: int
    end: int
    keep_start: int
    keep_end: int


def plan_windows(
    length: int, *, size: int, shift: Shift = "next", mode: ReadingMode = "bidirectional"
) -> list[Window]:
    """Split a row of tokens into windows that overlap by a quarter; keep each token where it is farthest from an edge.

    Args:
        length, size (`int`): Tokens of the row and of a window. All windows are full, so the last two overlap more.
        shift, mode (`str`): As in `encode_tokens`.

    Returns:
        `list[Window]`: their kept parts are disjoint and cover the row.

    Example:

        >>> [tuple(window) for window in plan_windows(13, size=8)]
        [(0, 8, 0, 6), (5, 13, 6, 13)]
    """
    # With `shift="next"` the output before a token represents it. The first token that a later window keeps therefore
    # needs a token of text before it: the outputs of BOS and prompt do not depend on the preceding text.
    min_before = int(shift == "next")
    if size < 1 or (length > size and min_before >= size):
        raise ValueError(
            f"A text of {length} tokens cannot be read in windows of {size} with shift={shift!r}. Raise `max_length`, "
            "shorten the prompt, or pass shift='same'."
        )
    if length <= size:
        return [Window(0, length, 0, length)] if length else []
    overlap = max(size // 4, min_before)
    if mode == "causal":  # only preceding tokens are context, so the earlier window keeps the whole overlap
        min_before = overlap
    starts = [*range(0, length - size, size - overlap), length - size]
    # Neighbors overlap from `after`, the start of the second, to `before + size`, the end of the first. Cutting in the
    # middle keeps each token in the window with more context around it.
    cuts = [max((after + before + size) // 2, after + min_before) for before, after in pairwise(starts)]
    windows = zip(starts, [0, *cuts], [*cuts, length], strict=True)
    return [Window(start, start + size, first, last) for start, first, last in windows if first < last]


def owners_of_tokens(words: CharacterRanges, offsets: CharacterRanges, text: str) -> list[int]:
    """Find the word that contains most of each token's characters, excluding white space.

    Tokenizers differ in whether a token includes the space before its word, and some join punctuation with the
    following line break, so neither the first nor the last character of a token identifies its word.

    Args:
        words, offsets (`list[tuple[int, int]]`): Characters of each word, ascending and disjoint, and of each token.

    Returns:
        `list[int]`: index of each token's word, the later one in a tie; -1 for none.

    Example:

        >>> owners_of_tokens([(0, 4), (5, 6)], [(0, 3), (3, 5), (4, 5), (5, 6)], "end.\\nA")
        [0, 0, -1, 1]
    """
    shares = (_shares_of_token(words, token, text) for token in offsets)
    return [max(of_token)[1] if of_token else -1 for of_token in shares]


def _shares_of_token(words: CharacterRanges, token: tuple[int, int], text: str) -> CharacterRanges:
    """Return the number of characters that a token shares with a word, and the word's index, for each such word."""
    start, end = token
    shares = []
    index = bisect_right(words, start, key=lambda word: word[1])
    while index < len(words) and words[index][0] < end:
        size = len("".join(text[max(start, words[index][0]) : min(end, words[index][1])].split()))
        if size > 0:
            shares.append((size, index))
        index += 1
    return shares


@torch.no_grad()
def encode_tokens(
    model: Any,
    inputs: str | Sequence[str],
    *,
    prompt_name: str | None = None,
    prompt: str | None = "",
    shift: Shift = "next",
    mode: ReadingMode = "bidirectional",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    split_special_tokens: bool = True,
    show_progress_bar: bool | None = None,
) -> OffsetVectors | list[OffsetVectors]:
    """Embed every token of a text, in bidirectional mode by default, without an EOS.

    A text longer than the context is read in windows that overlap by a quarter and repeat BOS and prompt. A token's
    vector comes from the window in which it is farthest from an edge.

    Args:
        inputs (`str` or `list[str]`): Texts; an empty one has no tokens.
        prompt_name, prompt (`str`, *optional*): As in `encode`, but without a prompt by default, as in the paper's
            word tasks (`None` for the model's). Tokens of the prompt get no vectors unless they also contain text.
        shift (`str`, defaults to `"next"`): `"next"`: a token's vector is the output before it, which predicts it
            (the paper's choice; without BOS, the first token uses its own output). `"same"`: its own output.
        mode (`str`, defaults to `"bidirectional"`): Or `"causal"`, in which a token attends only to preceding tokens.
        max_length (`int`, *optional*): Tokens of a window, BOS and prompt included; defaults to the context length.
        batch_tokens, split_special_tokens, show_progress_bar: As in `encode`.

    Returns:
        `OffsetVectors`, or a list of them for a list: `vectors` `(num_tokens, hidden_size)` in float32, and `offsets`
        `(num_tokens, 2)` in characters of the text.

    Raises:
        ValueError: If an input is not text, an option is invalid, or windows have no space for text.
        RuntimeError: As in `encode`.

    Source: Khosla et al. 2025, section 4.1; BehnamGhader et al. 2024 (LLM2Vec) for the shift.
    """
    single = isinstance(inputs, str)
    texts = check_texts([inputs] if single else inputs, name="inputs")
    check_choice(shift, get_args(Shift), name="shift")
    check_choice(mode, get_args(ReadingMode), name="mode")
    given = None if prompt_name and not prompt else prompt
    prompt = model.magnet_settings.choose_prompt(prompt=given, prompt_name=prompt_name)
    reading: dict[str, Any] = {"shift": shift, "mode": mode}
    rows, offsets = _plan_rows(model, join_prompt(prompt, ""), texts, max_length, split_special_tokens, **reading)
    width = model.config.hidden_size
    outputs = [OffsetVectors(np.empty((len(of_text), width), np.float32), of_text) for of_text in offsets]
    if rows:
        hide = is_progress_hidden(show_progress_bar, len(rows))
        _read_rows(model, rows, outputs, batch_tokens=token_budget(model, batch_tokens), hide=hide, **reading)
    is_finite = torch.tensor([bool(np.isfinite(vectors).all()) for vectors, _ in outputs], dtype=torch.bool)
    check_vectors(model, is_finite, texts=texts, indices=range(len(texts)))
    return outputs[0] if single else outputs


class _Row(NamedTuple):
    """A window of a text as a row of tokens."""

    token_ids: list[int]
    text: int  # index of the text
    num_prefix: int  # tokens of BOS and prompt
    window: Window


def _plan_rows(
    model: Any, before: str, texts: list[str], max_length: int | None, split_special_tokens: bool, **reading: Any
) -> tuple[list[_Row], list[np.ndarray]]:
    """Tokenize texts, split them into windows after BOS and prompt, and return these rows and each text's offsets."""
    tokenizer = model.tokenizer
    longest, bos = longest_row(model.config, tokenizer, max_length), bos_ids(tokenizer)
    joined = [before + text for text in texts]
    tokenized = read_texts(tokenizer, joined, split_special_tokens=split_special_tokens, return_offsets=True)
    rows, offsets = [], []
    for text, (ids, spans) in enumerate(zip(*tokenized, strict=True)):
        # A token with the prompt's last space and the text's first letters counts as text.
        num_prompt = sum(end <= len(before) for _, end in spans) if before else 0
        prefix, text_ids = bos + ids[:num_prompt], ids[num_prompt:]
        in_text = np.array(spans[num_prompt:], dtype=np.int64).reshape(-1, 2) - len(before)
        offsets.append(np.maximum(in_text, 0))
        for window in plan_windows(len(text_ids), size=longest - len(prefix), **reading):
            rows.append(_Row(prefix + text_ids[window.start : window.end], text, len(prefix), window))
    return rows, offsets


def _read_rows(
    model: Any, rows: list[_Row], outputs: list[OffsetVectors], *, shift: Shift, hide: bool, **options: Any
) -> None:
    """Run the rows through the model, and write the vectors of each text's tokens."""
    probe_attention(model)
    ids = [row.token_ids for row in rows]
    with evaluating(model), tqdm(total=len(rows), desc="Encoding", unit="window", disable=hide) as bar:
        for batch in hidden_states(model, ids, batch_size=None, **options):
            states = batch.states.float().cpu().numpy()
            for index, row_states in zip(batch.indices, states, strict=True):
                _, text, num_prefix, window = rows[index]
                source = np.arange(window.keep_start, window.keep_end) - window.start + num_prefix
                if shift == "next":  # the first token of a text without BOS has no output before it
                    source = np.maximum(source - 1, 0)
                outputs[text].vectors[window.keep_start : window.keep_end] = row_states[source]
            bar.update(len(batch.indices))


def encode_words(model: Any, inputs: str | Sequence[str], **options: Any) -> OffsetVectors | list[OffsetVectors]:
    """Embed every word of a text by the mean of its tokens' vectors from `encode_tokens`.

    Words are separated by white space. A token belongs to the word that contains most of its characters, excluding
    white space. A word that shares all its tokens with neighbors to which they belong gets the mean of these tokens. A
    word that the tokenizer drops gets zeros, with a warning.

    Args:
        inputs (`str` or `list[str]`): Texts.
        options: As in `encode_tokens`.

    Returns:
        `OffsetVectors`, or a list of them for a list: `vectors` `(num_words, hidden_size)` in float32, and `offsets`
        `(num_words, 2)` in characters of the text.

    Raises:
        ValueError: As in `encode_tokens`.
        RuntimeError: As in `encode`.
    """
    single = isinstance(inputs, str)
    texts = check_texts([inputs] if single else inputs, name="inputs")
    words = [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]
    tokens: Any = encode_tokens(model, texts, **options)
    outputs, dropped = [], []
    for index, (of_text, spans, text) in enumerate(zip(tokens, words, texts, strict=True)):
        means = np.zeros((len(spans), model.config.hidden_size), dtype=np.float32)
        for word, of_word in enumerate(_tokens_of_words(spans, of_text.offsets.tolist(), text)):
            if of_word:
                means[word] = of_text.vectors[of_word].mean(axis=0)
            else:
                dropped.append(f"{text[slice(*spans[word])]!r:.40} of text {index}")
        outputs.append(OffsetVectors(means, np.array(spans, dtype=np.int64).reshape(-1, 2)))
    if dropped:
        warnings.warn(
            f"{len(dropped)} words have no token, because the tokenizer drops their characters, and get vectors of "
            f"zeros: {', '.join(dropped[:3])}{', ...' if len(dropped) > 3 else ''}. Remove them from the input.",
            stacklevel=2,
        )
    return outputs[0] if single else outputs


def _tokens_of_words(words: CharacterRanges, offsets: CharacterRanges, text: str) -> list[list[int]]:
    """Return the tokens that each word owns, or, if it owns none, the tokens that contain its characters."""
    tokens: list[list[int]] = [[] for _ in words]
    for token, owner in enumerate(owners_of_tokens(words, offsets, text)):
        if owner >= 0:
            tokens[owner].append(token)
    without = {word for word, of_word in enumerate(tokens) if not of_word}
    for token, span in enumerate(offsets if without else []):
        for _, word in _shares_of_token(words, span, text):
            if word in without:
                tokens[word].append(token)
    return tokens
