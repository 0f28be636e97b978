"""Scores -> one drawn token for each row, with the distribution cut as `generate` cuts it.

A few rows are drawn at a time, and each by itself: what is drawn does not depend on the rows beside it, and what exists
at once does not grow with their number. The tokens that a cut leaves are gathered before anything else is done with
them: top-k leaves some 50 of a vocabulary of 262,144. The cumulative sums are taken in double precision and in the
order of the vocabulary.

Shapes: N rows, V vocabulary, M tokens that are left in the row that keeps most.
"""

import torch
from transformers.generation.logits_process import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

# Scores of the rows that are drawn at once; each has up to four copies, two of them in double precision.
_CPU_SCORES, _DEVICE_SCORES = 2**21, 2**24
# Tokens that usually hold the share that top-p keeps; only a flatter row has its whole vocabulary sorted.
_NUCLEUS = 1024


def draw_tokens(scores: torch.Tensor, numbers: torch.Tensor, *, warpers: LogitsProcessorList) -> torch.Tensor:
    """The token of each row in whose share of the distribution the row's number falls.

    Args:
        scores (`torch.FloatTensor` of shape `(N, V)`): Unnormalised log-probabilities; they are not written to.
        numbers (`torch.DoubleTensor` of shape `(N,)`): Drawn from [0, 1).
        warpers (`LogitsProcessorList`): Temperature and cuts, in the order of their application.

    Returns:
        `torch.LongTensor` of shape `(N,)`: any token where a row has none that is possible.
    """
    rows = max(1, (_CPU_SCORES if scores.device.type == "cpu" else _DEVICE_SCORES) // scores.shape[-1])
    parts = zip(scores.split(rows), numbers.split(rows), strict=True)
    return torch.cat([_draw(part, own, warpers=warpers) for part, own in parts])


def _draw(scores: torch.Tensor, numbers: torch.Tensor, *, warpers: LogitsProcessorList) -> torch.Tensor:
    """`draw_tokens` of rows that are few enough."""
    ids: torch.Tensor | None = None  # (N, M), once tokens have been gathered
    for warper in warpers:
        if ids is None and isinstance(warper, TopKLogitsWarper):
            scores, ids = _gather(scores, scores.topk(min(warper.top_k, scores.shape[-1])).values[:, -1:])
        elif ids is None and isinstance(warper, TopPLogitsWarper):
            scores, ids = _nucleus(scores, share=warper.top_p)
        else:
            scores = warper(_NO_IDS, scores)  # type: ignore[arg-type]
    cumulative = torch.softmax(scores, dim=-1, dtype=torch.float64).cumsum(-1)
    # Scaled by the last sum, so that rounding cannot leave the draw behind the last token.
    places = torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True)
    places = places.clamp(max=scores.shape[-1] - 1)  # a row of NaN points behind the end
    return (places if ids is None else ids.gather(-1, places))[:, 0]


def _gather(scores: torch.Tensor, least: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of each row that score `least` or more and are possible.

    Ties with the last one stay, as they do in `TopKLogitsWarper`.

    Args:
        scores (`torch.FloatTensor` of shape `(N, V)`): Scores.
        least (`torch.FloatTensor` of shape `(N, 1)`): The lowest that stays.

    Returns:
        `tuple`: scores and tokens `(N, M)`, in the order of the vocabulary, with -inf in front of shorter rows.
    """
    stays = (scores >= least) & (scores > -torch.inf)
    rows, tokens = stays.nonzero(as_tuple=True)  # row by row, tokens ascending
    counts = stays.sum(-1)
    width = max(1, int(counts.max()))
    columns = torch.arange(len(rows), device=scores.device) + (width - counts.cumsum(0))[rows]
    kept = scores.new_full((len(scores), width), -torch.inf)
    ids = torch.zeros(kept.shape, dtype=torch.long, device=scores.device)
    kept[rows, columns], ids[rows, columns] = scores[rows, tokens], tokens
    return kept, ids


def _nucleus(scores: torch.Tensor, *, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What `TopPLogitsWarper` leaves of each row, without sorting the vocabulary where few tokens hold the share.

    Returns:
        `tuple`: as `_gather`, with -inf for what was cut.
    """
    log_total = scores.logsumexp(-1, keepdim=True).double()  # (N, 1)
    highest = scores.topk(min(_NUCLEUS, scores.shape[-1])).values
    is_enough = bool(((highest.double() - log_total).exp().sum(-1) >= share).all())
    kept, ids = _gather(scores, highest[:, -1:] if is_enough else torch.full_like(log_total, -torch.inf))
    order = kept.argsort(dim=-1, stable=True)
    chances = (kept.double() - log_total).exp().gather(-1, order)
    # All that is not here is less likely than what is.
    below = (1 - chances.sum(-1, keepdim=True)).clamp(min=0) + chances.cumsum(-1)
    is_cut = below <= 1 - share
    is_cut[:, -1] = False
    return kept.masked_fill(is_cut.scatter(-1, order, is_cut), -torch.inf), ids


# Warpers do not look at the tokens so far.
_NO_IDS = torch.empty(0, dtype=torch.long)

__all__ = ["draw_tokens"]
