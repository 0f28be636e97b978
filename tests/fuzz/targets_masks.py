"""Segment ids, masks, positions and the forward's checks, against explicit loops."""

import functools
import random
from pathlib import Path
from typing import Any

import torch

from modeling_magnet.masking_magnet import (
    MODES,
    attention_pattern,
    check_segment_ids,
    limit_to_window,
    positions_from_mask,
    render_pattern,
)
from modeling_magnet.pooling_magnet import POOLINGS, pool_states
from modeling_magnet.tokenization_magnet import pack_token_rows, pad_token_rows, plan_batches
from modeling_magnet.words_magnet import windows_of_text
from tests.fuzz import inputs
from tests.fuzz.judging import Target, check
from tests.trainer.tiny import tiny_model

DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.float32, torch.complex64)


def may_attend(segments: list[int], real: list[int], query: int, key: int) -> bool:
    """The rule of figure 2, one cell at a time."""
    if query == key:
        return True  # a token sees itself, padding too, so that no softmax is empty
    if not real[key]:
        return False
    return segments[key] == 0 or (segments[key] == segments[query] and key < query)


def pattern(draw: random.Random, folder: Path) -> None:
    """Patterns of any segments and padding, with a window over them, as both back-ends want them."""
    rows, keys = draw.randint(1, 3), draw.randint(1, 9)
    queries = draw.randint(1, keys)
    segments = [[draw.choice((0, 0, 1, 1, 2, 3, 100, 2**40)) for _ in range(keys)] for _ in range(rows)]
    real = [[draw.choice((1, 1, 1, 0, 2, -1)) for _ in range(keys)] for _ in range(rows)]
    mask = None if draw.random() < 0.3 else torch.tensor(real)
    if mask is None:
        real = [[1] * keys for _ in range(rows)]
    allowed = attention_pattern(torch.tensor(segments), query_length=queries, attention_mask=mask)
    window, places = draw.choice((0, 1, 3, 100)), torch.arange(keys).expand(rows, keys)
    limited = limit_to_window(
        allowed, query_positions=places[:, keys - queries :], key_positions=places, window=window
    )
    additive = render_pattern(allowed, implementation="eager", dtype=torch.float32)
    check(torch.equal(additive == 0, allowed), "the additive mask is 0 where the pattern allows")
    for row in range(rows):
        for query in range(queries):
            absolute = keys - queries + query
            for key in range(keys):
                expected = may_attend(segments[row], real[row], absolute, key)
                check(bool(allowed[row, 0, query, key]) == expected, f"cell {row, query, key} of {segments, real}")
                near = expected and abs(absolute - key) <= window
                check(bool(limited[row, 0, query, key]) == near, f"cell {row, query, key} in a window of {window}")
    if mask is not None:
        positions = positions_from_mask(mask != 0, query_length=queries).tolist()
        for row in range(rows):
            counted = [max(sum(map(bool, real[row][: place + 1])) - 1, 0) for place in range(keys)]
            check(positions[row] == counted[keys - queries :], f"positions of {real[row]}")


def segment_ids(draw: random.Random, folder: Path) -> None:
    """Ids of any shape, dtype and sign are a legal table or refused."""
    shape = (
        (draw.randrange(3), draw.randrange(5)) if draw.random() < 0.8 else tuple(inputs.some(draw, (0, 1, 2, 3), 3))
    )
    expected = shape if len(shape) == 2 and draw.random() < 0.8 else (draw.randrange(3), draw.randrange(4))
    mode = draw.choice((*MODES, "infill", "infill"))
    ids = None
    if draw.random() < 0.9:
        ids = torch.tensor([draw.randint(-1, 9) for _ in range(max(torch.Size(shape).numel(), 1))])
        ids = ids[: torch.Size(shape).numel()].reshape(shape).clamp(draw.choice((-2, 0, 0, 0)))
        ids = ids.to(draw.choice(DTYPES[:4] if draw.random() < 0.8 else DTYPES))
    check_segment_ids(ids, mode=mode, expected_shape=expected)
    if mode != "infill":
        check(ids is None, f"segment ids went through in mode {mode}")
    else:
        check(ids is not None and tuple(ids.shape) == expected, "another shape than asked for")
        check(not ids.is_floating_point() and not ids.is_complex() and ids.dtype != torch.bool, f"{ids.dtype}")
        check(all(one >= 0 for one in ids.flatten().tolist()), "a negative id")


@functools.cache
def model() -> Any:
    """The tiny random Llama of the trainer's tests, 44 tokens."""
    return tiny_model().eval()


def _tensor(draw: random.Random, shape: tuple[int, ...], values: tuple[int, ...]) -> Any:
    """A tensor of about this shape: now and then of another, of another type, or no tensor."""
    if draw.random() < 0.1:
        shape = draw.choice((shape[:-1], (*shape, 1), shape[::-1], (shape[0], 0), (0, shape[-1]), (shape[0], 70)))
    tensor = torch.tensor([draw.choice(values) for _ in range(torch.Size(shape).numel())], dtype=torch.long)
    tensor = tensor.reshape(shape)
    if draw.random() < 0.1:
        tensor = tensor.to(draw.choice(DTYPES))
    return tensor.tolist() if draw.random() < 0.03 else tensor


