"""Corrupt one tokenized row: mark spans as missing and mask part of the remaining context.

All randomness comes from the generator that the caller passes, see `trainer.samplers.row_generator`. S is the number
of tokens in the row.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from modeling_magnet.losses_magnet import IGNORE_INDEX

MntpShift = Literal["next", "same"]


def sample_spans(
    length: int, *, max_spans: int, min_span_tokens: int, max_span_tokens: int, generator: torch.Generator
) -> list[tuple[int, int]]:
    """Draw the missing spans of a row.

    Their number is uniform over 1..`max_spans`, or fewer if the row is too short. Each length is uniform over its
    range, whose upper limit leaves enough tokens for the remaining spans. The placement is uniform over all that leave
    a context token before, between and after the spans: position 0 is in no span, and no two spans are adjacent.

    The limits are those of `CorruptionSettings`. Returns half-open, ascending `(start, end)`, empty if no span fits.

    Source: MAGNET (Khosla et al. 2025), missing-span generation; the placement is this project's choice.

    Example:
        >>> sample_spans(6, max_spans=1, min_span_tokens=4, max_span_tokens=128, generator=torch.Generator())
        [(1, 5)]
    """
    capacity = (length - 1) // (min_span_tokens + 1)  # each span needs a context token after it
    if min(max_spans, capacity) < 1:
        return []
    num_spans = _draw_integer(1, min(max_spans, capacity), generator)

    num_free = length - (num_spans + 1)  # tokens not needed as context
    lengths = []
    for num_remaining in reversed(range(num_spans)):
        longest = min(max_span_tokens, num_free - num_remaining * min_span_tokens)
        lengths.append(_draw_integer(min_span_tokens, longest, generator))
        num_free -= lengths[-1]
    # In a short row the first draws tend to be longer; without shuffling they would always be on the left.
    lengths = [lengths[index] for index in torch.randperm(num_spans, generator=generator).tolist()]

    # Stars and bars: each choice of `num_spans` bars among num_free + num_spans positions distributes the free tokens.
    bars = sorted(torch.randperm(num_free + num_spans, generator=generator)[:num_spans].tolist())
    spans = []
    num_span_tokens = 0
    for bar, span_length in zip(bars, lengths, strict=True):
        start = 1 + bar + num_span_tokens  # a bar counts the context tokens before it, except position 0
        spans.append((start, start + span_length))
        num_span_tokens += span_length
    return spans


@dataclass(frozen=True, kw_only=True)
class CorruptionSettings:
    """Settings of the masking and of the removed spans of a row.

    Args:
        mask_ratio (`float`): Chance of a context token to be selected for MNTP, in [0, 1]; 0 turns masking off.
        mask_token_share (`float`): Share of the selected tokens that become the mask token, in [0, 1].
        random_token_share (`float`): Share of the selected tokens that become a random token, in [0, 1]; the rest
            is unchanged.
        max_spans (`int`): Upper limit of the number of missing spans, >= 0; 0 turns spans off.
        min_span_tokens (`int`): Lower limit of the length of a span, >= 1.
        max_span_tokens (`int`): Upper limit of the length of a span, >= `min_span_tokens`.
        causal_ratio (`float`): Chance of a row to be one span from its second token to its end, in [0, 1].
        mntp_shift (`str`): Which output predicts a masked token: `"next"`, the one before it (MNTP); `"same"`, its own
            (MTP, which the paper's figure 7 finds worse).
        end_of_span (`int`): 0: a span has as many positions as tokens, as in the paper. m >= 1: it reserves the next
            multiple of m, and the output at its last token predicts its end, so that the model learns to end a fill.
            Causal rows have no such end, since they were cut.

    Raises:
        ValueError: If a field is out of its range; the message lists all of them.

    Source: MAGNET (Khosla et al. 2025), section 3 and appendix (20 %, 80/10/10, up to 2 spans of 4 to 128 tokens).
    """

    mask_ratio: float = 0.2
    mask_token_share: float = 0.8
    random_token_share: float = 0.1
    max_spans: int = 2
    min_span_tokens: int = 4
    max_span_tokens: int = 128
    causal_ratio: float = 0.0
    mntp_shift: MntpShift = "next"
    end_of_span: int = 0

    def __post_init__(self) -> None:
        complaints = [
            f"`{name}` is {getattr(self, name)}; pass a share from 0 to 1."
            for name in ("mask_ratio", "mask_token_share", "random_token_share", "causal_ratio")
            if not 0 <= getattr(self, name) <= 1
        ]
        complaints += [
            f"`{name}` is {getattr(self, name)}; pass a whole number, {minimum} or more."
            for name, minimum in (("max_spans", 0), ("min_span_tokens", 1), ("end_of_span", 0))
            if not isinstance(getattr(self, name), int) or getattr(self, name) < minimum
        ]
        if self.mask_token_share + self.random_token_share > 1 + 1e-9:
            complaints.append(
                f"`mask_token_share` {self.mask_token_share} and `random_token_share` {self.random_token_share} add "
                "up to more than 1; they are shares of the selected tokens. Lower one of them."
            )
        if self.mntp_shift not in get_args(MntpShift):
            complaints.append(f"`mntp_shift` is {self.mntp_shift!r}; pass one of {list(get_args(MntpShift))}.")
        if self.max_span_tokens < self.min_span_tokens:
            complaints.append(
                f"`max_span_tokens` is {self.max_span_tokens}, below `min_span_tokens` {self.min_span_tokens}; "
                "raise the first or lower the second."
            )
        if complaints:
            raise ValueError("\n- ".join(["The corruption settings cannot be used:", *complaints]))


class CorruptedRow(NamedTuple):
    """The inputs and labels of one row; each field is a `torch.LongTensor` of shape `(S,)`.

    Labels are shifted: the output at position l predicts the original token l + 1, or the token l for masked
    tokens with `mntp_shift="same"`.
    """

    input_ids: Tensor
    segment_ids: Tensor  # 0 context, k >= 1 the k-th span
    mntp_labels: Tensor  # -100 where the next token (this token with `mntp_shift="same"`) was not selected
    msg_labels: Tensor  # -100 where the next token is not in a span
    position_ids: Tensor  # 0..S - 1, or larger if spans reserve more positions than they have tokens


def corrupt_row(
    input_ids: Tensor,
    *,
    settings: CorruptionSettings,
    mask_token_id: int,
    special_token_ids: Tensor,
    replacement_ids: Tensor,
    generator: torch.Generator,
    end_of_span_id: int | None = None,
) -> CorruptedRow:
    """Mark spans of a row as missing and mask some of its context, and make the labels of MNTP and MSG.

    Span tokens keep their ids, since attention hides them. No position has both labels, except before a span with
    `mntp_shift="same"`. All draws except those of the spans are made with any settings, so that changing one setting
    does not change the draws of another.

    Args:
        input_ids (`torch.LongTensor` of shape `(S,)`): Original tokens; not modified.
        settings, mask_token_id, end_of_span_id: As for `DataCollatorForMagnet`.
        special_token_ids (`torch.LongTensor`): Tokens that are never selected.
        replacement_ids (`torch.LongTensor`): Tokens for random replacements, at least one.
        generator (`torch.Generator`): Source of all draws, see `row_generator`.

    Source: MAGNET (Khosla et al. 2025), section 3, objectives MNTP and MSG.
    """
    length = len(input_ids)
    is_causal = torch.rand((), dtype=torch.float32, generator=generator).item() < settings.causal_ratio
    selection, kind = torch.rand(2, length, dtype=torch.float32, generator=generator)  # (S,) each, in [0, 1)
    random_ids = replacement_ids[torch.randint(len(replacement_ids), (length,), generator=generator)]
    limits = {name: getattr(settings, name) for name in ("max_spans", "min_span_tokens", "max_span_tokens")}
    spans = [(1, length)] if is_causal else sample_spans(length, **limits, generator=generator)

    segment_ids = torch.zeros_like(input_ids)
    for number, (start, end) in enumerate(spans, start=1):
        segment_ids[start:end] = number
    in_span = segment_ids > 0
    selected = selection < settings.mask_ratio
    selected &= _may_be_masked(input_ids, in_span, special_token_ids, shift=settings.mntp_shift)
    is_masked = selected & (kind < settings.mask_token_share)
    is_changed = selected & (kind < settings.mask_token_share + settings.random_token_share)
    msg_labels, position_ids = _next_token_labels(input_ids, in_span), torch.arange(length)
    for start, end in spans if settings.end_of_span and not is_causal else []:
        msg_labels[end - 1] = int(end_of_span_id or 0)
        position_ids[end:] += -(end - start) % settings.end_of_span

    corrupted = torch.where(is_changed, random_ids, input_ids).masked_fill_(is_masked, mask_token_id)
    mntp_labels = torch.where(selected, input_ids, IGNORE_INDEX)
    if settings.mntp_shift == "next":
        mntp_labels = _next_token_labels(input_ids, selected)
    return CorruptedRow(corrupted, segment_ids, mntp_labels, msg_labels, position_ids)


def _may_be_masked(input_ids: Tensor, in_span: Tensor, special_token_ids: Tensor, *, shift: MntpShift) -> Tensor:
    """Mark the tokens that can be targets: non-special context which, for `"next"`, follows context."""
    has_predictor = torch.zeros_like(in_span)
    # A span token does not predict context, and no output predicts position 0, so neither target is ever masked.
    has_predictor[1:] = ~in_span[:-1] if shift == "next" else True
    return has_predictor & ~in_span & ~torch.isin(input_ids, special_token_ids)


def _next_token_labels(input_ids: Tensor, is_target: Tensor) -> Tensor:
    """Put each target one position to the left, at the output that predicts it; position 0 is never a target."""
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    labels[:-1] = torch.where(is_target, input_ids, IGNORE_INDEX)[1:]
    return labels


def _draw_integer(low: int, high: int, generator: torch.Generator) -> int:
    """Draw a whole number uniformly from low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator).item())
