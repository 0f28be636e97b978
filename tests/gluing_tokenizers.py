"""Train small byte-level vocabularies that split text like Qwen2, Llama 3 and later models, or not at all."""

from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .byte_tokenizer import trained_tokenizer

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# Punctuation includes the line breaks after it.
SPLITS = {
    "qwen2": rf"{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "llama3": rf"{_LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "o200k": rf"{_LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
    "unsplit": None,  # tokens span several words
}
TEXTS = [
    "First line.\nSecond line.\n\nA third one!\r\nAnd more,\nwith (brackets)\nor\ttabs.\n",
    "The end .\n\nA new part begins. It said:\n- one;\n- two.\n\nThe end .\n\n",
    "of the day in the night of the day in the night. A cat, a dog.\nA cat, a dog.\n",
    "日本 and naïve.\n日本 and naïve.\n",
] * 3


def gluing_tokenizer(kind: str, *, vocab_size: int = 420) -> PreTrainedTokenizerFast:
    """Train a vocabulary under one of `SPLITS`."""
    pattern = SPLITS[kind]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    parts = pre_tokenizers.Sequence([*split, byte_level])
    return trained_tokenizer(TEXTS, pre_tokenizer=parts, vocab_size=vocab_size)
