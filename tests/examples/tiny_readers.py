"""Small models whose continuations can be told in advance, or by a loop, and the corpora they continue."""

import gzip
import lzma
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# What each word is followed by.
FOLLOWS = {"a": "b", "b": "c", "c": "d.", "d.": "a", "x.": "</s>"}
STORIES = [["a b c d .", "x .", "x .", "x .", "x ."], ["a x .", "a .", "a .", "a .", "a ."]]
PARAGRAPHS = ["a b c d . a b c", " = a b c d . a b c = ", "a b c d . a", "a <unk> b c d . a b", "too short ."]


def _words(vocabulary: list[str]) -> Tokenizer:
    """A tokenizer of whole words between spaces."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def save_chain(folder: Path) -> Path:
    """A Llama that sees its last token alone: each word of `FOLLOWS` has one successor, round and round."""
    vocabulary = ["<unk>", "<s>", "</s>", "_", *FOLLOWS]
    backend = _words(vocabulary)
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


def save_bert(folder: Path) -> Path:
    """A random BERT over words."""
    vocabulary = ["<unk>", "[CLS]", "[SEP]", "[MASK]", "[PAD]", "a", "b", "c", "d.", "x.", *map(str, range(30))]
    backend = _words(vocabulary)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        pad_token="[PAD]",
        model_max_length=64,
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=4,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder


def write_corpora(folder: Path) -> Path:
    """Two stories and five lines of WikiText, as the files of a folder of data."""
    folder.mkdir()
    stories = "".join("title <EOT> key <EOL> " + "".join(f" </s> {s}" for s in story) + "\n" for story in STORIES)
    (folder / "rocstories_dev.titlesepkeysepstory.txt.gz").write_bytes(gzip.compress(stories.encode()))
    (folder / "wiki.valid.tokens.xz").write_bytes(lzma.compress("\n".join(PARAGRAPHS).encode()))
    return folder


__all__ = ["save_bert", "save_chain", "write_corpora"]
