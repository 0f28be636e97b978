"""Read texts as vectors of their tokens with offsets, by a decoder in either direction or by an encoder."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from examples.evaluate.parts.driver import open_magnet
from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.batching_magnet import ReadingMode, plan_batches, token_budget
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.tokenization_magnet import context_length
from modeling_magnet.words_magnet import OffsetVectors, Shift, owners_of_tokens

READINGS = (*get_args(ReadingMode), "encoder")
# The default output that represents a token. From left to right, the output before a word has not read the word;
# LLM2Vec also takes a causal model's own outputs, and a control that is compared with it must do the same.
SHIFTS: dict[str, Shift] = {"bidirectional": "next", "causal": "same", "encoder": "same"}

TokenReader = Callable[[list[str]], list[OffsetVectors]]
# Number of sentences whose token vectors are in memory at once.
_SENTENCES_AT_ONCE = 512


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
    """Choose the reading of a model: as requested, else bidirectional for a supported decoder, encoder for others."""
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
            raise ValueError(f"The tokenizer of {path!r} reports no offsets; a fast one is needed.") from error
        return "encoder"
    if asked == "encoder":
        raise ValueError(f"{path!r} is a decoder; expected --reading bidirectional or causal.")
    open_without_weights(path)
    return asked or "bidirectional"


@torch.no_grad()
def encoder_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[OffsetVectors]:
    """Return the last hidden states of every token of texts, without special tokens.

    Returns:
        `list[OffsetVectors]`: `vectors` of shape `(num_tokens, hidden_size)` in float32 and `offsets` of shape
        `(num_tokens, 2)`, in characters of the text.
    """
    rows: Any = tokenizer(
        texts, return_offsets_mapping=True, return_special_tokens_mask=True, split_special_tokens=True, verbose=False
    )
    lengths = [len(row) for row in rows["input_ids"]]
    context = context_length(model.config, tokenizer)
    if 0 < context < max(lengths, default=0):  # XLNet, which has no limit, returns -1
        raise ValueError(f"A text has {max(lengths)} tokens, but the encoder reads {context} at most. Split it.")
    inputs = [name for name in tokenizer.model_input_names if name in rows]
    vectors: dict[int, OffsetVectors] = {}
    for batch in plan_batches(lengths, max_tokens=token_budget(model)):
        chosen = {name: [rows[name][index] for index in batch] for name in inputs}
        padded: Any = tokenizer.pad(chosen, return_tensors="pt", return_attention_mask=True)
        hidden = model(**padded.to(model.device)).last_hidden_state.float().cpu().numpy()
        # A tokenizer may pad on either side.
        for index, states, mask in zip(batch, hidden, padded["attention_mask"].bool().cpu().numpy(), strict=True):
            is_text = np.array(rows["special_tokens_mask"][index]) == 0
            offsets = np.array(rows["offset_mapping"][index], dtype=np.int64).reshape(-1, 2)
            vectors[index] = OffsetVectors(states[mask][is_text], offsets[is_text])
    return [vectors[index] for index in range(len(texts))]


class WordStates(NamedTuple):
    """The states of the words of several sentences, concatenated."""

    states: np.ndarray  # (num_words, hidden_size), float32
    bounds: np.ndarray  # (num_sentences + 1,): words bounds[i] to bounds[i + 1] are sentence i
    num_without_tokens: int  # words without tokens


def tabulate(read_tokens: TokenReader, sentences: Sequence[Sequence[str]], *, description: str) -> WordStates:
    """Compute the states of all words once."""
    bounds = np.cumsum([0, *map(len, sentences)])
    states = np.empty((0, 0), dtype=np.float32)
    missing = 0
    with tqdm(total=len(sentences), desc=description, unit="sentence") as bar:
        for start in range(0, len(sentences), _SENTENCES_AT_ONCE):
            chosen = sentences[start : start + _SENTENCES_AT_ONCE]
            placed = read_tokens([" ".join(words) for words in chosen])
            if start == 0:
                states = np.empty((int(bounds[-1]), placed[0].vectors.shape[1]), dtype=np.float32)
            for index, (words, tokens) in enumerate(zip(chosen, placed, strict=True), start=start):
                vectors, counts = mean_over_words(tokens, words)
                states[bounds[index] : bounds[index + 1]] = vectors
                missing += int((counts == 0).sum())
            bar.update(len(chosen))
    return WordStates(states, bounds, missing)


def mean_over_words(tokens: OffsetVectors, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
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
