"""A tiny paraphraser and lines for it; subprocesses of tests import them, too."""

from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

WORDS = [f"word{number}" for number in range(20)] + ["paraphrase:"]


def save_tiny_t5(folder: Path) -> str:
    """Save a random T5 and a tokenizer of whole words, and return the folder."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    config = T5Config(vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def sentences(count: int) -> Dataset:
    """Make `count` different lines of 3 to 8 words."""
    lines = []
    for row in range(count):
        step = row // 20 + 1
        lines.append(" ".join(WORDS[(row * 7 + place * step) % 20] for place in range(3 + row % 6)))
    return Dataset.from_dict({"text": lines})
