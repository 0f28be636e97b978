"""Provide a small model with known continuations, and the corpora that it continues."""

import gzip
import lzma
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# The successor of each word.
FOLLOWS = {"a": "b", "b": "c", "c": "d.", "d.": "a", "x.": "</s>"}
STORIES = [["a b c d .", "x .", "x .", "x .", "x ."], ["a x .", "a .", "a .", "a .", "a ."]]
PARAGRAPHS = ["a b c d . a b c", " = a b c d . a b c = ", "a b c d . a", "a <unk> b c d . a b", "too short ."]


def save_chain(folder: Path) -> Path:
    """Save a Llama that sees only its last token: each word of `FOLLOWS` has one successor, in a cycle."""
    vocabulary = ["<unk>", "<s>", "</s>", "_", *FOLLOWS]
    words = {word: index for index, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=64
    )
    size = len(vocabulary)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=size + size % 2,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        model.model.embed_tokens.weight[:, :size] = torch.eye(size)
        for word, follower in FOLLOWS.items():
            model.lm_head.weight[vocabulary.index(follower), vocabulary.index(word)] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder


def write_corpora(folder: Path) -> Path:
    """Write two stories and five lines of WikiText as data files."""
    folder.mkdir()
    stories = "".join("title <EOT> key <EOL> " + "".join(f" </s> {s}" for s in story) + "\n" for story in STORIES)
    (folder / "rocstories_dev.titlesepkeysepstory.txt.gz").write_bytes(gzip.compress(stories.encode()))
    (folder / "wiki.valid.tokens.xz").write_bytes(lzma.compress("\n".join(PARAGRAPHS).encode()))
    return folder
