"""Build a tokenizer like Gemma's: tokens for runs of spaces, bytes as `<0xE4>`, and reserved special tokens."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

NAMED = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
RESERVED = ["<start_of_turn>", "<end_of_turn>", "<unused0>"]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?()[]{}'\"=+-*/_<>\n\t\r"


def space_run_tokenizer() -> PreTrainedTokenizerFast:
    """Build character BPE: runs of spaces are merged first, then a single space with the letter after it."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), *(("▁", letter) for letter in LETTERS if letter.isalpha()), ("t", "h")]
    tokens = [*NAMED, *RESERVED, *bytes_, "▁", *LETTERS, *("".join(pair) for pair in merges)]
    vocabulary = {token: token_id for token_id, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in [*NAMED, *RESERVED]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
