"""What is decoded: spans, each one answer to one gap, and the rows of tokens they stand in."""

from dataclasses import dataclass, field

from .gaps_magnet import GappedText, Seam


@dataclass(kw_only=True)
class Span:
    """One answer to one gap while it grows.

    Args:
        gap (`int`): Which gap of its text.
        before (`list[int]`): Context tokens in front of the gap, special ones left out; what stands in an earlier gap
            is left out as well, for no span sees another.
        gap_length (`int`): Tokens it can have in all.
        stream (`int`): Its stream of random numbers, see `TokenChooser`.
        rank (`int`): Greedy answers to one gap begin with different tokens: 0 with the likeliest, 1 with the next.
        seam (`Seam`): What its text has to begin and end with.
        token_ids (`list[int]`): Its tokens so far.
        logprobs (`list[float]`): Their log-probabilities in nats under the model's own distribution.
        has_ended (`bool`): Whether a rule ended it before its gap was full.
        is_possible (`bool`): Whether every token of it was allowed; if not, it is no answer.
        text_length (`int`, *optional*): Characters of its text to keep, where a rule ended it inside a token.
    """

    gap: int
    before: list[int]
    gap_length: int
    stream: int
    rank: int = 0
    seam: Seam = field(default_factory=Seam)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    has_ended: bool = False
    is_possible: bool = True
    text_length: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether nothing more goes into its gap."""
        return self.has_ended or len(self.token_ids) == self.gap_length


@dataclass(frozen=True)
class SpanRow:
    """One row of context tokens and the spans that are decoded in it; they see it, and not each other."""

    text: GappedText
    spans: list[Span]


__all__ = ["Span", "SpanRow"]
