"""Compare the reserved cache with a growing cache."""

import torch
from transformers import DynamicCache

from modeling_magnet.attention_magnet import ReservedCache


def test_updates_equal_those_of_a_growing_cache():
    reserved, growing = ReservedCache(num_layers=2, capacity=9), DynamicCache()
    for new in (5, 1, 3):
        for layer in range(2):
            keys, values = torch.randn(2, 3, 2, new, 4)
            for states, expected in zip(
                reserved.update(keys, values, layer), growing.update(keys, values, layer), strict=True
            ):
                assert torch.equal(states, expected)
        assert reserved.get_seq_length() == growing.get_seq_length()
    assert reserved.get_seq_length() == 9


def test_rows_are_dropped_without_a_copy():
    cache = ReservedCache(num_layers=1, capacity=4)
    states = torch.randn(3, 2, 2, 5)
    cache.update(states, states, 0)
    address = cache.layers[0].keys.data_ptr()
    cache.keep_first_rows(2)
    keys, _ = cache.update(states[:2, :, :1], states[:2, :, :1], 0)
    assert keys.data_ptr() == address
    assert torch.equal(keys, torch.cat([states[:2], states[:2, :, :1]], dim=2))
