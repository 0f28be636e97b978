"""Which tokens are control tokens of a vocabulary, and so never part of a text."""

from functools import lru_cache

from transformers import PreTrainedTokenizerBase


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all special tokens: the named ones and every added token that is flagged as special.

    `all_special_ids` holds only BOS, EOS and their like; chat marks and reserved tokens are flagged in
    `added_tokens_decoder`.
    """
    # The flags are read once for each state of the vocabulary: a tokenizer can have thousands of added tokens.
    return _special_ids(tokenizer, len(tokenizer), tuple(tokenizer.all_special_ids))


@lru_cache(maxsize=8)
def _special_ids(tokenizer: PreTrainedTokenizerBase, size: int, named: tuple[int, ...]) -> frozenset[int]:
    flagged = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(flagged | {*named})


__all__ = ["special_ids"]
