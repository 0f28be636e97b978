"""Texts -> one vector per token or per word, with its place in the text, for texts of any length."""

import inspect
import re
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from transformers.utils.logging import tqdm

from .encoding_magnet import (
    ReadingMode,
    check_reading_mode,
    check_whole_number,
    chosen_prompt,
    evaluating,
    hidden_states,
    hides_bar,
    longest_row,
    probe_attention,
    token_budget,
)
from .probe_magnet import check_vectors
from .tokenization_magnet import check_texts, front_tokens, items_of, join_prompt, read_texts

Shift = Literal["next", "same"]


class Window(NamedTuple):
    """A stretch of a row that the model reads at once, and the part of it whose states are kept."""

    start: int
    end: int
    keep_start: int
    keep_end: int


def plan_windows(length: int, *, size: int, overlap: int, context: int = 0) -> list[Window]:
    """Cut a row into overlapping windows, each token kept where it is farthest from an edge.

    Args:
        length, size, overlap (`int`): Tokens of the row, of a window, and those that two neighbours share (the last
            two share more, so that every window is full).
        context (`int`, defaults to 0): Tokens in front of what a later window keeps, at most `overlap`.

    Returns:
        `list[Window]`: their kept parts are disjoint and cover the row.

    Example:

        >>> [tuple(window) for window in plan_windows(10, size=6, overlap=2)]
        [(0, 6, 0, 5), (4, 10, 5, 10)]
        >>> [tuple(window) for window in plan_windows(9, size=5, overlap=1, context=1)]
        [(0, 5, 0, 5), (4, 9, 5, 9)]
    """
    starts = list(range(0, max(length - size, 0), size - overlap)) + [max(length - size, 0)]
    ends = [min(start + size, length) for start in starts]
    # Half of what two neighbours share goes to each.
    cuts = [max((start + end) // 2, start + context) for start, end in zip(starts[1:], ends, strict=False)]
    return [
        Window(*window)
        for window in zip(starts, ends, [0, *cuts], [*cuts, length], strict=True)
        if window[2] < window[3]
    ]


def windows_of_text(
    length: int,
    *,
    num_front: int,
    size: int,
    overlap: int | None,
    shift: Shift,
    mode: ReadingMode = "bidirectional",
) -> list[Window]:
    """Plan the windows in which a text of `length` tokens is read, `num_front` tokens of BOS and prompt before each.

    Args:
        size (`int`): Tokens of text that fit beside those.
        overlap (`int`, *optional*): Tokens two neighbours share; defaults to a quarter of `size`.
        shift (`str`): With `"next"` a token is represented by the output before it, so that at least one token of text
            must be in front of what a later window keeps: BOS and prompt know nothing of the text before.
        mode (`str`): In `"causal"` the tokens after one are of no use to it, so that the whole overlap is in front.

    Raises:
        ValueError: they do not fit, or their overlap does not.
    """
    if overlap is None:
        overlap = max(size, 0) // 4
    check_whole_number(overlap, name="window_overlap")
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(
            f"Windows of {size} tokens of text cannot overlap by {overlap}: `window_overlap` must be at least 0 and "
            f"less than a window. BOS and prompt take {num_front} tokens of each window; raise `max_length`, or "
            "shorten the overlap or the prompt."
        )
    context = int(shift == "next")
    if length > size and size <= context:
        raise ValueError(
            f"A text of {length} tokens does not fit into a window of {size}, in which no token has another in front, "
            "as shift='next' needs. Raise `max_length`, shorten the prompt, or pass shift='same'."
        )
    overlap = max(overlap, min(context, size - 1))
    context = overlap if mode == "causal" else context
    return plan_windows(length, size=size, overlap=overlap, context=context) if length else []


Spans = list[tuple[int, int]]


class PlacedVectors(NamedTuple):
    """Vectors of the tokens or words of one text, in its order."""

    vectors: np.ndarray  # (n, hidden size), float32
    offsets: np.ndarray  # (n, 2), characters start and end in the text


def owners_of_tokens(words: Spans, offsets: Spans, text: str | None = None) -> list[int]:
    """Find the word that holds most of each token's characters, white space of `text` not counted.

    Tokenizers differ in whether the space in front of a word belongs to its token, and some glue punctuation to the
    line break after it, so neither a token's first character nor its last one tells.

    Args:
        words, offsets (`list[tuple[int, int]]`): Characters of each word, ascending and disjoint, and of each token.

    Returns:
        `list[int]`: index of each token's word, the later one of two with as many characters; -1 for none.

    Example:

        >>> owners_of_tokens([(0, 3), (4, 7)], [(0, 2), (2, 3), (3, 4), (3, 7)])
        [0, 0, -1, 1]
        >>> owners_of_tokens([(0, 4), (5, 6)], [(0, 3), (3, 5), (5, 6)], "end.\\nA")
        [0, 0, 1]
    """
    owners = []
    for start, end in offsets:
        shares = shares_of_token(words, (start, end), text)
        # Of equal shares the last one counts.
        owners.append(max(reversed(shares), key=lambda share: share[1])[0] if shares else -1)
    return owners


def shares_of_token(words: Spans, token: tuple[int, int], text: str | None = None) -> list[tuple[int, int]]:
    """Return the indices of the words that have characters in a token, and how many."""
    start, end = token
    shares = []
    index = bisect_right(words, start, key=lambda word: word[1])
    while index < len(words) and words[index][0] < end:
        first, last = max(start, words[index][0]), min(end, words[index][1])
        size = last - first if text is None else len("".join(text[first:last].split()))
        if size > 0:
            shares.append((index, size))
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
    window_overlap: int | None = None,
    batch_tokens: int | None = None,
    split_special_tokens: bool = True,
    show_progress_bar: bool | None = None,
) -> PlacedVectors | list[PlacedVectors]:
    """Embed every token of a text, in bidirectional mode by default, without an EOS.

    A text beyond the context is read in windows that overlap; each repeats BOS and prompt, and a token's vector comes
    from the window in which it is farthest from an edge.

    Args:
        inputs (`str` or `list[str]`): Texts; an empty one has no tokens.
        prompt_name, prompt (`str`, *optional*): As in `encode`, but no prompt by default, as in the paper's word tasks
            (`None` for the model's). Its tokens get no vectors; one that also holds the text's first letters does.
        shift (`str`, defaults to `"next"`): `"next"`: a token is represented by the output before it, which predicts
            it (the paper's choice; without BOS, the first token by its own). `"same"`: by its own output.
        mode (`str`, defaults to `"bidirectional"`): Or `"causal"`, in which a token sees only what is before it.
        max_length (`int`, *optional*): Tokens of a window, BOS and prompt included; defaults to the context.
        window_overlap (`int`, *optional*): Tokens that two windows share; defaults to a quarter of their text.
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
    prompt = chosen_prompt(model, prompt=None if prompt_name and not prompt else prompt, prompt_name=prompt_name)
    rows = _plan_rows(model, texts, prompt, shift, mode, max_length, window_overlap, split_special_tokens)
    vectors = _read_rows(model, rows, shift, mode, token_budget(model, batch_tokens), show_progress_bar)
    is_finite = torch.tensor([bool(np.isfinite(of_text).all()) for of_text in vectors], dtype=torch.bool)
    check_vectors(model, is_finite, texts=texts, indices=range(len(texts)))
    found = [PlacedVectors(*pair) for pair in zip(vectors, (np.maximum(o, 0) for o in rows.offsets), strict=True)]
    return found[0] if single else found


_OPTIONS = inspect.signature(encode_tokens).parameters.keys() - {"model", "inputs"}


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
    for name in options.keys() - _OPTIONS:
        raise TypeError(f"encode_words() got an unexpected keyword argument {name!r}")
    single, texts, words = _texts_and_words(inputs, is_split_into_words=is_split_into_words)
    tokens: Any = encode_tokens(model, texts, **options)
    found, lost = [], []
    for index, (of_text, spans, text) in enumerate(zip(tokens, words, texts, strict=True)):
        vectors, without = _average(of_text, spans, text=text)
        found.append(vectors)
        lost += [f"{text[start:end]!r:.40} of text {index}" for start, end in without]
    if lost:
        warnings.warn(
            f"{len(lost)} words have no token, since the tokenizer drops their characters, and get vectors of "
            f"zeros: {', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}. Leave them out.",
            stacklevel=2,
        )
    return found[0] if single else found


class _Rows(NamedTuple):
    """Windows of texts as rows of tokens, and what becomes of their hidden states."""

    token_ids: list[list[int]]
    sources: list[tuple[int, int, Window]]  # text, tokens in front of it, window within it
    offsets: list[np.ndarray]  # of each text, (num_tokens, 2)


def _plan_rows(
    model: Any,
    texts: list[str],
    prompt: str | None,
    shift: Shift,
    mode: ReadingMode,
    max_length: int | None,
    overlap: int | None,
    split_special_tokens: bool,
) -> _Rows:
    """Tokenise texts and cut them into windows, each with BOS and prompt in front."""
    if not isinstance(shift, str) or shift not in ("next", "same"):
        raise ValueError(f"`shift` is {shift!r}; expected 'next' (the output before a token) or 'same'.")
    check_reading_mode(mode)
    before = join_prompt(prompt, "")
    rows = _Rows([], [], [])
    encoded = read_texts(
        model.tokenizer,
        [before + text for text in texts],
        split_special_tokens=split_special_tokens,
        return_offsets=True,
    )
    for number, (ids, spans) in enumerate(zip(*encoded, strict=True)):
        # A token that holds the prompt's last space and the first letters is the text's.
        num_prompt = sum(end <= len(before) for _, end in spans) if before else 0
        front = front_tokens(model.tokenizer) + ids[:num_prompt]
        own = ids[num_prompt:]
        rows.offsets.append(np.array(spans[num_prompt:], dtype=np.int64).reshape(-1, 2) - len(before))
        size = longest_row(model, max_length) - len(front)
        windows = windows_of_text(len(own), num_front=len(front), size=size, overlap=overlap, shift=shift, mode=mode)
        for window in windows:
            rows.token_ids.append(front + own[window.start : window.end])
            rows.sources.append((number, len(front), window))
    return rows


def _read_rows(
    model: Any,
    rows: _Rows,
    shift: Shift,
    mode: ReadingMode,
    batch_tokens: int,
    show_progress_bar: bool | None,
) -> list[np.ndarray]:
    """Return the vectors `(num_tokens, H)` of the tokens of each text."""
    vectors = [np.empty((len(offsets), model.config.hidden_size), dtype=np.float32) for offsets in rows.offsets]
    if not vectors:
        return []
    probe_attention(model)
    number = len(rows.token_ids)
    hide = hides_bar(show_progress_bar, number)
    with evaluating(model), tqdm(total=number, desc="Encoding", unit="window", disable=hide) as bar:
        for batch in hidden_states(model, rows.token_ids, batch_tokens=batch_tokens, batch_size=None, mode=mode):
            states = batch.states.float().cpu().numpy()
            for index, row_states in zip(batch.indices, states, strict=True):
                text, num_front, window = rows.sources[index]
                place = np.arange(window.keep_start, window.keep_end) - window.start + num_front
                # Only the first token of a text can have nothing in front of it.
                read = np.maximum(place - 1, 0) if shift == "next" else place
                vectors[text][window.keep_start : window.keep_end] = row_states[read]
            bar.update(len(batch.indices))
    return vectors


def _texts_and_words(inputs: Any, *, is_split_into_words: bool) -> tuple[bool, list[str], list[Spans]]:
    """Return whether one text was given, the texts, and the characters of each one's words."""
    given = [inputs] if isinstance(inputs, str) else items_of(inputs, name="inputs")
    if is_split_into_words:
        single = not isinstance(inputs, str) and bool(given) and isinstance(given[0], str)
        sentences = [given] if single else given
        checked = [_check_words(words, index=index) for index, words in enumerate(sentences)]
        return single, [" ".join(row) for row in checked], [_word_spans(row) for row in checked]
    if any(isinstance(text, (list, tuple)) for text in given):
        raise ValueError("`inputs` holds lists of words; expected texts. Pass `is_split_into_words=True`.")
    texts = check_texts(given, name="inputs")
    words = [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]
    return isinstance(inputs, str), texts, words


def _check_words(words: Any, *, index: int) -> list[str]:
    """Return the words of one text, none of them empty."""
    if isinstance(words, str):
        raise ValueError(f"Text {index} is a string ({words!r:.60}); expected a list of words. Split it.")
    checked = check_texts(words, name=f"inputs[{index}]")
    if not checked or not all(word.strip() for word in checked):
        raise ValueError(f"Text {index} is empty or has an empty word: {checked!r:.80}. Leave it out.")
    return checked


def _word_spans(words: list[str]) -> Spans:
    """Characters of each word in the words joined by spaces."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]


def _average(tokens: PlacedVectors, words: Spans, *, text: str) -> tuple[PlacedVectors, Spans]:
    """Vectors of words from those of their tokens, and the words that have none."""
    offsets = tokens.offsets.tolist()
    owners = owners_of_tokens(words, offsets, text)
    of_word: list[list[int]] = [[] for _ in words]
    for token, owner in enumerate(owners):
        if owner >= 0:
            of_word[owner].append(token)
    if not all(of_word):
        _share_tokens(of_word, words, offsets, text)
    means = np.zeros((len(words), tokens.vectors.shape[1]), dtype=np.float32)
    for word, own in enumerate(of_word):
        if own:
            means[word] = tokens.vectors[own].mean(axis=0)
    without = [span for span, own in zip(words, of_word, strict=True) if not own]
    return PlacedVectors(means, np.array(words, dtype=np.int64).reshape(-1, 2)), without


def _share_tokens(of_word: list[list[int]], words: Spans, offsets: Spans, text: str) -> None:
    """Give words without a token of their own those of their neighbours that hold their characters."""
    without = {word for word, own in enumerate(of_word) if not own}
    for token, place in enumerate(offsets):
        for word, _ in shares_of_token(words, place, text):
            if word in without:
                of_word[word].append(token)


__all__ = [
    "PlacedVectors",
    "Shift",
    "Window",
    "owners_of_tokens",
    "plan_windows",
    "shares_of_token",
    "windows_of_text",
]
