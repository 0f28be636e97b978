"""Rows to batches: every row once, within the budget, and packed rows that can be told apart again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_magnet.tokenization_magnet import pack_token_rows, pad_token_rows, plan_batches

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@settings(max_examples=200, deadline=None)
@given(
    lengths=LENGTHS,
    max_tokens=st.integers(1, 200),
    max_rows=st.none() | st.integers(1, 5),
    padded=st.booleans(),
)
def test_batches_hold_every_row_once_within_the_budget(lengths, max_tokens, max_rows, padded):
    batches = plan_batches(lengths, max_tokens=max_tokens, max_rows=max_rows, padded=padded)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        own = [lengths[index] for index in batch]
        assert own == sorted(own, reverse=True)
        used = max(own) * len(own) if padded else sum(own)
        assert used <= max_tokens or len(own) == 1
        assert max_rows is None or len(own) <= max_rows
    for batch, after in zip(batches, batches[1:], strict=False):
        fuller = [lengths[index] for index in [*batch, after[0]]]
        used = max(fuller) * len(fuller) if padded else sum(fuller)
        assert used > max_tokens or len(batch) == max_rows, "no batch ends before it is full"


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(3, 90), min_size=1, max_size=9), min_size=1, max_size=6),
    multiple=st.sampled_from([1, 4, 16]),
)
def test_packed_rows_can_be_told_apart(rows, multiple):
    packed = pack_token_rows(rows, pad_token_id=0, multiple=multiple)
    assert packed.input_ids.shape == packed.position_ids.shape == packed.row_ids.shape
    assert packed.input_ids.shape[1] % multiple == 0
    assert packed.input_ids.shape[1] - sum(map(len, rows)) < multiple
    for number, row in enumerate(rows):
        mine = packed.row_ids[0] == number
        assert packed.input_ids[0, mine].tolist() == row
        assert packed.position_ids[0, mine].tolist() == list(range(len(row)))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_goes_to_its_side(padding_side):
    batch = pad_token_rows([[5, 6, 7], [8]], pad_token_id=0, padding_side=padding_side)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8] if padding_side == "left" else [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1] if padding_side == "left" else [1, 0, 0]]
