"""Build tokenizers of many kinds: some lose text, lack special tokens or have few tokens."""

import random
from collections.abc import Callable
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.byte_tokenizer import byte_tokenizer
from tests.gluing_tokenizers import SPLITS, gluing_tokenizer
from tests.space_run_tokenizer import space_run_tokenizer
from tests.trainer.tiny import tiny_tokenizer

SIZE = 440  # size of the embedding matrix, larger than any of these vocabularies
TOKENIZERS = 40
LETTERS = [*"abcdefghijklmnopqrstuvwxyzABDFINS012.,:!? \n▁[]é中👍", "▁the", "▁cat", "he", "blank"]
NORMALIZERS: tuple[Callable[[], normalizers.Normalizer], ...] = (
    *(normalizers.Lowercase, normalizers.NFKC, normalizers.Strip, normalizers.StripAccents),
    lambda: normalizers.Replace("the", ""),
)


def _unigram(draw: random.Random) -> PreTrainedTokenizerFast:
    tokens = ["<unk>", "<s>", "</s>", "_", *LETTERS]
    made = Tokenizer(models.Unigram([(token, -float(rank)) for rank, token in enumerate(tokens)], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=draw.choice(("always", "never", "first")))
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@cache
def tokenizer(number: int) -> PreTrainedTokenizerFast:
    """Return one of many tokenizers, each with some of the special tokens."""
    draw = random.Random(number)
    kinds: tuple[Callable[[], PreTrainedTokenizerFast], ...] = (
        *(byte_tokenizer, space_run_tokenizer, tiny_tokenizer, lambda: _unigram(draw)),
        lambda: gluing_tokenizer(draw.choice([*SPLITS])),
    )
    made = draw.choice(kinds)()
    backend = made.backend_tokenizer
    if draw.random() < 0.2:
        backend.normalizer = draw.choice(NORMALIZERS)()
    chances = {"bos_token": 0.7, "eos_token": 0.9, "pad_token": 0.5, "unk_token": 0.9}
    kept = {name: getattr(made, name) for name, chance in chances.items() if draw.random() < chance}
    limits = {} if draw.random() < 0.6 else {"model_max_length": draw.choice((3, 8, 20))}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **kept, **limits)
