"""Texts -> one vector per token or per word, with its place in the text, whatever the length of the text."""

import re
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.utils.logging import tqdm

from .encoding_magnet import EncodingMixin, hides_bar
from .probe_magnet import check_vectors
from .prompts_magnet import join_prompt
from .states_magnet import ReadingMode, check_reading_mode
from .texts_magnet import check_texts, front_tokens, items_of, read_texts
from .windows_magnet import Shift, Window, windows_of_text

Spans = list[tuple[int, int]]


class PlacedVectors(NamedTuple):
    """Vectors of the tokens or words of one text, in its order."""

    vectors: np.ndarray  # (n, hidden size), float32
    offsets: np.ndarray  # (n, 2), characters start and end in the text


def owners_of_tokens(words: Spans, offsets: Spans, text: str | None = None) -> list[int]:
    """Find the word that each token belongs to: the one that holds most of its characters, white space not counted.

    Tokenizers differ in whether the space in front of a word belongs to its token, and some glue punctuation to the
    line break after it, so neither a token's first character nor its last one tells.

    Args:
        words (`list[tuple[int, int]]`): Characters of each word, ascending and disjoint.
        offsets (`list[tuple[int, int]]`): Characters of each token.
        text (`str`, *optional*): Where they stand; without it, white space inside of words counts, too.

    Returns:
        `list[int]`: per token the index of its word, of two words with as many of its characters the later one; -1 for
        a token that has no character of a word.

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
    """Find the words that have characters in a token.

    Args:
        words (`list[tuple[int, int]]`): Characters of each word, ascending and disjoint.
        token (`tuple[int, int]`): Characters of the token.
        text (`str`, *optional*): As for `owners_of_tokens`.

    Returns:
        `list[tuple[int, int]]`: index of each such word and how many characters it has in the token.
    """
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


class WordsMixin(EncodingMixin):
    """`encode_tokens` and `encode_words`."""

    @torch.no_grad()
    def encode_tokens(
        self,
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
        """Embed every token of a text: bidirectional attention unless asked for causal, no EOS.

        A text beyond the context is read in windows that overlap; each repeats BOS and prompt, and a token's vector
        comes from the window in which it is farthest from an edge.

        Args:
            inputs (`str` or `list[str]`): Texts; an empty one has no tokens.
            prompt_name (`str`, *optional*): Name of a stored prompt.
            prompt (`str`, *optional*, defaults to `""`): The prompt itself; none by default, as in the paper's word
                tasks. `None` for the model's default prompt. Its tokens get no vectors. A token that holds the end
                of the prompt and the beginning of the text, such as ` A` of `Find: A cat`, is the text's and gets one;
                a mean of `encode` leaves it out, as sentence-transformers does.
            shift (`str`, defaults to `"next"`): `"next"`: a token is represented by the output before it, which
                predicts it (the paper's choice); the very first token of a vocabulary without BOS by its own.
                `"same"`: by its own output.
            mode (`str`, defaults to `"bidirectional"`): Or `"causal"`: the decoder as it generates, a control that
                knows what stands in front of a token alone.
            max_length (`int`, *optional*): Tokens of a window, BOS and prompt included; defaults to the context.
            window_overlap (`int`, *optional*): Tokens that two windows share; defaults to a quarter of their text. At
                least 1 with the shift `"next"`, so that a window's first token has the output before it.
            batch_tokens (`int`, *optional*): Tokens of a forward, padding included.
            split_special_tokens (`bool`, defaults to `True`): As in `encode`.
            show_progress_bar (`bool`, *optional*): Over windows; defaults to showing one where there are many.

        Returns:
            `PlacedVectors`, or a list of them for a list: `vectors` of shape `(num_tokens, hidden_size)` in float32
            and `offsets` of shape `(num_tokens, 2)`, in characters of the text.

        Raises:
            ValueError: something that is no text, an unknown prompt, shift or mode, or windows without room.
            RuntimeError: as `encode`.

        Source: Khosla et al. 2025, section 4.1; BehnamGhader et al. 2024 (LLM2Vec) for the shift.
        """
        single = isinstance(inputs, str)
        texts = check_texts([inputs] if single else inputs, name="inputs")
        chosen = self._choose_prompt(prompt=None if prompt_name and not prompt else prompt, prompt_name=prompt_name)
        with self._evaluating():
            placed = self._place_tokens(
                texts,
                prompt=chosen,
                shift=shift,
                mode=mode,
                max_length=max_length,
                window_overlap=window_overlap,
                batch_tokens=batch_tokens,
                split_special_tokens=split_special_tokens,
                show_progress_bar=show_progress_bar,
            )
        return placed[0] if single else placed

    def encode_words(
        self,
        inputs: str | Sequence[str] | Sequence[Sequence[str]],
        *,
        is_split_into_words: bool = False,
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
        """Embed every word of a text: the mean over its tokens, as `encode_tokens` embeds them.

        A token belongs to the word that holds most of its characters, white space not counted; a token of white space
        alone belongs to no word. A word whose characters are all in tokens of its neighbours is the mean of those
        tokens; one that the tokenizer drops is zeros, and a warning names it.

        Args:
            inputs (`str`, `list[str]` or `list[list[str]]`): Texts, whose words are what stands between white space;
                or with `is_split_into_words` the words of one text (`list[str]`) or of several, joined by one space.
            is_split_into_words (`bool`, defaults to `False`): Whether the caller has split the texts.
            prompt_name, prompt, shift, mode, max_length, window_overlap: As in `encode_tokens`.
            batch_tokens, split_special_tokens, show_progress_bar: As in `encode_tokens`.

        Returns:
            `PlacedVectors`, or a list of them for several texts: `vectors` of shape `(num_words, hidden_size)` in
            float32 and `offsets` of shape `(num_words, 2)`, in characters of the text or of the joined words.

        Raises:
            ValueError: as `encode_tokens`; an empty word.
            RuntimeError: as `encode`.
        """
        given = [inputs] if isinstance(inputs, str) else items_of(inputs, name="inputs")
        if is_split_into_words:
            single = not isinstance(inputs, str) and bool(given) and isinstance(given[0], str)
            sentences = [given] if single else given
            checked = [_check_words(words, index=index) for index, words in enumerate(sentences)]
            texts, words = [" ".join(row) for row in checked], [_places(row) for row in checked]
        else:
            single = isinstance(inputs, str)
            if any(isinstance(text, (list, tuple)) for text in given):
                raise ValueError("`inputs` holds lists of words; expected texts. Pass `is_split_into_words=True`.")
            texts = check_texts(given, name="inputs")
            words = [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]
        tokens: Any = self.encode_tokens(
            texts,
            prompt_name=prompt_name,
            prompt=prompt,
            shift=shift,
            mode=mode,
            max_length=max_length,
            window_overlap=window_overlap,
            batch_tokens=batch_tokens,
            split_special_tokens=split_special_tokens,
            show_progress_bar=show_progress_bar,
        )
        placed, lost = [], []
        for index, (of_text, spans, text) in enumerate(zip(tokens, words, texts, strict=True)):
            vectors, without = _average(of_text, spans, text=text)
            placed.append(vectors)
            lost += [f"{text[start:end]!r:.40} of text {index}" for start, end in without]
        if lost:
            warnings.warn(
                f"{len(lost)} words have no token, since the tokenizer drops their characters, and get vectors of "
                f"zeros: {', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}. Leave them out.",
                stacklevel=2,
            )
        return placed[0] if single else placed

    def _place_tokens(
        self,
        texts: list[str],
        *,
        prompt: str | None,
        shift: Shift,
        mode: ReadingMode,
        max_length: int | None,
        window_overlap: int | None,
        batch_tokens: int | None,
        split_special_tokens: bool,
        show_progress_bar: bool | None,
    ) -> list[PlacedVectors]:
        """Tokens of each text with their vectors."""
        if not isinstance(shift, str) or shift not in ("next", "same"):
            raise ValueError(f"`shift` is {shift!r}; expected 'next' (the output before a token) or 'same'.")
        check_reading_mode(mode)
        budget = self._batch_tokens(batch_tokens, None)
        before = join_prompt(prompt, "")
        if not texts:
            return []
        encoded = read_texts(
            self.tokenizer,
            [before + text for text in texts],
            split_special_tokens=split_special_tokens,
            return_offsets=True,
        )
        rows: list[list[int]] = []
        sources: list[tuple[int, int, Window]] = []  # text, tokens in front of it, window within it
        offsets: list[np.ndarray] = []
        for number, (ids, spans) in enumerate(zip(*encoded, strict=True)):
            # A token that holds the prompt's last space and the first letters is the text's.
            num_prompt = sum(end <= len(before) for _, end in spans) if before else 0
            front = front_tokens(self.tokenizer) + ids[:num_prompt]
            own = ids[num_prompt:]
            offsets.append(np.array(spans[num_prompt:], dtype=np.int64).reshape(-1, 2) - len(before))
            size = self._longest_row(max_length) - len(front)
            for window in windows_of_text(
                len(own), num_front=len(front), size=size, overlap=window_overlap, shift=shift, mode=mode
            ):
                rows.append(front + own[window.start : window.end])
                sources.append((number, len(front), window))
        vectors = [np.empty((len(places), self.config.hidden_size), dtype=np.float32) for places in offsets]
        self._probe_attention()
        with tqdm(
            total=len(rows), desc="Encoding", unit="window", disable=hides_bar(show_progress_bar, len(rows))
        ) as bar:
            for batch in self._row_states(rows, batch_tokens=budget, batch_size=None, mode=mode):
                states = batch.states.float().cpu().numpy()
                for index, row_states in zip(batch.indices, states, strict=True):
                    number, num_front, window = sources[index]
                    place = np.arange(window.keep_start, window.keep_end) - window.start + num_front
                    # Only the first token of a text can have nothing in front of it.
                    read = np.maximum(place - 1, 0) if shift == "next" else place
                    vectors[number][window.keep_start : window.keep_end] = row_states[read]
                bar.update(len(batch.indices))
        is_finite = torch.tensor([bool(np.isfinite(of_text).all()) for of_text in vectors])
        check_vectors(self, is_finite, texts=texts, indices=range(len(texts)))
        return [PlacedVectors(*pair) for pair in zip(vectors, (np.maximum(o, 0) for o in offsets), strict=True)]


def _check_words(words: Any, *, index: int) -> list[str]:
    """The words of one text, none of them empty."""
    if isinstance(words, str):
        raise ValueError(f"Text {index} is a string ({words!r:.60}); expected a list of words. Split it.")
    checked = check_texts(words, name=f"inputs[{index}]")
    if not checked or not all(word.strip() for word in checked):
        raise ValueError(f"Text {index} is empty or has an empty word: {checked!r:.80}. Leave it out.")
    return checked


def _places(words: list[str]) -> Spans:
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


__all__ = ["PlacedVectors", "WordsMixin", "owners_of_tokens", "shares_of_token"]
