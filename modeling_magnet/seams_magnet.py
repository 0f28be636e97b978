"""Where a fill meets its context: tokens that spell a healed seam, and repetitions of the context to trim."""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .gaps_magnet import decode_fill
from .spans_magnet import Span
from .tokenization_magnet import special_ids

WORDS = re.compile(r"\w+|[^\w\s]", re.UNICODE)


class SeamHealer:
    """Which tokens keep a span on the way to the text its seam asks for.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        vocab_size (`int`): Tokens the model gives scores for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size

    def fits(self, span: Span, *, index: int) -> torch.Tensor | None:
        """Which tokens may come next.

        Args:
            span (`Span`): With the tokens it has so far; they are read from its second token on, and only where its
                beginning is longer than the one character that any token spells.
            index (`int`): Which token of its gap is chosen, from 0.

        Returns:
            `torch.BoolTensor` of shape `(V,)`, or `None` for any token.
        """
        rest = span.seam.start if index == 0 else ""
        if index > 0 and len(span.seam.start) > 1:
            rest = span.seam.start[len(decode_fill(self.tokenizer, span.before, span.token_ids)) :]
        left = span.gap_length - 1 - index  # tokens to come
        end = span.seam.end if left == 0 else ""
        if not rest and not end:
            return None
        # The last token is the end's; what is begun has to be completed before it.
        may_go_on = left > (1 if span.seam.end else 0)
        return fitting_tokens(
            self.tokenizer, self.vocab_size, rest=rest, end=end, is_last=left == 0, may_go_on=may_go_on
        )


@lru_cache(maxsize=256)
def fitting_tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, *, rest: str, end: str, is_last: bool, may_go_on: bool
) -> torch.Tensor:
    """Tokens `(V,)` that spell `rest`, whole or, if they may, up to what another token spells.

    The last one has to complete it and to end with `end`. So no greedy choice leads where nothing fits any more.
    """
    vocabulary = read_vocabulary(tokenizer, vocab_size)
    known = vocabulary.known

    def fits(text: str) -> bool:
        if not text or (is_last and not end and text == rest == " "):
            return False  # the space of the context alone would fill the gap with nothing
        if is_last:
            return text.startswith(rest) and text.endswith(end) and len(text) >= len(rest) + len(end)
        return text.startswith(rest) or (may_go_on and rest.startswith(text) and rest[len(text) :] in known)

    # Only the tokens that share the character with which a fitting text begins or ends are looked at.
    candidates = vocabulary.candidates(rest, end)
    fitting = torch.zeros(vocab_size, dtype=torch.bool)
    fitting[[token for token in candidates if fits(vocabulary.texts[token])]] = True
    return fitting


@dataclass(frozen=True)
class Vocabulary:
    """What the tokens of a tokenizer say.

    Args:
        texts (`tuple[str, ...]`): What each token adds to a text that it continues; special tokens add nothing.
    """

    texts: tuple[str, ...]

    @cached_property
    def known(self) -> frozenset[str]:
        """All texts that a token adds."""
        return frozenset(self.texts) - {""}

    def candidates(self, start: str, end: str) -> Sequence[int]:
        """Tokens whose text begins with the first character of `start`, or, without one, ends with the last of `end`.

        All of them where neither is given.
        """
        if start:
            return self._by_first.get(start[0], ())
        return self._by_last.get(end[-1], ()) if end else range(len(self.texts))

    @cached_property
    def _by_first(self) -> dict[str, list[int]]:
        return self._grouped(0)

    @cached_property
    def _by_last(self) -> dict[str, list[int]]:
        return self._grouped(-1)

    def _grouped(self, place: int) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for token, text in enumerate(self.texts):
            if text:
                groups.setdefault(text[place], []).append(token)
        return groups


# What was read of each tokenizer, by its number of tokens, which grows as tokens are added, and the model's.
_VOCABULARIES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, int], Vocabulary]] = WeakKeyDictionary()
_READING = threading.Lock()


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Vocabulary:
    """The texts of all tokens, read once for each tokenizer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        vocab_size (`int`): Tokens the model gives scores for.
    """
    with _READING:  # of several threads one reads
        of_tokenizer = _VOCABULARIES.setdefault(tokenizer, {})
        key = (len(tokenizer), vocab_size)
        if key not in of_tokenizer:
            size = min(vocab_size, len(tokenizer))
            texts = _token_texts(tokenizer, range(size))
            of_tokenizer[key] = Vocabulary((*texts, *[""] * (vocab_size - size)))
        return of_tokenizer[key]


def vocabulary_texts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> tuple[str, ...]:
    """What each token adds to a text that it continues; special tokens add nothing."""
    return read_vocabulary(tokenizer, vocab_size).texts


def _token_texts(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """What some tokens add to a text that they continue."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    special = special_ids(tokenizer)
    front = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
    both = _decode_rows(tokenizer, [[*anchor, token] for token in tokens])
    return ["" if token in special else text[len(front) :] for token, text in zip(tokens, both, strict=True)]


def _decode_rows(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    """`batch_decode`; where that is nothing but its backend's for row after row, in one call of the backend."""
    own = type(tokenizer)
    is_plain = isinstance(tokenizer, PreTrainedTokenizerFast) and (own.decode, own._decode) == (
        PreTrainedTokenizerFast.decode,
        PreTrainedTokenizerFast._decode,
    )
    if is_plain:
        texts: list[str] = tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False)
        return texts
    return list(tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False))


def trim_overlap(fill: str, *, before: str, after: str) -> str:
    """A fill without what it repeats: the end of the text in front of it, and the beginning of the text behind it.

    Whole words and punctuation marks count, with a word among them, so that a fill keeps letters or a full stop that
    only happen to be the same. White space between fill and context stays on the context's side.

    Args:
        fill (`str`): What was written into a gap.
        before (`str`): The text in front of the gap.
        after (`str`): The text behind it.

    Example:

        >>> trim_overlap("the red apple for lunch", before="She ate the", after=" for lunch.")
        ' red apple'
    """
    count = _longest_overlap(_words(before), _words(fill))
    if count:
        fill = fill[[match.end() for match in WORDS.finditer(fill)][count - 1] :]
        if before[-1:].isspace():
            fill = fill.lstrip()
    count = _longest_overlap(_words(fill), _words(after))
    if count:
        fill = fill[: [match.start() for match in WORDS.finditer(fill)][-count]]
        if after[:1].isspace():
            fill = fill.rstrip()
    return fill


def _words(text: str) -> list[str]:
    """Words and punctuation marks of a text."""
    return WORDS.findall(text)


def _longest_overlap(left: list[str], right: list[str]) -> int:
    """Most words at the end of `left` that are the first of `right`, with a real word among them."""
    for count in range(min(len(left), len(right)), 0, -1):
        if left[-count:] == right[:count] and any(word[0].isalnum() for word in right[:count]):
            return count
    return 0


__all__ = [
    "SeamHealer",
    "Vocabulary",
    "fitting_tokens",
    "read_vocabulary",
    "trim_overlap",
    "vocabulary_texts",
]
