"""Score given fills. Those of equal length share one row, as spans that do not see each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.utils.logging import tqdm

from .encoding_magnet import PROGRESS_FROM_BATCHES, hides_bar
from .spans_magnet import Fill, Healing, SpanLayout, check_healing, fill_ids, lay_out, round_up
from .tokenization_magnet import check_texts, plan_batches


@dataclass(frozen=True)
class ScoredRow:
    """One text and all its fills of one length: number of the fill -> tokens."""

    text: int
    layout: SpanLayout
    fills: dict[int, list[int]]

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return len(self.layout.token_ids) + sum(map(len, self.fills.values()))


@torch.no_grad()
def score_infill(
    model: Any,
    prefix: str | Sequence[str],
    fills: Sequence[str] | Sequence[Sequence[str]],
    suffix: str | Sequence[str],
    *,
    heal: Healing | None,
    split_special_tokens: bool,
    batch_tokens: int | None,
    show_progress_bar: bool | None,
) -> list[Fill] | list[list[Fill]]:
    """Return the log-probabilities of given fills; see `InfillingMixin.score_infill`."""
    check_healing(heal)
    single = isinstance(prefix, str) and isinstance(suffix, str)
    prefixes = check_texts([prefix] if isinstance(prefix, str) else prefix, name="prefix")
    suffixes = check_texts([suffix] if isinstance(suffix, str) else suffix, name="suffix")
    candidates: Any = [fills] if single else fills
    if isinstance(candidates, str) or not isinstance(candidates, Sequence):
        raise ValueError(f"`fills` is {type(fills).__name__}; expected a list of fills for each prefix.")
    if not len(prefixes) == len(suffixes) == len(candidates):
        raise ValueError(
            f"{len(prefixes)} prefixes, {len(suffixes)} suffixes and {len(candidates)} lists of fills were given; "
            "expected as many of each."
        )
    read = partial(scored_rows, model, heal=heal, split_special_tokens=split_special_tokens)
    texts = zip(prefixes, candidates, suffixes, strict=True)
    rows = [row for text, (before, given, after) in enumerate(texts) for row in read(text, before, given, after)]
    model._probe_attention()
    scored: list[list[Fill]] = [[Fill(fill) for fill in given] for given in candidates]
    batches = plan_batches([row.length for row in rows], max_tokens=model._batch_tokens(batch_tokens, None))
    hide = hides_bar(show_progress_bar, len(batches), least=PROGRESS_FROM_BATCHES)
    with tqdm(total=len(rows), desc="Scoring", unit="row", disable=hide) as bar:
        for batch in batches:
            with model._evaluating(), model._adapters_for("infill"):
                by_row = _score_rows(model, [rows[index] for index in batch])
            for index, logprobs in zip(batch, by_row, strict=True):
                row = rows[index]
                for (number, ids), own in zip(row.fills.items(), logprobs, strict=True):
                    fill = scored[row.text][number]
                    fill.token_ids, fill.logprobs = ids, own
            bar.update(len(batch))
    return scored[0] if single else scored


def scored_rows(
    model: Any,
    text: int,
    prefix: str,
    fills: Sequence[str],
    suffix: str,
    *,
    heal: Healing | None = "space",
    split_special_tokens: bool = True,
) -> list[ScoredRow]:
    """Tokenize the fills of one text; those of equal length get one row."""
    if isinstance(fills, str) or not isinstance(fills, Sequence):
        raise ValueError(f"The fills of text {text} are {fills!r:.40}; expected a list of strings.")
    if not len(fills):
        raise ValueError(f"Text {text} has no fill to score. Pass at least one.")
    tokenizer = model.tokenizer
    lay = partial(
        lay_out,
        tokenizer,
        [prefix, suffix],
        context_length=model.config.max_position_embeddings,
        heal=heal,
        split_special_tokens=split_special_tokens,
    )
    (healed,) = lay(span_lengths=[1]).healed
    # A model that was trained to end spans knows only multiples; spans with healed tokens have exact lengths.
    multiple = 1 if heal == "token" else model.magnet_settings.end_of_span or 1
    by_length: dict[int, dict[int, list[int]]] = {}
    for number, fill in enumerate(check_texts(fills, name="fills")):
        if not fill:
            raise ValueError(f"`fills[{number}]` of text {text} is empty; a fill has at least one token.")
        whole = healed.start + fill + healed.end
        ids = fill_ids(tokenizer, whole, prefix=prefix, split_special_tokens=split_special_tokens)
        by_length.setdefault(round_up(len(ids), multiple), {})[number] = ids
    return [ScoredRow(text, lay(span_lengths=[length]), own) for length, own in by_length.items()]


def _score_rows(model: Any, rows: Sequence[ScoredRow]) -> list[list[list[float]]]:
    """Return per row and fill the log-probability of each token, from one forward."""
    ids, positions, segments = [], [], []
    targets: list[tuple[int, int, int, int]] = []  # number of the fill, row, place, token
    for row_number, row in enumerate(rows):
        layout = row.layout
        row_ids, row_positions = list(layout.token_ids), list(layout.positions)
        row_segments = [0] * len(row_ids)
        for segment, fill in enumerate(row.fills.values(), start=1):
            # The output before a token predicts it; the context predicts the first token of each fill.
            places = [layout.predictors[0], *range(len(row_ids), len(row_ids) + len(fill) - 1)]
            targets += [(segment - 1, row_number, place, token) for place, token in zip(places, fill, strict=True)]
            row_ids += fill
            row_positions += range(layout.span_starts[0], layout.span_starts[0] + len(fill))
            row_segments += [segment] * len(fill)
        ids.append(row_ids)
        positions.append(row_positions)
        segments.append(row_segments)
    batch = model._infill_batch(ids, positions, segments)
    scores = model._target_logprobs(batch, targets, mode="infill")
    if any(map(math.isnan, scores)):
        raise ValueError("The model gave NaN logits for a token of a fill. Check its weights and dtype.")
    logprobs = iter(scores)
    return [[[next(logprobs) for _ in fill] for fill in row.fills.values()] for row in rows]


__all__ = ["score_infill", "scored_rows"]
