"""Texts -> the vectors of their tokens with their places, by a decoder in either direction or by an encoder."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from examples.evaluate.driver import open_magnet
from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.encoding_magnet import ACCELERATOR_BATCH_TOKENS, CPU_BATCH_TOKENS, ReadingMode
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.tokenization_magnet import plan_batches
from modeling_magnet.words_magnet import PlacedVectors, Shift, owners_of_tokens

READINGS = (*get_args(ReadingMode), "encoder")
# Which output a token is represented by where nobody says it. From left to right the output before a word has not read
# it: LLM2Vec, too, takes a causal model's own outputs, and so must a control that is to be compared.
SHIFTS: dict[str, Shift] = {"bidirectional": "next", "causal": "same", "encoder": "same"}
# Tokens that an encoder reads at once, where its own context is not shorter; what LLM2Vec tested with.
ENCODER_WINDOW = 512
_FAR = 1 << 30

TokenReader = Callable[[list[str]], list[PlacedVectors]]


def open_reader(path: str, args: argparse.Namespace, *, reading: str) -> TokenReader:
    """Open a model and return a function from texts to the vectors of their tokens."""
    if reading != "encoder":
        decoder = open_magnet(path, args)
        return partial(decoder.encode_tokens, shift=args.shift, mode=reading, show_progress_bar=False)
    encoder: Any = AutoModel.from_pretrained(path, dtype=getattr(torch, args.dtype), trust_remote_code=False)
    return partial(
        encoder_tokens, encoder.to(args.device).eval(), AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    )


def reading_of(path: str, asked: str | None) -> str:
    """Choose how a model is read: as asked, else a supported decoder bidirectionally, any other as an encoder."""
    try:
        AutoMagnetForCausalLM.family_of(path)
    except ValueError as error:
        if asked not in (None, "encoder"):
            raise
        try:
            AutoConfig.from_pretrained(path, trust_remote_code=False)
            is_fast = AutoTokenizer.from_pretrained(path, trust_remote_code=False).is_fast
        except (OSError, ValueError) as as_encoder:
            raise ValueError(f"{error} As an encoder: {as_encoder}") from as_encoder
        if not is_fast:
            raise ValueError(
                f"The tokenizer of {path!r} tells no places in the text; a fast one is needed."
            ) from error
        return "encoder"
    if asked == "encoder":
        raise ValueError(f"{path!r} is a decoder; expected --reading bidirectional or causal.")
    open_without_weights(path)
    return asked or "bidirectional"


@torch.no_grad()
def encoder_tokens(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: list[str], *, window: int = ENCODER_WINDOW
) -> list[PlacedVectors]:
    """Return the last hidden states of every token of texts, special tokens left out.

    A text beyond the context is read in windows that share a quarter; a token's vector comes from the window in which
    it is farthest from an edge. So nothing is cut off.

    Returns:
        `list[PlacedVectors]`: `vectors` of shape `(num_tokens, hidden_size)` in float32 and `offsets` of shape
        `(num_tokens, 2)`, in characters of the text.
    """
    limit = min(window, tokenizer.model_max_length)
    context = getattr(model.config, "max_position_embeddings", None) or -1
    limit = min(limit, context) if context > 0 else limit  # XLNet, which has no limit, says -1
    size = limit - tokenizer.num_special_tokens_to_add()
    if size < 1:
        raise ValueError(f"Windows of {limit} tokens have no room for text beside the special tokens. Pass more.")
    rows = tokenizer(
        texts,
        truncation=True,
        max_length=limit,
        stride=size // 4,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        split_special_tokens=True,
    )
    windows: list[list[PlacedVectors]] = [[] for _ in texts]
    for index, states in enumerate(_encoder_states(model, tokenizer, rows)):
        is_text = np.array(rows["special_tokens_mask"][index]) == 0
        offsets = np.array(rows["offset_mapping"][index], dtype=np.int64).reshape(-1, 2)
        windows[rows["overflow_to_sample_mapping"][index]].append(PlacedVectors(states[is_text], offsets[is_text]))
    return [_join_windows(parts, step=size - size // 4) for parts in windows]


def _encoder_states(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Any) -> list[np.ndarray]:
    """Return states `(row length, hidden size)` of token rows, in their order."""
    inputs = [name for name in tokenizer.model_input_names if name in rows]
    budget = CPU_BATCH_TOKENS if model.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS
    states = [np.empty(0, dtype=np.float32)] * len(rows["input_ids"])
    for batch in plan_batches([len(row) for row in rows["input_ids"]], max_tokens=budget):
        chosen = {name: [rows[name][index] for index in batch] for name in inputs}
        padded = tokenizer.pad(chosen, return_tensors="pt", return_attention_mask=True)
        hidden = model(**padded.to(model.device)).last_hidden_state.float().cpu().numpy()
        # Padding may stand on either side.
        for index, row, mask in zip(batch, hidden, padded["attention_mask"].bool().cpu().numpy(), strict=True):
            states[index] = row[mask]
    return states


def _join_windows(parts: list[PlacedVectors], *, step: int) -> PlacedVectors:
    """Return the tokens of a text from windows of which each begins `step` tokens after the one before."""
    length = (len(parts) - 1) * step + len(parts[-1].vectors)
    vectors = np.empty((length, parts[0].vectors.shape[1]), dtype=np.float32)
    offsets = np.empty((length, 2), dtype=np.int64)
    farthest = np.full(length, -1)
    for number, part in enumerate(parts):
        place = np.arange(len(part.vectors))
        # Where the text itself begins or ends is not an edge.
        before = place if number else np.full_like(place, _FAR)
        behind = place[::-1] if number < len(parts) - 1 else np.full_like(place, _FAR)
        distance = np.minimum(before, behind)
        better = distance > farthest[number * step + place]
        chosen = number * step + place[better]
        vectors[chosen], offsets[chosen] = part.vectors[better], part.offsets[better]
        farthest[chosen] = distance[better]
    return PlacedVectors(vectors, offsets)


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
    """Read the states of all words, once."""
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
    """Average the vectors of tokens over their words.

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
    """Return an array for the states; a large one lies in a file without a name, gone as soon as nobody uses it."""
    if 4 * shape[0] * shape[1] <= bytes_in_memory:
        return np.empty(shape, dtype=np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


__all__ = [
    "ENCODER_WINDOW", "READINGS", "SHIFTS", "WordStates", "encoder_tokens", "mean_over_words", "open_reader",
    "reading_of", "tabulate",
]  # fmt: skip
