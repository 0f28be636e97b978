"""Rows and pairs depend only on the seed and the position in the run."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from trainer.samplers import (
    EpochRows,
    EpochRowSampler,
    PairStream,
    _splitmix64,
    even_batches,
    pair_batches,
    row_generator,
)

from .tiny import tiny_args


def order(num_rows, *, seed, epoch):
    sampler = EpochRowSampler(num_rows, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_each_epoch_is_another_order_of_all_rows():
    first, second = order(50, seed=1, epoch=0), order(50, seed=1, epoch=1)
    assert sorted(first) == list(range(50))
    assert sorted(second) == list(range(50, 100))
    assert [index - 50 for index in second] != first
    assert order(50, seed=1, epoch=1) == second
    assert order(50, seed=2, epoch=0) != first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_of_an_earlier_epoch_get_the_current_epoch(num_workers):
    sampler = EpochRowSampler(4, seed=0)
    loader = DataLoader(
        EpochRows([{"input_ids": [1, row], "text": "unused"} for row in range(4)]),
        sampler=sampler,
        batch_size=2,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=list,
    )
    for epoch in range(2):
        sampler.set_epoch(epoch)
        rows = [row for batch in loader for row in batch]
        assert sorted(row["row_id"] for row in rows) == [0, 1, 2, 3]
        assert all(row == {"input_ids": [1, row["row_id"]], "row_id": row["row_id"], "epoch": epoch} for row in rows)


def micro_batches(num_pairs, *, end, first=0, **options):
    return list(islice(pair_batches(num_pairs, seed=3, first=first, **options), end - first))


@settings(max_examples=40, deadline=None)
@given(
    num_pairs=st.integers(4, 40),
    batch_size=st.integers(1, 4),
    first=st.integers(0, 30),
    num_processes=st.sampled_from([1, 2, 4]),
)
def test_pair_batches_from_any_start_and_process_are_the_same(num_pairs, batch_size, first, num_processes):
    total = batch_size * num_processes
    if num_pairs < total:
        return
    whole = micro_batches(num_pairs, batch_size=total, end=31)
    parts = [
        micro_batches(
            num_pairs, batch_size=batch_size, first=first, end=31, num_processes=num_processes, process_index=rank
        )
        for rank in range(num_processes)
    ]
    assert [sum(batches, []) for batches in zip(*parts, strict=True)] == whole[first:]


def test_no_pair_comes_twice_in_a_pass_nor_in_a_batch():
    batches = micro_batches(10, batch_size=4, end=6)
    for first in range(0, 6, 2):  # two batches of four fit into ten pairs
        assert len(set(batches[first] + batches[first + 1])) == 8
    assert batches[0] + batches[1] != batches[2] + batches[3]


class Pairs(list):
    """Hold pairs that equal their indices."""

    def __init__(self):
        super().__init__(range(20))
        self.opened = 0

    def __len__(self):
        self.opened += 1
        return super().__len__()


def test_pair_stream_continues_without_a_new_loader(tmp_path):
    args = tiny_args(tmp_path, contrastive_batch_size=2)
    pairs, expected = Pairs(), list(islice(pair_batches(20, seed=args.seed, batch_size=2), 12))
    stream = PairStream(pairs, list, args=args)
    assert [stream.fetch(number) for number in (5, 6, 9)] == [expected[number] for number in (5, 6, 9)]
    assert pairs.opened == 1
    stream.stop()
    assert [stream.fetch(number) for number in (10, 2)] == [expected[number] for number in (10, 2)]
    assert pairs.opened == 3


@pytest.mark.parametrize("num_items", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_even_batches_cover_each_item_once(num_items, num_processes):
    shares = [
        even_batches(num_items, batch_size=2, num_processes=num_processes, process_index=rank)
        for rank in range(num_processes)
    ]
    assert len({len(share) for share in shares}) == 1
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(num_items))


# ---- row_generator ----


@given(st.tuples(*[st.integers(0, 2**40)] * 3), st.tuples(*[st.integers(0, 2**40)] * 3))
@settings(max_examples=60, deadline=None)
def test_row_generator_depends_on_all_three_numbers_and_on_nothing_else(one, other):
    def draws(seed, epoch, row_id):
        return torch.rand(4, generator=row_generator(seed, epoch=epoch, row_id=row_id)).tolist()

    assert draws(*one) == draws(*one)
    assert (draws(*one) == draws(*other)) == (one == other)


def test_row_generator_values_are_pinned():
    assert _splitmix64(0) == 0xE220_A839_7B1D_CDAF  # the first output of the published generator, started at 0
    assert row_generator(42, epoch=1, row_id=7).initial_seed() == 1952419378684700410
