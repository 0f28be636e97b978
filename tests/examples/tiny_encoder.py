"""Save encoders of a few thousand weights with a WordPiece tokenizer."""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, XLNetConfig, XLNetModel

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Handwritten, because training breaks ties at random and would change the vocabulary each time.
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *".,;:'-"]
PIECES += ["the", "cat", "sat", "##at", "##ing", "##ably", "##ttle", "##est", "##fast"]


def make_wordpiece(*, padding_side="right"):
    """Build a tokenizer like BERT's: it drops control characters, separates punctuation, and splits words."""
    vocabulary = {piece: place for place, piece in enumerate([*SPECIAL, *PIECES])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        padding_side=padding_side,
        **{f"{name}_token": SPECIAL[place] for name, place in names.items()},
    )


def make_bert():
    """Build a random BERT of two layers with a context of 48 tokens, in evaluation mode."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocab_size = len(make_wordpiece())
    return BertModel(
        BertConfig(vocab_size=vocab_size, max_position_embeddings=48, initializer_range=0.2, **sizes)
    ).eval()


def make_xlnet():
    """Build a random XLNet, which has no maximum length and pads on the left."""
    torch.manual_seed(0)
    config = XLNetConfig(vocab_size=len(make_wordpiece()), d_model=16, n_layer=2, n_head=2, d_inner=24)
    return XLNetModel(config).eval()


def save_bert(folder):
    """Save the BERT and its tokenizer in a folder."""
    make_bert().save_pretrained(folder)
    make_wordpiece().save_pretrained(folder)
    return folder
