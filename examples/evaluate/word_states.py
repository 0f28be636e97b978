"""Sentences of words -> one frozen state for each word, all in one table.

A sentence is read as its words joined by single spaces, and a token belongs to the word that holds its last character:
the same rule for every tokenizer, and each encoder sees text as it was trained on. A word is the mean over its tokens.
A word of which the tokenizer makes no token keeps its place, with zeros, so that labels stay aligned and the probe
can only guess it.
"""

import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from examples.evaluate.word_readers import TokenReader
from modeling_magnet.words_magnet import PlacedVectors, owners_of_tokens

# Of these many sentences the token vectors are held at once.
_SENTENCES_AT_ONCE = 512
# A larger table lies in a file: 3.1 GiB are CoNLL's training words at 4096 dimensions.
_BYTES_IN_MEMORY = 2 << 30


class WordStates(NamedTuple):
    """States of the words of several sentences, end to end."""

    states: np.ndarray  # (num_words, hidden_size), float32, in memory or in a file
    bounds: np.ndarray  # (num_sentences + 1,): words bounds[i] to bounds[i + 1] are sentence i
    num_without_tokens: int  # words that the tokenizer makes nothing of


def tabulate(
    read_tokens: TokenReader,
    sentences: Sequence[Sequence[str]],
    *,
    description: str,
    bytes_in_memory: int = _BYTES_IN_MEMORY,
) -> WordStates:
    """Read the states of all words, once.

    Args:
        read_tokens (`Callable`): From texts to the vectors of their tokens with their places, such as
            `encode_tokens` of a model or `encoder_tokens`.
        sentences (`Sequence[Sequence[str]]`): Words of each sentence, at least one.
        description (`str`): Of the progress bar.
        bytes_in_memory (`int`): A larger table lies in a temporary file, which goes with it.

    Raises:
        ValueError: no sentences, or one without words.
    """
    if not sentences or not all(sentences):
        raise ValueError("There are no sentences, or one of them has no words. Leave it out.")
    bounds = np.cumsum([0, *map(len, sentences)])
    states = np.empty((0, 0), dtype=np.float32)
    missing = 0
    with tqdm(total=len(sentences), desc=description, unit="sentence") as bar:
        for start in range(0, len(sentences), _SENTENCES_AT_ONCE):
            chosen = sentences[start : start + _SENTENCES_AT_ONCE]
            placed = read_tokens([" ".join(words) for words in chosen])
            if start == 0:
                states = _allocate((int(bounds[-1]), placed[0].vectors.shape[1]), bytes_in_memory)
            for index, (words, tokens) in enumerate(zip(chosen, placed, strict=True), start=start):
                vectors, counts = mean_over_words(tokens, words)
                states[bounds[index] : bounds[index + 1]] = vectors
                missing += int((counts == 0).sum())
            bar.update(len(chosen))
    return WordStates(states, bounds, missing)


def mean_over_words(tokens: PlacedVectors, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of words from those of their tokens.

    Args:
        tokens (`PlacedVectors`): Of the words joined by spaces.
        words (`Sequence[str]`): The words.

    Returns:
        `tuple`: vectors of shape `(num_words, hidden_size)`, float32, zeros for a word without tokens; and how many
        tokens each word has.
    """
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    places = [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]
    owners = np.array(owners_of_tokens(places, tokens.offsets.tolist(), " ".join(words)), dtype=np.int64)
    counts = np.bincount(owners[owners >= 0], minlength=len(words))
    sums = np.zeros((len(words), tokens.vectors.shape[1]), dtype=np.float32)
    np.add.at(sums, owners[owners >= 0], tokens.vectors[owners >= 0])
    return sums / np.maximum(counts, 1)[:, None].astype(np.float32), counts


def _allocate(shape: tuple[int, int], bytes_in_memory: int) -> np.ndarray:
    """An array for the states; a large one lies in a file without a name, gone as soon as nobody uses it."""
    if 4 * shape[0] * shape[1] <= bytes_in_memory:
        return np.empty(shape, dtype=np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


__all__ = ["WordStates", "mean_over_words", "tabulate"]
