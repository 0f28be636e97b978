"""Compute metrics of generated text."""

import math
import re
from collections.abc import Hashable, Sequence

# A sentence ends at a line break, or at white space after a full stop, question mark or exclamation mark, with an
# optional closing quote or bracket.
_SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["'”’)\]]))\s+|\n+""")


def perplexity(loss_sum: float, num_tokens: int) -> float:
    """Convert a summed cross entropy to a perplexity, `exp(loss_sum / num_tokens)`.

    Args:
        loss_sum (`float`): Cross entropy summed over tokens, in nats.
        num_tokens (`int`): Number of tokens in the sum, >= 1.

    Returns:
        `float`: 1 for a certain prediction, V for a uniform one over V tokens; infinite on overflow.

    Raises:
        ValueError: If there are no tokens.

    Source: MAGNET (Khosla et al. 2025), infilling perplexity, over the tokens of removed spans.

    Example:
        >>> round(perplexity(2 * math.log(10), 2), 6)  # two tokens with probability 0.1 each
        10.0
    """
    if num_tokens < 1:
        raise ValueError(f"`num_tokens` is {num_tokens}; a perplexity needs at least one predicted token.")
    try:
        return math.exp(loss_sum / num_tokens)
    except OverflowError:
        return math.inf


def perplexity_ratio(
    losses: Sequence[tuple[float, int]], reference: Sequence[tuple[float, int]]
) -> tuple[float, float]:
    """Divide a perplexity by that of a reference on the same tokens.

    The difference between two models varies much less from text to text than their losses do, so the error of the
    ratio is smaller than that of either perplexity.

    Args:
        losses, reference (`list[tuple[float, int]]`): For each text, the cross entropy summed over tokens, in nats,
            and the number of tokens.

    Returns:
        `tuple[float, float]`: the ratio, and its standard error over a sampling of texts (first order, of a ratio
        estimator); infinite for a single text.

    Raises:
        ValueError: If the texts differ in number or in their tokens.

    Source: Cochran 1977, Sampling Techniques, section 6.3.

    Example:
        >>> ratio, error = perplexity_ratio([(20.0, 10), (31.0, 10)], [(25.0, 10), (34.0, 10)])
        >>> round(ratio, 3), round(error, 3)
        (0.67, 0.067)
    """
    counts = [count for _, count in losses]
    if counts != [count for _, count in reference] or not sum(counts):
        raise ValueError(
            f"The perplexities are of {len(counts)} texts with {sum(counts)} tokens and of {len(reference)} texts "
            f"with {sum(count for _, count in reference)} tokens; expected the same. Measure both in the same way."
        )
    differences = [own - other for (own, _), (other, _) in zip(losses, reference, strict=True)]
    mean = sum(differences) / sum(counts)
    squares = sum((difference - mean * count) ** 2 for difference, count in zip(differences, counts, strict=True))
    number = len(counts)
    error = math.sqrt(squares * number / (number - 1)) / sum(counts) if number > 1 else math.inf
    return math.exp(mean), math.exp(mean) * error


def repetition_n(texts: str | Sequence[str] | Sequence[Sequence[Hashable]], *, n: int = 4) -> float:
    """Compute Rep-n: the share of n-grams that repeat another one of the same text, averaged over the texts.

    Args:
        texts (`str`, or a list of `str` or of token lists): Generated texts; strings are split at white space.
        n (`int`): Tokens in an n-gram, >= 1.

    Returns:
        `float`: mean of `1 - unique n-grams / n-grams`, in [0, 1); a text of fewer than n tokens counts as 0.

    Raises:
        ValueError: If there is no text or `n` is below 1.

    Source: MAGNET (Khosla et al. 2025), section on repetition; Welleck et al. 2020, seq-rep-n.

    Example:
        >>> repetition_n(["a b a b a b"], n=2)  # 5 bigrams, 2 of them unique
        0.6
    """
    if n < 1:
        raise ValueError(f"`n` is {n}; an n-gram has at least one token, pass 1 or more.")
    texts = [texts] if isinstance(texts, str) else texts
    token_lists = [text.split() if isinstance(text, str) else text for text in texts]
    return _mean_share_repeated(
        [[tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)] for tokens in token_lists]
    )


def repetition_sentences(texts: str | Sequence[str]) -> float:
    """Compute Rep-Sen: the share of sentences that repeat another one of the same text, averaged over the texts.

    Args:
        texts (`str` or a list of `str`): Generated texts, see `split_sentences`. Whitespace is ignored.

    Returns:
        `float`: mean of `1 - unique sentences / sentences`, in [0, 1); an empty text counts as 0.

    Raises:
        ValueError: If there is no text.

    Source: MAGNET (Khosla et al. 2025), section on repetition.

    Example:
        >>> repetition_sentences("It rained. It rained. Then, at 3.5 degrees, it snowed. It rained.")
        0.5
    """
    texts = [texts] if isinstance(texts, str) else texts
    return _mean_share_repeated([[" ".join(sentence.split()) for sentence in split_sentences(text)] for text in texts])


def split_sentences(text: str) -> list[str]:
    """Split a text at line breaks, and at `.`, `!` or `?` followed by white space.

    Example:
        >>> split_sentences("At 3.5 degrees it snowed. “Why?” she asked.")
        ['At 3.5 degrees it snowed.', '“Why?”', 'she asked.']
    """
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def _mean_share_repeated(units_per_text: Sequence[Sequence[Hashable]]) -> float:
    """Average `1 - unique / all` over texts, each a list of units."""
    if not units_per_text:
        raise ValueError("There is no text to measure; pass at least one generated text.")
    shares = [(len(units) - len(set(units))) / len(units) if units else 0.0 for units in units_per_text]
    return sum(shares) / len(shares)
