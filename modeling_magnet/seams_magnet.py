"""Where a fill meets its context: tokens that spell a healed seam, and repetitions of the context to trim."""

import re
from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerBase

from .gaps_magnet import decode_fill
from .spans_magnet import Span
from .special_tokens_magnet import special_ids

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
    texts = vocabulary_texts(tokenizer, vocab_size)
    known = set(texts) - {""}

    def fits(text: str) -> bool:
        if not text or (is_last and not end and text == rest == " "):
            return False  # the space of the context alone would fill the gap with nothing
        if is_last:
            return text.startswith(rest) and text.endswith(end) and len(text) >= len(rest) + len(end)
        return text.startswith(rest) or (may_go_on and rest.startswith(text) and rest[len(text) :] in known)

    return torch.tensor([fits(text) for text in texts])


@lru_cache(maxsize=2)
def vocabulary_texts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> tuple[str, ...]:
    """What each token adds to a text that it continues; special tokens add nothing."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    size = min(vocab_size, len(tokenizer))
    special = special_ids(tokenizer)
    front = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
    both = tokenizer.batch_decode([[*anchor, token] for token in range(size)], clean_up_tokenization_spaces=False)
    texts = ["" if token in special else text[len(front) :] for token, text in enumerate(both)]
    return (*texts, *[""] * (vocab_size - size))


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


__all__ = ["SeamHealer", "fitting_tokens", "trim_overlap", "vocabulary_texts"]
