"""Spans, masks and labels of one row, by property tests, by hand and by explicit loops."""

from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.corruption import CorruptedRow, CorruptionSettings, corrupt_row, sample_spans
from trainer.samplers import row_generator

VOCAB_SIZE = 40
MASK, BOS, EOS = 39, 1, 2
SPECIAL = torch.tensor([0, BOS, EOS])
ORDINARY = torch.arange(3, VOCAB_SIZE)


def corrupt(input_ids: Tensor, *, seed=0, end_of_span_id=None, replacement_ids=ORDINARY, **fields) -> CorruptedRow:
    return corrupt_row(
        input_ids,
        settings=CorruptionSettings(**fields),
        mask_token_id=MASK,
        special_token_ids=SPECIAL,
        replacement_ids=replacement_ids,
        generator=row_generator(seed, epoch=0, row_id=0),
        end_of_span_id=end_of_span_id,
    )


def placements(length: int, lengths: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    """Return all placements of spans of these lengths, in order, with context before, between and after."""
    found = set()
    for starts in combinations(range(1, length), len(lengths)):
        spans = tuple((start, start + size) for start, size in zip(starts, lengths, strict=True))
        ends = [0, *(end for _, end in spans)]
        if all(start > end for (start, _), end in zip(spans, ends, strict=False)) and spans[-1][1] < length:
            found.add(spans)
    return found


# ---- sample_spans ----


@given(
    length=st.integers(0, 90),
    max_spans=st.integers(0, 5),
    min_span_tokens=st.integers(1, 12),
    more_tokens=st.integers(0, 40),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_spans_satisfy_their_constraints(length, max_spans, min_span_tokens, more_tokens, seed):
    max_span_tokens = min_span_tokens + more_tokens
    spans = sample_spans(
        length,
        max_spans=max_spans,
        min_span_tokens=min_span_tokens,
        max_span_tokens=max_span_tokens,
        generator=torch.Generator().manual_seed(seed),
    )
    assert len(spans) <= max_spans
    assert bool(spans) == (max_spans > 0 and length >= min_span_tokens + 2)
    last_end = 0
    for start, end in spans:
        assert min_span_tokens <= end - start <= max_span_tokens
        assert start > last_end, "context before and between"
        last_end = end
    assert not spans or last_end < length, "context after"


@pytest.mark.parametrize(
    (
        "length",
        "lengths",
        "limit",
    ),  # the 99.9 % quantile of chi-square, with 6 - 1, 10 - 1 and 20 - 1 degrees of freedom
    [(10, (3,), 20.5), (12, (3, 3), 27.9), (10, (1, 1, 1), 43.8)],
)
def test_every_placement_is_equally_likely(length, lengths, limit):
    generator = torch.Generator().manual_seed(0)
    draws = Counter(
        tuple(
            sample_spans(
                length,
                max_spans=len(lengths),
                min_span_tokens=lengths[0],
                max_span_tokens=lengths[0],
                generator=generator,
            )
        )
        for _ in range(12_000)
    )
    possible = placements(length, lengths)
    counts = torch.tensor([float(draws[spans]) for spans in possible])
    assert {spans for spans in draws if len(spans) == len(lengths)} == possible
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < limit


def test_number_and_length_are_uniform_when_the_row_is_long():
    generator = torch.Generator().manual_seed(0)
    rows = [
        sample_spans(400, max_spans=3, min_span_tokens=4, max_span_tokens=8, generator=generator) for _ in range(6000)
    ]
    numbers = Counter(len(spans) for spans in rows)
    lengths = Counter(end - start for spans in rows for start, end in spans)
    assert numbers == {number: pytest.approx(2000, rel=0.08) for number in (1, 2, 3)}
    assert lengths == {length: pytest.approx(sum(lengths.values()) / 5, rel=0.08) for length in (4, 5, 6, 7, 8)}


def test_short_rows_do_not_favor_long_spans_on_the_left():
    generator = torch.Generator().manual_seed(0)
    pairs = [
        spans
        for _ in range(6000)
        if len(spans := sample_spans(20, max_spans=2, min_span_tokens=2, max_span_tokens=128, generator=generator)) > 1
    ]
    left, right = (sum(end - start for start, end in side) / len(pairs) for side in zip(*pairs, strict=True))
    assert left == pytest.approx(right, rel=0.05)


def test_invalid_settings_raise_in_one_error():
    with pytest.raises(ValueError) as error:
        CorruptionSettings(
            mask_ratio=1.5,
            mask_token_share=-0.1,
            random_token_share=1.2,
            max_spans=-2,
            min_span_tokens=0,
            max_span_tokens=-1,
            end_of_span=-1,
            causal_ratio=float("nan"),
            mntp_shift="last",
        )
    named = "`mask_ratio` is 1.5, `mask_token_share` is -0.1, `random_token_share` is 1.2, add up to more than 1, "
    named += "`max_spans` is -2, `min_span_tokens` is 0, `causal_ratio` is nan, `mntp_shift` is 'last', "
    for expected in f"{named}`end_of_span` is -1, `max_span_tokens` is -1, below".split(", "):
        assert expected in str(error.value)


# ---- corrupt_row ----


def reference_labels(input_ids: list[int], targets: list[bool]) -> list[int]:
    labels = [-100] * len(input_ids)
    for position in range(1, len(input_ids)):
        if targets[position]:
            labels[position - 1] = input_ids[position]
    return labels


@st.composite
def corruption_fields(draw) -> dict:
    mask_token_share = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    min_span_tokens = draw(st.integers(1, 6))
    return dict(
        mask_ratio=draw(st.sampled_from([0.0, 0.2, 0.7, 1.0])),
        mask_token_share=mask_token_share,
        random_token_share=draw(st.sampled_from([0.0, 0.5, 1.0])) * (1 - mask_token_share),
        max_spans=draw(st.integers(0, 3)),
        min_span_tokens=min_span_tokens,
        max_span_tokens=min_span_tokens + draw(st.integers(0, 9)),
        causal_ratio=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )


@given(tokens=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40), fields=corruption_fields(), seed=st.integers(0))
@settings(max_examples=300, deadline=None)
def test_corrupted_row_satisfies_its_invariants(tokens, fields, seed):
    input_ids = torch.tensor(tokens, dtype=torch.long)
    row = corrupt(input_ids, seed=seed, **fields)

    assert input_ids.tolist() == tokens, "the original is not touched"
    assert all(field.shape == input_ids.shape and field.dtype == torch.long for field in row)
    segments = row.segment_ids.tolist()
    mntp, msg, corrupted = row.mntp_labels.tolist(), row.msg_labels.tolist(), row.input_ids.tolist()

    assert msg == reference_labels(tokens, [segment > 0 for segment in segments])
    selected = [False] + [label != -100 for label in mntp[:-1]] if tokens else []
    assert mntp == reference_labels(tokens, selected), "labels are the original tokens"
    assert sorted(set(segments) - {0}) == list(range(1, max(segments, default=0) + 1)), "spans are numbered 1, 2, .."
    for position in range(len(tokens)):
        assert mntp[position] == -100 or msg[position] == -100
        may_be_selected = (
            position > 0
            and segments[position] == segments[position - 1] == 0
            and tokens[position] not in (0, BOS, EOS)
        )
        assert may_be_selected or not selected[position]
        if may_be_selected and fields["mask_ratio"] == 1:
            assert selected[position]
        if not selected[position]:
            assert corrupted[position] == tokens[position]
        elif fields["mask_token_share"] == 1:
            assert corrupted[position] == MASK
        elif corrupted[position] != tokens[position]:
            assert corrupted[position] not in (0, BOS, EOS), "a random replacement is never special"
    if tokens:
        assert segments[0] == 0 and (segments[-1] == 0 or fields["causal_ratio"] > 0)


def test_a_fifth_is_selected_and_split_80_10_10():
    num_tokens = 60_000
    input_ids = torch.full((num_tokens,), 5)
    replacement_ids = torch.arange(6, 38)  # neither the token itself nor the mask, so that the three kinds tell apart
    row = corrupt(input_ids, replacement_ids=replacement_ids, max_spans=0)
    selected = row.input_ids[1:][row.mntp_labels[:-1] != -100]
    counts = Counter(selected.tolist())
    assert len(selected) / num_tokens == pytest.approx(0.2, abs=0.005)
    assert counts[MASK] / len(selected) == pytest.approx(0.8, abs=0.012)
    assert counts[5] / len(selected) == pytest.approx(0.1, abs=0.01)
    assert set(counts) - {MASK, 5} == set(replacement_ids.tolist())
    assert (row.input_ids[1:][row.mntp_labels[:-1] == -100] == 5).all()


def test_the_causal_ratio_is_the_share_of_causal_rows():
    input_ids = torch.arange(3, 23)
    rows = [corrupt(input_ids, seed=seed, causal_ratio=0.3) for seed in range(2000)]
    share = sum(bool((row.segment_ids[1:] == 1).all()) for row in rows) / len(rows)
    assert share == pytest.approx(0.3, abs=0.03)


@given(tokens=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40), fields=corruption_fields(), seed=st.integers(0))
@settings(max_examples=100, deadline=None)
def test_mntp_shift_moves_labels_and_adds_tokens_after_spans(tokens, fields, seed):
    input_ids = torch.tensor(tokens, dtype=torch.long)
    there = corrupt(input_ids, seed=seed, **fields)
    here = corrupt(input_ids, seed=seed, mntp_shift="same", **fields)
    assert torch.equal(here.segment_ids, there.segment_ids) and torch.equal(here.msg_labels, there.msg_labels)
    segments = there.segment_ids.tolist()
    for position, label in enumerate(here.mntp_labels.tolist()):
        behind_a_span = position > 0 and segments[position - 1] > 0
        if position and not behind_a_span:
            assert label == there.mntp_labels[position - 1]
            assert here.input_ids[position] == there.input_ids[position]
        if label != -100:
            assert label == tokens[position] not in (0, BOS, EOS)
            assert position > 0 and segments[position] == 0


