"""What filling gives: decoded spans -> texts that join with their context, best first, each once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from transformers import PreTrainedTokenizerBase

from .gaps_magnet import Seam, decode_fill
from .seams_magnet import trim_overlap
from .spans_magnet import Span


@dataclass
class Fill:
    """One answer to one gap.

    Args:
        text (`str`): What stands in the gap, so that the text in front of it, this, and the text behind it are joined.
        token_ids (`list[int]`): The tokens that were decoded or scored. Where a rule cut the text, where it was
            trimmed, or where a seam was healed, they say more than `text`.
        logprobs (`list[float]`): Each token's log-probability in nats under the model's own distribution, before
            temperature, truncation and processors.
        tokens (`list[str]`): What each token adds to `text`; joined they are the text. A character of several tokens
            counts for the last of them. Given with `return_dict_in_generate=True`.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    @property
    def logprob(self) -> float:
        """Log-probability of all tokens, in nats."""
        return sum(self.logprobs)

    @property
    def mean_logprob(self) -> float:
        """Log-probability of a token on average, in nats; 0 without tokens."""
        return self.logprob / max(len(self.logprobs), 1)


@dataclass
class InfillOutput:
    """What filling returns with `return_dict_in_generate=True`.

    Args:
        fills (`list[list[list[Fill]]]`): Per text and gap, its answers, the most probable first, no text twice.
        embeddings (`torch.FloatTensor` of shape `(num_texts, hidden_size)`, *optional*): Of each text *with its
            gaps*, by the model's own pooling; read in the same forward as the context, with an EOS behind the text
            that no context token sees. `encode` shows that EOS to the context, so its vectors differ a little. `None`
            where the tokenizer has no EOS.
        length_scores (`list[list[dict[int, float]]]`, *optional*): Per text and gap, the score of each candidate
            length, where `num_tokens` asked for several.
    """

    fills: list[list[list[Fill]]]
    embeddings: torch.Tensor | None
    length_scores: list[list[dict[int, float]]] | None = None


def fill_text(tokenizer: PreTrainedTokenizerBase, span: Span) -> str:
    """The text that a span fills in: without what a rule cut off, and without its seams, which are context."""
    text = decode_fill(tokenizer, span.before, span.token_ids)[: span.text_length]
    return text[len(span.seam.start) : max(len(text) - len(span.seam.end), 0)]


def token_texts(tokenizer: PreTrainedTokenizerBase, span: Span, text: str, *, start: int = 0) -> list[str]:
    """The part of a text that each token of its span adds.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Writes tokens as text.
        span (`Span`): A span that is complete.
        text (`str`): Its fill, of which overlaps may have been trimmed.
        start (`int`): Characters that were trimmed from its beginning.
    """
    whole = decode_fill(tokenizer, span.before, span.token_ids)
    first = len(span.seam.start) + start
    ends, end = [], 0
    for count in range(1, len(span.token_ids) + 1):
        so_far = decode_fill(tokenizer, span.before, span.token_ids[:count])
        if whole.startswith(so_far):  # else it ends inside a character
            end = len(so_far)
        ends.append(min(max(end - first, 0), len(text)))
    return [text[start:end] for start, end in pairwise([0, *ends])]


def answers(
    tokenizer: PreTrainedTokenizerBase,
    spans: Sequence[Span],
    *,
    before: str,
    after: str,
    trim: bool,
    with_tokens: bool = False,
) -> list[Fill]:
    """The different answers to one gap, the most probable first.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Writes tokens as text.
        spans (`Sequence[Span]`): The spans that were decoded for the gap.
        before (`str`): The text in front of the gap.
        after (`str`): The text behind it.
        trim (`bool`): Whether to trim what repeats the context.
        with_tokens (`bool`): Whether to give the text of each token, too.

    Raises:
        ValueError: no token fitted the gap's seam.
    """
    possible = [span for span in spans if span.is_possible]
    if not possible:
        seam = spans[0].seam
        if seam == Seam():
            raise ValueError("Every token of a gap was barred: the processors or penalties leave none. Relax them.")
        raise ValueError(
            f"No {spans[0].gap_length} tokens begin with {seam.start!r} and end with {seam.end!r}, which healing the "
            "seams takes. Allow more tokens, or heal otherwise."
        )
    fills: dict[str, Fill] = {}
    for span in possible:
        text = fill_text(tokenizer, span)
        start = 0
        if trim:
            start = len(text) - len(trim_overlap(text, before=before, after=""))
            text = trim_overlap(text, before=before, after=after)
        fill = Fill(text, span.token_ids, span.logprobs)
        if with_tokens:
            fill.tokens = token_texts(tokenizer, span, text, start=start)
        if text not in fills or fill.logprob > fills[text].logprob:
            fills[text] = fill
    return sorted(fills.values(), key=lambda fill: -fill.logprob)


__all__ = ["Fill", "InfillOutput", "answers", "fill_text", "token_texts"]
