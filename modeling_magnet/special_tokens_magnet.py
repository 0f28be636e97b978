"""Which tokens are control tokens of a vocabulary, and so never part of a text."""

from collections.abc import Iterable
from typing import NamedTuple
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase


class _Known(NamedTuple):
    """What was read of a tokenizer."""

    named: tuple[int, ...]  # BOS, EOS and their like
    size: int  # of the vocabulary; tokens that are added later have ids from here on
    ids: frozenset[int]


# `len(tokenizer)` and the list of added tokens take milliseconds where the vocabulary is large.
_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, _Known] = WeakKeyDictionary()


def special_ids(tokenizer: PreTrainedTokenizerBase, among: Iterable[int] | None = None) -> frozenset[int]:
    """Return the ids of all special tokens: the named ones and every added token that is flagged as special.

    `all_special_ids` holds only BOS, EOS and their like; chat marks and reserved tokens are flagged in
    `added_tokens_decoder`, 6,249 of them in Gemma's.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Any tokenizer.
        among (`Iterable[int]`, *optional*): The ids that are looked for. Without them the size of the vocabulary is
            asked for, to find tokens that were added since the last call.
    """
    known, named = _KNOWN.get(tokenizer), tuple(tokenizer.all_special_ids)
    newest = None if known is None else len(tokenizer) - 1 if among is None else max(among, default=0)
    if known is None or newest is None or known.named != named or newest >= known.size:
        flagged = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
        known = _KNOWN[tokenizer] = _Known(named, len(tokenizer), frozenset((*flagged, *named)))
    return known.ids


__all__ = ["special_ids"]
