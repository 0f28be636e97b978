"""Make token rows with missing spans, and compute their log-probabilities from both sides or from the left only.

Shapes: B rows, S tokens in the longest row, N tokens that count.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from tqdm import tqdm

from modeling_magnet.batching_magnet import plan_batches
from modeling_magnet.scoring_magnet import infill_batch, target_logprobs
from modeling_magnet.spans_magnet import continuation_ids, fill_ids
from modeling_magnet.tokenization_magnet import bos_ids
from trainer.corruption import sample_spans
from trainer.samplers import row_generator

Reading = Literal["infill", "left"]
READINGS: tuple[Reading, ...] = get_args(Reading)
# Tokens per forward, padding included. Logits are computed in chunks, only for tokens that count.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}


class RemovedSpans(NamedTuple):
    """One text as tokens, and its missing spans."""

    input_ids: list[int]
    spans: list[tuple[int, int]]  # half-open, ascending, none at position 0
    first_counted: int = 0  # spans before this index are missing, but do not count


def story_row(
    tokenizer: Any, sentences: Sequence[str], index: int, *, after: Sequence[str] | None = None
) -> RemovedSpans:
    """Remove sentence number `index` from a story; its three parts are tokenized separately, as in `score_infill`."""
    prefix = " ".join(sentences[:index])
    suffix = " ".join(sentences[index + 1 :] if after is None else after)
    before = bos_ids(tokenizer) + fill_ids(tokenizer, prefix, prefix="")
    if not before:
        raise ValueError("A first sentence is missing and the tokenizer has no BOS to predict it from. Set one.")
    fill = fill_ids(tokenizer, f" {sentences[index]}" if prefix else sentences[index], prefix=prefix)
    rest = continuation_ids(tokenizer, f" {suffix}") if suffix else []
    return RemovedSpans([*before, *fill, *rest], [(len(before), len(before) + len(fill))])


def block_rows(
    blocks: Sequence[list[int]],
    *,
    max_spans: int,
    min_span_tokens: int,
    max_span_tokens: int,
    seed: int,
    after: Sequence[list[int]] | None = None,
) -> list[RemovedSpans]:
    """Remove spans from blocks of tokens, depending on the seed and the index of each block.

    With `after`, another block for each block, every span gets a row of its own that continues with the other block's
    tokens; earlier spans of the row are missing too, but do not count.
    """
    rows = []
    for number, ids in enumerate(blocks):
        spans = sample_spans(
            len(ids),
            max_spans=max_spans,
            min_span_tokens=min_span_tokens,
            max_span_tokens=max_span_tokens,
            generator=row_generator(seed, epoch=0, row_id=number),
        )
        if after is None:
            rows.append(RemovedSpans(list(ids), spans))
            continue
        for index, (_, end) in enumerate(spans):
            rows.append(RemovedSpans([*ids[:end], *after[number][end:]], spans[: index + 1], first_counted=index))
    return rows


@torch.no_grad()
def span_logprobs(
    model: Any, rows: Sequence[RemovedSpans], *, reading: Reading, desc: str = "Reading"
) -> list[list[float]]:
    """Return for each row the log-probabilities in nats of its missing tokens that count.

    With reading `"infill"` a span sees all context and itself up to the token, as in training; a model that was
    trained to end spans is given spans of the next multiple. With `"left"` every token sees all tokens before it,
    those of earlier spans included.

    Source: MAGNET (Khosla et al. 2025), section 5.4 and Table 4.
    """
    inputs = [
        _RowInput.of(row, multiple=model.magnet_settings.end_of_span if reading == "infill" else 0) for row in rows
    ]
    context = model.config.max_position_embeddings
    longest = max((row.positions[-1] + 1 for row in inputs), default=0)
    if longest > context:
        raise ValueError(f"A text and its spans take {longest} positions, but the model has {context}. Shorten them.")
    logprobs: list[list[float]] = [[] for _ in rows]
    budget = BATCH_TOKENS["cpu" if model.device.type == "cpu" else "cuda"]
    with tqdm(total=len(rows), desc=desc, unit="row", leave=False) as bar:
        for batch in plan_batches([len(row.ids) for row in inputs], max_tokens=budget):
            for index, own in zip(batch, _read(model, [inputs[index] for index in batch], reading), strict=True):
                logprobs[index] = own
            bar.update(len(batch))
    return logprobs


class _RowInput(NamedTuple):
    """One row as model input; the first three arrays have the same length."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    targets: list[int]  # indices of the tokens that count

    @classmethod
    def of(cls, row: RemovedSpans, *, multiple: int) -> "_RowInput":
        """Make the input of a row; after each span, positions resume at the next multiple of its length."""
        length = len(row.input_ids)
        positions, segments = list(range(length)), [0] * length
        targets: list[int] = []
        for number, (start, end) in enumerate(row.spans):
            segments[start:end] = [number + 1] * (end - start)
            targets += range(start, end) if number >= row.first_counted else []
            skipped = -(end - start) % multiple if multiple else 0
            positions[end:] = [position + skipped for position in positions[end:]]
        return cls(row.input_ids, positions, segments, targets)


def _read(model: Any, rows: Sequence[_RowInput], reading: Reading) -> list[list[float]]:
    """Run one forward."""
    batch = infill_batch(model, *zip(*(row[:3] for row in rows), strict=True))
    if reading == "left":
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = [(0, number, index - 1, row.ids[index]) for number, row in enumerate(rows) for index in row.targets]
    logprobs = iter(target_logprobs(model, batch, targets, mode="causal" if reading == "left" else "infill"))
    return [[next(logprobs) for _ in row.targets] for row in rows]
