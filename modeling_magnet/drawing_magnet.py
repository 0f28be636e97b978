"""Scores -> one drawn token for each row, with the distribution cut as `generate` cuts it.

A few rows are drawn at a time, and each by itself: what is drawn does not depend on the rows beside it, and what
exists at once does not grow with their number. The tokens that a cut leaves are gathered before anything else is done
with them: top-k leaves some 50 of a vocabulary of 262,144. The cumulative sums are taken in double precision and in
the order of the vocabulary.

Shapes: N rows, V vocabulary, M tokens that are left in the row that keeps most.
"""

import torch
from transformers.generation.logits_process import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

# Scores of the rows that are drawn at once. Of a flat row each takes up to 40 bytes beside its own four.
_CPU_SCORES, _DEVICE_SCORES = 2**20, 2**24
# So many tokens usually hold the share that top-p keeps; only of flatter rows is the whole vocabulary sorted.
_NUCLEUS = (1024, 16_384)


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
        elif isinstance(warper, TopPLogitsWarper):
            scores, ids = _nucleus(scores, ids, share=warper.top_p)
        else:
            scores = warper(_NO_IDS, scores)
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


def _nucleus(
    scores: torch.Tensor, ids: torch.Tensor | None, *, share: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What `TopPLogitsWarper` leaves of each row, without sorting the vocabulary where few tokens hold the share.

    Of tokens that are as likely as one another the first are cut, where its sort leaves that to chance.

    Args:
        scores (`torch.FloatTensor` of shape `(N, M)`): Scores of gathered tokens, or `(N, V)` of all.
        ids (`torch.LongTensor` of shape `(N, M)`, *optional*): The tokens that were gathered.
        share (`float`): Least probability of those that stay.

    Returns:
        `tuple`: scores with -inf for what was cut, and tokens; `None` for all.
    """
    log_total = scores.logsumexp(-1, keepdim=True).double()  # (N, 1)
    if ids is None:
        for count in _NUCLEUS:
            if count < scores.shape[-1]:
                highest = scores.topk(count).values
                if bool(((highest.double() - log_total).exp().sum(-1) >= share).all()):
                    scores, ids = _gather(scores, highest[:, -1:])
                    break
    order = scores.argsort(dim=-1, stable=True)
    below = scores.gather(-1, order).double().sub_(log_total).exp_()
    # All that was not gathered is less likely than what was.
    rest = (1 - below.sum(-1, keepdim=True)).clamp(min=0)
    is_cut = below.cumsum(-1).add_(rest) <= 1 - share
    is_cut[:, -1] = False
    return scores.masked_fill(is_cut.scatter(-1, order, is_cut), -torch.inf), ids


# Warpers do not look at the tokens so far.
_NO_IDS = torch.empty(0, dtype=torch.long)

__all__ = ["draw_tokens"]
