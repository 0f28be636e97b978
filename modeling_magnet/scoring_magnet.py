"""Score given fills, and the lengths that `infill` tries.

Fills of equal length share one row, as spans that do not see each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.utils.logging import tqdm

from .batching_magnet import (
    PROGRESS_FROM_BATCHES,
    evaluating,
    is_progress_hidden,
    pad_token_id,
    plan_batches,
    probe_attention,
    to_device,
    token_budget,
)
from .configuration_magnet import AttentionMode, MagnetSettings
from .losses_magnet import IGNORE_INDEX
from .spans_magnet import Fill, FilledText, Healing, SpanLayout, fill_ids, lay_out, round_up
from .tokenization_magnet import check_pairs, check_texts, pad_token_rows

# Number of tokens after a span that count for the score of its length; chosen by hand.
JOIN_TOKENS = 8


@dataclass(frozen=True)
class ScoredRow:
    """One text with all its fills of one length."""

    text: int
    layout: SpanLayout
    fills: dict[int, list[int]]  # index of the fill -> its tokens

    @property
    def length(self) -> int:
        """Number of tokens in the row."""
        return len(self.layout.token_ids) + sum(map(len, self.fills.values()))


@torch.no_grad()
def score_infill(
    model: Any,
    prefix: str | Sequence[str],
    fills: Sequence[str] | Sequence[Sequence[str]],
    suffix: str | Sequence[str],
    *,
    heal: Healing | None = "space",
    split_special_tokens: bool = True,
    batch_tokens: int | None = None,
    show_progress_bar: bool | None = None,
) -> list[Fill] | list[list[Fill]]:
    """Return the log-probabilities of given fills between a prefix and a suffix.

    They equal the log-probabilities of decoding. Each fill is scored in a span of its own length. With `end_of_span`,
    span lengths are rounded up as in decoding, and the probability of the end token is excluded.

    Args:
        prefix (`str` or `list[str]`): Text before the blank; may be empty.
        fills (`list[str]`, or a list of such lists): The candidates; none may be empty.
        suffix (`str` or `list[str]`): Text after the blank.
        heal (`str`, *optional*, defaults to `"space"`): As in `infill`.
        split_special_tokens (`bool`, defaults to `True`): As in `infill`.
        batch_tokens (`int`, *optional*): Maximum number of tokens per forward pass, including padding. The default
            depends on the device.
        show_progress_bar (`bool`, *optional*): Whether to show a progress bar. Defaults to `True` for many batches.

    Returns:
        `list[Fill]`, or a list of them for lists, in the given order. Compare fills of equal length by `logprob` and
        fills of different lengths by `mean_logprob`.

    Raises:
        ValueError: If lists differ in length, a fill is missing or empty, there is no text around the blank, or a text
            exceeds the context.

    Source: Khosla et al. 2025, section 3.3; the shared row follows from the mask (Figure 2).
    """
    single, prefixes, suffixes = check_pairs(prefix, suffix)
    candidates: Any = [fills] if single else fills
    if len(candidates) != len(prefixes):
        raise ValueError(f"`fills` has {len(candidates)} lists for {len(prefixes)} texts. Pass one list per text.")
    rows_of = partial(scored_rows, model, heal=heal, split_special_tokens=split_special_tokens)
    texts = enumerate(zip(prefixes, candidates, suffixes, strict=True))
    rows = [row for text, (before, strings, after) in texts for row in rows_of(text, before, strings, after)]
    probe_attention(model)
    scored: list[list[Fill]] = [[Fill(string) for string in strings] for strings in candidates]
    batches = plan_batches([row.length for row in rows], max_tokens=token_budget(model, batch_tokens))
    is_hidden = is_progress_hidden(show_progress_bar, len(batches), minimum=PROGRESS_FROM_BATCHES)
    with tqdm(total=len(rows), desc="Scoring", unit="row", disable=is_hidden) as bar, evaluating(model):
        for batch in batches:
            for index, logprobs in zip(batch, _score_rows(model, [rows[index] for index in batch]), strict=True):
                row = rows[index]
                for (number, ids), logprobs_of_fill in zip(row.fills.items(), logprobs, strict=True):
                    fill = scored[row.text][number]
                    fill.token_ids, fill.logprobs = ids, logprobs_of_fill
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
    """Tokenize the fills of one text, and return one row for each length of a fill."""
    if isinstance(fills, str) or not len(check_texts(fills, name="fills")) or "" in fills:
        raise ValueError(f"`fills` of text {text} are {fills!r:.60}; expected a list of non-empty strings.")
    tokenizer, max_positions = model.tokenizer, model.config.max_position_embeddings
    reading: dict[str, Any] = {"split_special_tokens": split_special_tokens}
    layout_of = partial(lay_out, tokenizer, [prefix, suffix], context_length=max_positions, heal=heal, **reading)
    (healed,) = layout_of(span_lengths=[1]).healed
    # A model trained to end spans has only seen multiples; spans with healed tokens have exact lengths.
    multiple = 1 if heal == "token" else MagnetSettings.from_config(model.config).end_of_span or 1
    by_length: dict[int, dict[int, list[int]]] = {}
    for number, fill in enumerate(fills):
        whole = healed.start + fill + healed.end
        ids = fill_ids(tokenizer, whole, prefix=prefix, **reading)
        by_length.setdefault(round_up(len(ids), multiple), {})[number] = ids
    return [ScoredRow(text, layout_of(span_lengths=[length]), tokens) for length, tokens in by_length.items()]


def _score_rows(model: Any, rows: Sequence[ScoredRow]) -> list[list[list[float]]]:
    """Return the log-probability of each token, for each row and fill, from one forward pass."""
    ids, positions, segments = [], [], []
    targets: list[tuple[int, int, int, int]] = []  # index of the fill, row, index of the predicting token, token
    for row_number, row in enumerate(rows):
        layout = row.layout
        row_ids, row_positions = list(layout.token_ids), list(layout.positions)
        row_segments = [0] * len(row_ids)
        for segment, fill in enumerate(row.fills.values(), start=1):
            # The output at the previous token predicts a token; the context predicts the first token of each fill.
            predictors = [layout.predictors[0], *range(len(row_ids), len(row_ids) + len(fill) - 1)]
            targets += [(segment - 1, row_number, index, token) for index, token in zip(predictors, fill, strict=True)]
            row_ids += fill
            row_positions += range(layout.span_starts[0], layout.span_starts[0] + len(fill))
            row_segments += [segment] * len(fill)
        ids.append(row_ids)
        positions.append(row_positions)
        segments.append(row_segments)
    batch = infill_batch(model, ids, positions, segments)
    scores = target_logprobs(model, batch, targets, mode="infill")
    if any(map(math.isnan, scores)):
        raise ValueError("The model gave NaN logits for a token of a fill. Check its weights and dtype.")
    logprobs = iter(scores)
    return [[[next(logprobs) for _ in fill] for fill in row.fills.values()] for row in rows]


def length_scores(model: Any, texts: Sequence[FilledText], *, batch_size: int) -> list[list[float]]:
    """Return the score of the length of each fill, for texts with one answer to each blank.

    It is the mean log-probability of the tokens of the fill, plus that of the first tokens after it when the filled
    text is read causally: the fill must be likely in its context, and the text after it must be likely to follow. Sums
    would always prefer the shortest length.
    """
    scores: list[list[float]] = [[] for _ in texts]
    by_length = sorted(range(len(texts)), key=lambda index: -texts[index].layout.length)
    for start in range(0, len(texts), batch_size):
        batch = by_length[start : start + batch_size]
        joins = _join_logprobs(model, [texts[index] for index in batch])
        for index, joins_of_text in zip(batch, joins, strict=True):
            for (span,), join in zip(texts[index].spans, joins_of_text, strict=True):
                has_text = span.is_possible and len(span.logprobs) > 0
                mean = sum(span.logprobs) / len(span.logprobs) if has_text else -torch.inf
                scores[index].append(mean + join)
    return scores


def _join_logprobs(model: Any, texts: Sequence[FilledText]) -> list[list[float]]:
    """Return the causal mean log-probability of the first tokens after each span; 0 at the end of a text."""
    rows: list[list[int]] = []
    ranges: list[list[range]] = []  # for each text and span, the indices of the tokens after the span
    for text in texts:
        ids = list(text.layout.parts[0])
        after = []
        for (span,), part in zip(text.spans, text.layout.parts[1:], strict=True):
            ids += span.token_ids
            after.append(range(len(ids), len(ids) + min(JOIN_TOKENS, len(part))))
            ids += part
        rows.append(ids)
        ranges.append(after)
    batch = to_device(model, pad_token_rows(rows, pad_token_id=pad_token_id(model)))
    indices = [(row, index) for row, after in enumerate(ranges) for span_range in after for index in span_range]
    targets = [(0, row, index - 1, rows[row][index]) for row, index in indices]
    logprobs = iter(target_logprobs(model, batch, targets, mode="causal"))
    return [
        [sum(next(logprobs) for _ in span_range) / max(len(span_range), 1) for span_range in after] for after in ranges
    ]


def infill_batch(
    model: Any, ids: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], segments: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Pad rows with their positions and segments to the arguments of an infill forward, on the model's device."""
    batch = pad_token_rows(ids, pad_token_id=pad_token_id(model))
    batch["position_ids"] = pad_token_rows(positions, pad_token_id=0)["input_ids"]
    batch["segment_ids"] = pad_token_rows(segments, pad_token_id=0)["input_ids"]
    return to_device(model, batch)


def target_logprobs(
    model: Any, batch: dict[str, torch.Tensor], targets: Sequence[tuple[int, int, int, int]], *, mode: AttentionMode
) -> list[float]:
    """Return the log-probabilities of tokens in one forward, without holding all their logits in memory.

    Args:
        batch (`dict`): Arguments of the forward, on the model's device.
        targets (`Sequence[tuple[int, int, int, int]]`): Layer, row, position and token: the output at the position
            predicts the token. Several tokens at one position go to different layers, counted from 0.
        mode (`str`): Attention mode.
    """
    if not targets:
        return []
    layers, rows, columns, tokens = to_device(model, {"all": torch.tensor(targets).T.contiguous()})["all"]
    shape = (1 + max(target[0] for target in targets), *batch["input_ids"].shape)
    target_ids = torch.full(shape, IGNORE_INDEX, device=model.device)
    target_ids[layers, rows, columns] = tokens
    outputs = model(**batch, mode=mode, target_ids=target_ids, num_targets=len(targets), use_cache=False)
    logprobs: list[float] = (-outputs.token_losses[layers, rows, columns]).tolist()
    return logprobs
