"""Tokenizers of all kinds, built on the spot: some merge, some lose text, some lack special tokens."""

import random
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "_"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyzABDFINS012.,:!? \n", "▁", "[", "]", "é", "中", "👍"]
SIZE = 400  # of the embedding matrix, more than any of these tokenizers has


def _word_level(draw: random.Random) -> Tokenizer:
    words = [*SPECIAL, "w1", "w2", "the", "cat", ".", "[", "blank", "]", "a", "find", "sentence", ":"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = draw.choice(
        (pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation())
    )
    return made


def _byte_level(draw: random.Random) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("c", "a"),
        ("Ġ", "ca"),
        ("Ġ", "Ġ"),
        ("Ċ", "a"),
        ("a", "a"),
        ("a", "Ġ"),
    ]
    words = [*SPECIAL[:3], *alphabet, *dict.fromkeys(left + right for left, right in merges)]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=draw.random() < 0.3, use_regex=draw.random() < 0.5)
    made.decoder = decoders.ByteLevel()
    return made


def _characters(draw: random.Random) -> Tokenizer:
    """SentencePiece's way: a mark for spaces, one in front, bytes or nothing for what is unknown."""
    fallback = draw.random() < 0.6
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    words = [*SPECIAL, *bytes_, *LETTERS, "th", "the", "▁the", "▁▁"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁")]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=fallback, fuse_unk=draw.random() < 0.5)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    return made


def _unigram(draw: random.Random) -> Tokenizer:
    words = [*SPECIAL, *LETTERS, "▁the", "▁cat", "he", "blank"]
    made = Tokenizer(
        models.Unigram([(word, -float(number)) for number, word in enumerate(dict.fromkeys(words))], unk_id=0)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=draw.choice(("always", "never", "first")))
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    return made


def _lossy(draw: random.Random) -> Tokenizer:
    made = _byte_level(draw)
    made.normalizer = draw.choice(
        (
            normalizers.Lowercase(),
            normalizers.NFKC(),
            normalizers.Strip(),
            normalizers.StripAccents(),
            normalizers.Replace("the", ""),
        )
    )
    return made


@cache
def tokenizer(number: int) -> PreTrainedTokenizerFast:
    """One of many tokenizers, each with some of the special tokens."""
    draw = random.Random(number)
    made = draw.choice((_word_level, _byte_level, _byte_level, _characters, _characters, _unigram, _lossy))(draw)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "mask_token": "a"}
    chances = {"bos_token": 0.7, "eos_token": 0.9, "pad_token": 0.5, "mask_token": 0.2}
    kept = {name: token for name, token in special.items() if draw.random() < chances.get(name, 0.9)}
    limits = {} if draw.random() < 0.6 else {"model_max_length": draw.choice((3, 8, 20))}
    return PreTrainedTokenizerFast(tokenizer_object=made, **kept, **limits)


TOKENIZERS = 40


__all__ = ["SIZE", "TOKENIZERS", "tokenizer"]