def test_changing_one_setting_keeps_the_draws_of_others():
    input_ids = torch.randint(3, VOCAB_SIZE, (64,), generator=torch.Generator().manual_seed(0))
    plain = corrupt(input_ids)
    assert torch.equal(corrupt(input_ids, mask_ratio=0.0).segment_ids, plain.segment_ids)
    assert torch.equal(corrupt(input_ids, random_token_share=0.2).mntp_labels, plain.mntp_labels)
    spanless = corrupt(input_ids, max_spans=0)
    kept = plain.mntp_labels != -100
    assert torch.equal(spanless.mntp_labels[kept], plain.mntp_labels[kept])


@given(st.integers(0, 2**30), st.integers(1, 9), st.integers(4, 40))
@settings(max_examples=80, deadline=None)
def test_end_of_span_rounds_reserved_positions(seed, multiple, length):
    input_ids = torch.arange(3, 3 + length) % VOCAB_SIZE
    fields = {"seed": seed, "max_spans": 3, "min_span_tokens": 1, "max_span_tokens": 6}
    plain = corrupt(input_ids, **fields)
    ended = corrupt(input_ids, end_of_span=multiple, end_of_span_id=EOS, **fields)
    assert torch.equal(plain.position_ids, torch.arange(length))
    for name in ("input_ids", "segment_ids", "mntp_labels"):
        assert torch.equal(getattr(ended, name), getattr(plain, name))
    # Walk the row: a span starts after its context and reserves the next multiple of positions.
    position, expected_labels = 0, plain.msg_labels.tolist()
    segments = [*plain.segment_ids.tolist(), 0]
    for place, segment in enumerate(segments[:-1]):
        if segment and segments[place - 1] == 0:
            start = position
        assert ended.position_ids[place] == position
        position += 1
        if segment and segments[place + 1] == 0:
            assert expected_labels[place] == -100  # what follows a span is no target of another objective
            expected_labels[place] = EOS
            size = position - start
            position = start + next(n for n in range(size, size + multiple) if n % multiple == 0)
    assert ended.msg_labels.tolist() == expected_labels


def test_causal_rows_have_no_end_of_span_label():
    input_ids = torch.arange(3, 20)
    row = corrupt(input_ids, causal_ratio=1.0, end_of_span=8, end_of_span_id=EOS)
    assert row.msg_labels.tolist() == [*range(4, 20), -100]
    assert row.position_ids.tolist() == list(range(17))
