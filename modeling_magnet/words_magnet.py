"""Texts -> one vector per token or per word, with its place in the text, for texts of any length."""

import re
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from transformers.utils.logging import tqdm

from .batching_magnet import ReadingMode, evaluating, hidden_states, is_progress_hidden, token_budget
from .pooling_magnet import check_choice
from .probe_magnet import check_vectors, probe_attention
from .tokenization_magnet import (
    bos_ids,
    check_texts,
    choose_prompt,
    items_of,
    join_prompt,
    longest_row,
    read_texts,
)

Shift = Literal["next", "same"]
Spans = list[tuple[int, int]]


class PlacedVectors(NamedTuple):
    """Vectors of the tokens or words of one text, in its order."""

    vectors: np.ndarray  # (n, hidden size), float32
    offsets: np.ndarray  # (n, 2), characters start and end in the text


class Window(NamedTuple):
    """A stretch of a row that the model reads at once, and the part of it whose states are kept."""

    start: int
    end: int
    keep_start: int
    keep_end: int


def plan_windows(
    length: int, *, size: int, shift: Shift = "next", mode: ReadingMode = "bidirectional"
) -> list[Window]:
    """Cut a row of tokens into windows that share a quarter, each token kept where it is farthest from an edge.

    Args:
        length, size (`int`): Tokens of the row and of a window; the last two share more, so that every window is full.
        shift (`str`): With `"next"` a token is represented by the output before it, so that at least one token of text
            must be in front of what a later window keeps: BOS and prompt know nothing of the text before.
        mode (`str`): In `"causal"` the tokens after one are of no use to it, so that the whole overlap is in front.

    Returns:
        `list[Window]`: their kept parts are disjoint and cover the row.

    Example:

        >>> [tuple(window) for window in plan_windows(13, size=8)]
        [(0, 8, 0, 6), (5, 13, 6, 13)]
    """
    in_front = int(shift == "next")
    if size < 1 or (length > size and in_front >= size):
        raise ValueError(
            f"A text of {length} tokens cannot be read in windows of {size} with shift={shift!r}. Raise `max_length`, "
            "shorten the prompt, or pass shift='same'."
        )
    if length <= size:
        return [Window(0, length, 0, length)] if length else []
    overlap = max(size // 4, in_front)
    if mode == "causal":
        in_front = overlap
    starts = [*range(0, length - size, size - overlap), length - size]
    # Half of what two neighbours share goes to each.
    cuts = [max((after + before + size) // 2, after + in_front) for before, after in pairwise(starts)]
    windows = zip(starts, [0, *cuts], [*cuts, length], strict=True)
    return [Window(start, start + size, first, last) for start, first, last in windows if first < last]


def owners_of_tokens(words: Spans, offsets: Spans, text: str) -> list[int]:
    """Find the word that holds most of each token's characters, white space of `text` not counted.

    Tokenizers differ in whether the space in front of a word belongs to its token, and some glue punctuation to the
    line break after it, so neither a token's first character nor its last one tells.

    Args:
        words, offsets (`list[tuple[int, int]]`): Characters of each word, ascending and disjoint, and of each token.

    Returns:
        `list[int]`: index of each token's word, the later one of two with as many characters; -1 for none.

    Example:

        >>> owners_of_tokens([(0, 4), (5, 6)], [(0, 3), (3, 5), (4, 5), (5, 6)], "end.\\nA")
        [0, 0, -1, 1]
    """
    shares = [_shares_of_token(words, token, text) for token in offsets]
    return [max(found)[1] if found else -1 for found in shares]


def _shares_of_token(words: Spans, token: tuple[int, int], text: str) -> Spans:
    """Return how many characters of a token are in a word, and the word's index, for each word that has some."""
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
) -> PlacedVectors | list[PlacedVectors]:
    """Embed every token of a text, in bidirectional mode by default, without an EOS.

    A text beyond the context is read in windows that share a quarter; each repeats BOS and prompt, and a token's
    vector comes from the window in which it is farthest from an edge.

    Args:
        inputs (`str` or `list[str]`): Texts; an empty one has no tokens.
        prompt_name, prompt (`str`, *optional*): As in `encode`, but no prompt by default, as in the paper's word tasks
            (`None` for the model's). Its tokens get no vectors; one that also holds the text's first letters does.
        shift (`str`, defaults to `"next"`): `"next"`: a token is represented by the output before it, which predicts
            it (the paper's choice; without BOS, the first token by its own). `"same"`: by its own output.
        mode (`str`, defaults to `"bidirectional"`): Or `"causal"`, in which a token sees only what is before it.
        max_length (`int`, *optional*): Tokens of a window, BOS and prompt included; defaults to the context.
        batch_tokens, split_special_tokens, show_progress_bar: As in `encode`.

    Returns:
        `PlacedVectors`, or a list of them for a list: `vectors` `(num_tokens, hidden_size)` in float32, and `offsets`
        `(num_tokens, 2)` in characters of the text.

    Raises:
        ValueError: an input that is not text, an invalid option, or windows without space for text.
        RuntimeError: as `encode`.

    Source: Khosla et al. 2025, section 4.1; BehnamGhader et al. 2024 (LLM2Vec) for the shift.
    """
    single = isinstance(inputs, str)
    texts = check_texts([inputs] if single else inputs, name="inputs")
    check_choice(shift, get_args(Shift), name="shift")
    check_choice(mode, get_args(ReadingMode), name="mode")
    given = None if prompt_name and not prompt else prompt
    prompt = choose_prompt(model.magnet_settings, prompt=given, prompt_name=prompt_name)
    windows: dict[str, Any] = {"shift": shift, "mode": mode}
    rows, offsets = _plan_rows(model, join_prompt(prompt, ""), texts, max_length, split_special_tokens, windows)
    found = [PlacedVectors(np.empty((len(own), model.config.hidden_size), np.float32), own) for own in offsets]
    if rows:
        _read_rows(model, rows, found, shift, mode, token_budget(model, batch_tokens), show_progress_bar)
    is_finite = torch.tensor([bool(np.isfinite(vectors).all()) for vectors, _ in found], dtype=torch.bool)
    check_vectors(model, is_finite, texts=texts, indices=range(len(texts)))
    return found[0] if single else found


class _Row(NamedTuple):
    """A window of a text as a row of tokens."""

    token_ids: list[int]
    text: int  # index of the text
    num_front: int  # tokens of BOS and prompt
    window: Window


def _plan_rows(
    model: Any,
    before: str,
    texts: list[str],
    max_length: int | None,
    split_special_tokens: bool,
    windows: dict[str, Any],
) -> tuple[list[_Row], list[np.ndarray]]:
    """Tokenise texts and cut them into windows, each with BOS and prompt in front; return each text's offsets, too."""
    tokenizer = model.tokenizer
    longest, bos = longest_row(model.config, tokenizer, max_length), bos_ids(tokenizer)
    joined = [before + text for text in texts]
    read = read_texts(tokenizer, joined, split_special_tokens=split_special_tokens, return_offsets=True)
    rows, offsets = [], []
    for text, (ids, spans) in enumerate(zip(*read, strict=True)):
        # A token that holds the prompt's last space and the first letters is the text's.
        num_prompt = sum(end <= len(before) for _, end in spans) if before else 0
        front, own = bos + ids[:num_prompt], ids[num_prompt:]
        places = np.array(spans[num_prompt:], dtype=np.int64).reshape(-1, 2) - len(before)
        offsets.append(np.maximum(places, 0))
        for window in plan_windows(len(own), size=longest - len(front), **windows):
            rows.append(_Row(front + own[window.start : window.end], text, len(front), window))
    return rows, offsets


def _read_rows(
    model: Any,
    rows: list[_Row],
    found: list[PlacedVectors],
    shift: Shift,
    mode: ReadingMode,
    batch_tokens: int,
    show_progress_bar: bool | None,
) -> None:
    """Fill in the vectors of the tokens of each text."""
    probe_attention(model)
    hide = is_progress_hidden(show_progress_bar, len(rows))
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "batch_size": None, "mode": mode}
    with evaluating(model), tqdm(total=len(rows), desc="Encoding", unit="window", disable=hide) as bar:
        for batch in hidden_states(model, [row.token_ids for row in rows], **options):
            states = batch.states.float().cpu().numpy()
            for index, row_states in zip(batch.indices, states, strict=True):
                _, text, num_front, window = rows[index]
                place = np.arange(window.keep_start, window.keep_end) - window.start + num_front
                # Only the first token of a text can have nothing in front of it.
                source = np.maximum(place - 1, 0) if shift == "next" else place
                found[text].vectors[window.keep_start : window.keep_end] = row_states[source]
            bar.update(len(batch.indices))


def encode_words(
    model: Any,
    inputs: str | Sequence[str] | Sequence[Sequence[str]],
    *,
    is_split_into_words: bool = False,
    **options: Any,
) -> PlacedVectors | list[PlacedVectors]:
    """Embed every word of a text: the mean over its tokens, as `encode_tokens` embeds them.

    A token belongs to the word that holds most of its characters, white space not counted; a token of white space
    belongs to no word. A word whose characters are all in tokens of its neighbours is the mean of those tokens; one
    that the tokenizer drops is zeros, and a warning names it.

    Args:
        inputs (`str`, `list[str]` or `list[list[str]]`): Texts, whose words are separated by white space; or with
            `is_split_into_words` the words of one text (`list[str]`) or of several, joined by one space.
        is_split_into_words (`bool`, defaults to `False`): Whether the caller has split the texts.
        options: Those of `encode_tokens`.

    Returns:
        `PlacedVectors`, or a list of them for several texts: `vectors` `(num_words, hidden_size)` in float32, and
        `offsets` `(num_words, 2)` in characters of the text or of the joined words.

    Raises:
        ValueError: as `encode_tokens`; an empty word.
        RuntimeError: as `encode`.
    """
    if is_split_into_words:
        given = items_of(inputs, name="inputs")
        single = bool(given) and isinstance(given[0], str)
        split = [_check_words(words, index) for index, words in enumerate([given] if single else given)]
        texts, words = [" ".join(row) for row in split], [_joined_spans(row) for row in split]
    else:
        single = isinstance(inputs, str)
        texts = check_texts([inputs] if single else inputs, name="inputs")
        words = [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]
    tokens: Any = encode_tokens(model, texts, **options)
    found, lost = [], []
    for index, (of_text, spans, text) in enumerate(zip(tokens, words, texts, strict=True)):
        means = np.zeros((len(spans), model.config.hidden_size), dtype=np.float32)
        for word, own in enumerate(_tokens_of_words(spans, of_text.offsets.tolist(), text)):
            if own:
                means[word] = of_text.vectors[own].mean(axis=0)
            else:
                lost.append(f"{text[slice(*spans[word])]!r:.40} of text {index}")
        found.append(PlacedVectors(means, np.array(spans, dtype=np.int64).reshape(-1, 2)))
    if lost:
        warnings.warn(
            f"{len(lost)} words have no token, since the tokenizer drops their characters, and get vectors of "
            f"zeros: {', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}. Leave them out.",
            stacklevel=2,
        )
    return found[0] if single else found


def _check_words(words: Any, index: int) -> list[str]:
    """Return the words of one text, none of them empty."""
    checked = check_texts(words, name=f"inputs[{index}]")
    if not checked or not all(word.strip() for word in checked):
        raise ValueError(f"`inputs[{index}]` is empty or has an empty word: {checked!r:.80}. Leave it out.")
    return checked


def _joined_spans(words: list[str]) -> Spans:
    """Return the characters of each word in the words joined by spaces."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]


def _tokens_of_words(words: Spans, offsets: Spans, text: str) -> list[list[int]]:
    """Return the tokens whose mean each word is; a word without one of its own has those that hold its characters."""
    found: list[list[int]] = [[] for _ in words]
    for token, owner in enumerate(owners_of_tokens(words, offsets, text)):
        if owner >= 0:
            found[owner].append(token)
    without = {word for word, own in enumerate(found) if not own}
    for token, place in enumerate(offsets if without else []):
        for _, word in _shares_of_token(words, place, text):
            if word in without:
                found[word].append(token)
    return found
