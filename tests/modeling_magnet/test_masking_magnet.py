"""Test attention masks against an explicit double loop, rendered for every attention back-end."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.masking_magnet import attention_pattern, check_segment_ids, render_pattern

# Adjacent spans, a gap between ids, a span at either end, context alone, one span alone.
SEGMENT_ROWS = [
    [0, 1, 1, 1, 0, 0, 2, 2, 0, 0],
    [0, 3, 3, 1, 1, 1, 0, 0, 7, 7],
    [2, 2, 0, 0, 0, 1, 1, 1, 1, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
]
PADDING_ROWS = {
    "none": None,
    "right": [[1] * 10, [1] * 7 + [0] * 3, [1] * 9 + [0], [1] * 5 + [0] * 5, [1] * 8 + [0] * 2],
    "left": [[1] * 10, [0] * 3 + [1] * 7, [0] + [1] * 9, [0] * 5 + [1] * 5, [0] * 2 + [1] * 8],
}


def mask_by_loop(segments: list[list[int]], padding: list[list[int]] | None, query_length: int) -> torch.Tensor:
    """Build the paper's pattern cell by cell; a padding token attends only to itself."""
    key_length = len(segments[0])
    table = torch.zeros(len(segments), 1, query_length, key_length, dtype=torch.bool)
    for row, ids in enumerate(segments):
        for cell in range(query_length):
            query = key_length - query_length + cell
            for key in range(key_length):
                if padding is not None and not padding[row][key]:
                    allowed = query == key
                elif ids[key] == 0:
                    allowed = True
                else:
                    allowed = ids[query] == ids[key] and key <= query
                table[row, 0, cell, key] = allowed
    return table


@settings(max_examples=60, deadline=None)
@given(data=st.data(), length=st.integers(1, 9), rows=st.integers(1, 3))
def test_attention_pattern_equals_a_double_loop(data, length, rows):
    table = [data.draw(st.lists(st.integers(0, 3), min_size=length, max_size=length)) for _ in range(rows)]
    padding = [data.draw(st.lists(st.integers(0, 1), min_size=length, max_size=length)) for _ in range(rows)]
    query_length = data.draw(st.integers(1, length))
    pattern = attention_pattern(torch.tensor(table), query_length=query_length, attention_mask=torch.tensor(padding))
    assert torch.equal(pattern, mask_by_loop(table, padding, query_length))
    assert pattern.any(-1).all(), "an empty row would make the softmax undefined"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("query_length", [10, 4], ids=["uncached", "cached"])
@pytest.mark.parametrize("padding", list(PADDING_ROWS))
def test_every_backend_gets_the_same_mask(padding, query_length, implementation, dtype):
    rows = PADDING_ROWS[padding]
    mask = None if rows is None else torch.tensor(rows)
    expected = mask_by_loop(SEGMENT_ROWS, rows, query_length)
    pattern = attention_pattern(torch.tensor(SEGMENT_ROWS), query_length=query_length, attention_mask=mask)
    rendered = render_pattern(pattern, implementation=implementation, dtype=dtype)
    if implementation == "eager":
        assert rendered.dtype == dtype
        assert torch.equal(rendered, torch.where(expected, 0.0, torch.finfo(dtype).min).to(dtype))
    elif implementation == "sdpa":
        assert rendered.dtype == torch.bool and torch.equal(rendered, expected)
    else:
        assert isinstance(rendered, BlockMask)
        cells = [
            [
                [bool(rendered.mask_mod(*map(torch.tensor, (row, 0, query, key)))) for key in range(10)]
                for query in range(query_length)
            ]
            for row in range(len(SEGMENT_ROWS))
        ]
        assert torch.equal(torch.tensor(cells)[:, None], expected)


@pytest.mark.parametrize(
    ("segment_ids", "mode", "given"),
    [
        (None, "infill", "missing"),
        (torch.zeros(2, 5, dtype=torch.long), "causal", "given with mode='causal'"),
        (torch.zeros(2, 5, dtype=torch.long), "bidirectional", "given with mode='bidirectional'"),
        (torch.zeros(2, 4, dtype=torch.long), "infill", r"\(2, 4\).*\(2, 5\)"),
        (torch.tensor([[0, 1, -1, 0, 0]] * 2), "infill", "-1"),
        ([[0, 1, 1, 0, 0]] * 2, "infill", "list"),
    ],
)
def test_invalid_segment_ids_raise(segment_ids, mode, given):
    with pytest.raises(ValueError, match=f"`segment_ids`.*{given}"):
        check_segment_ids(segment_ids, mode=mode, expected_shape=(2, 5))


@pytest.mark.parametrize("mode", ["bidirectional", "infill"])
def test_a_training_forward_does_not_synchronize_with_the_device(mode):
    """Run on the meta device, where reading a value raises, as transformers does in causal mode."""
    config = MagnetLlamaForCausalLM.config_class(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    with torch.device("meta"):
        model = MagnetLlamaForCausalLM(config).train()
        ids = torch.zeros(2, 6, dtype=torch.long)
    segments = {"segment_ids": ids} if mode == "infill" else {}
    losses = model(ids, attention_mask=ids, mode=mode, target_ids=ids, num_targets=4, **segments).token_losses
    losses.sum().backward()
    assert losses.shape == ids.shape and model.lm_head.weight.grad is not None
    with pytest.raises(RuntimeError, match="meta"):
        model(ids, attention_mask=ids, mode=mode, target_ids=ids, **segments)  # without their number it has to be read