def forward(draw: random.Random, folder: Path) -> None:
    """A forward with hostile tables: right states whatever a span or padding hides, or a clear error."""
    shape = (draw.randint(1, 3), draw.randint(1, 8))
    # Ids are torch's to refuse, and so is what causal mode hands on to the parent as it is.
    given: dict[str, Any] = {
        "input_ids": torch.tensor([draw.choice((1, 4, 5, 20, 43)) for _ in range(shape[0] * shape[1])]).reshape(shape)
    }
    mode: Any = draw.choice((*MODES, "infill", "infill"))
    if draw.random() < 0.15:
        mode = draw.choice(
            ([draw.choice(MODES) for _ in range(shape[0])], "Causal", "", [], ["infill"], ("x",) * shape[0])
        )
    if mode == "infill" or "infill" in mode or draw.random() < 0.1:
        given["segment_ids"] = _tensor(draw, shape, draw.choice(((0, 1, 2), (0, 0, 1, 3, 7), (0, -1))))
    is_causal = mode == "causal" or "causal" in mode
    if not is_causal and draw.random() < 0.4:
        given["attention_mask"] = _tensor(draw, shape, draw.choice(((0, 1, 1, 1), (1,), (0,), (-1, 2))))
    if not is_causal and draw.random() < 0.2:
        given["position_ids"] = _tensor(draw, shape, draw.choice(((0, 1, 2, 5), (63,), (100_000,), (-1,))))
    if draw.random() < 0.15:
        given["target_ids"] = _tensor(draw, shape, draw.choice(((-100, 4, 43), (-100,), (44,), (-1,))))
        given["num_targets"] = draw.choice((None, None, 0, 1, 1000, -1))
    elif draw.random() < 0.1:
        given["logits_to_keep"] = draw.choice((1, 3, -1, torch.arange(0), torch.tensor([0])))
    with torch.no_grad():
        output = model()(**given, mode=mode)
    states = output.last_hidden_state
    check(states.shape[:2] == given["input_ids"].shape, f"states of shape {tuple(states.shape)}")
    check(bool(torch.isfinite(states).all()), "states that are no numbers")
    if mode == "infill" and "attention_mask" not in given:
        _check_spans_are_hidden(given, states)


def _check_spans_are_hidden(given: dict[str, Any], states: torch.Tensor) -> None:
    """Context and other spans do not see what stands in the last span."""
    segments = given["segment_ids"]
    if not int(segments.max()):
        return
    hidden = segments == segments.max()
    changed = torch.where(hidden, 48 - given["input_ids"].clamp(5, 43), given["input_ids"])
    with torch.no_grad():
        other = model()(**{**given, "input_ids": changed}, mode="infill").last_hidden_state
    check(
        torch.allclose(states[~hidden], other[~hidden], atol=1e-5), f"a span is seen from outside: {segments.tolist()}"
    )


def windows(draw: random.Random, folder: Path) -> None:
    """Windows keep each token once, in order, each with the context that it needs."""
    length, size = draw.choice((0, 1, 2, 5, 17, 100, 1000)), inputs.small(draw)
    overlap: Any = draw.choice((None, None, 0, 1, 2, size - 1, size, -1, inputs.number(draw)))
    shift, mode = draw.choice(("next", "same")), draw.choice(("bidirectional", "causal"))
    plan = windows_of_text(length, num_front=1, size=size, overlap=overlap, shift=shift, mode=mode)
    kept = [place for window in plan for place in range(window.keep_start, window.keep_end)]
    check(kept == list(range(length)), f"kept {kept[:20]} of {length}")
    for window in plan:
        check(0 <= window.start <= window.keep_start < window.keep_end <= window.end <= length, f"{window}")
        check(window.end - window.start <= size, f"{window} is longer than {size}")
        check(window.keep_start > window.start or window.start == 0 or shift == "same", f"{window} lacks a context")


def batches(draw: random.Random, folder: Path) -> None:
    """Batches hold each row once and no more than the budget; padding and packing lose nothing."""
    rows = [[draw.randrange(1, 50) for _ in range(draw.choice((1, 1, 2, 5, 30)))] for _ in range(draw.randint(1, 9))]
    budget, most, padded = draw.choice((1, 2, 8, 64, 10**9)), draw.choice((None, 1, 2)), draw.random() < 0.5
    plan = plan_batches([len(row) for row in rows], max_tokens=budget, max_rows=most, padded=padded)
    check(sorted(index for batch in plan for index in batch) == list(range(len(rows))), f"not each row once: {plan}")
    for batch in plan:
        lengths = [len(rows[index]) for index in batch]
        needed = len(batch) * max(lengths) if padded else sum(lengths)
        check(needed <= budget or len(batch) == 1, f"{needed} tokens of {budget}")
        check(most is None or len(batch) <= most, f"{len(batch)} rows of {most}")
    side = draw.choice(("left", "right"))
    tables = pad_token_rows(rows, pad_token_id=0, padding_side=side)
    mask = tables["attention_mask"].bool()
    check(
        [ids[real].tolist() for ids, real in zip(tables["input_ids"], mask, strict=True)] == rows,
        "padding lost tokens",
    )
    packed = pack_token_rows(rows, pad_token_id=0, multiple=draw.choice((1, 2, 7)))
    check(
        [packed.input_ids[packed.row_ids == number].tolist() for number in range(len(rows))] == rows,
        "packing lost tokens",
    )
    states, length = torch.randn(*tables["input_ids"].shape, 2), draw.choice((0, 1, 5, 100))
    pooled = pool_states(states, tables["attention_mask"], pooling=draw.choice(POOLINGS), prompt_length=length)
    check(pooled.shape == (len(rows), 2) and bool(torch.isfinite(pooled).all()), "no finite vector for each row")


TARGETS = (
    Target(name="pattern", run=pattern, weight=40, seeds=100),
    Target(name="segment_ids", run=segment_ids, weight=120, seeds=300),
    Target(name="forward", run=forward, weight=12, seeds=120),
    Target(name="windows", run=windows, weight=120, seeds=300),
    Target(name="batches", run=batches, weight=30, seeds=100),
)
