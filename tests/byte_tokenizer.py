"""Build the tokenizer of most tests without a network; also used in processes that tests start."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]
SENTENCES = [
    "She ate the apple for breakfast and the bread for lunch.",
    "The cat sat on the mat, and the dog barked at the cat.",
    "Given the sentence, find its representation: there was a little girl who lived in the forest.",
]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Train byte-level BPE on three sentences. It tokenizes any text, prepends BOS, and has `_` as one token."""
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return trained_tokenizer(SENTENCES, pre_tokenizer=split, post_processor=bos, vocab_size=300)


def trained_tokenizer(texts: Iterable[str], *, vocab_size: int, **parts: Any) -> PreTrainedTokenizerFast:
    """Train byte-level BPE with these parts of a `Tokenizer`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **special)
