"""Test the three modes of forward: the masks, and which tokens influence which."""

import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from modeling_magnet import MagnetLlamaForCausalLM

from .test_masking_magnet import mask_by_loop

# Context first, spans after it, so that one table serves a full and a cached forward; positions place the spans.
CONTEXT = 7
SEGMENTS = [[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4]]
POSITIONS = [[0, 1, 2, 6, 7, 10, 11, 3, 4, 5, 8, 9], [0, 1, 7, 8, 9, 10, 11, 2, 3, 4, 5, 6]]
PADDING = {
    "none": [[1] * 12, [1] * 12],
    "right": [[1] * 12, [1] * 5 + [0] * 2 + [1] * 5],
    "left": [[1] * 12, [0] * 2 + [1] * 10],
}
IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))
# Interleaved as a text is.
MIXED_SEGMENTS = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 0, 0]] * 2)


def with_backend(model, implementation, dtype=torch.float32):
    """Copy the model, with another attention back-end."""
    model = copy.deepcopy(model).to(dtype)
    model.set_attn_implementation(implementation)
    return model


def stock_twin(model, implementation="eager"):
    """Build a stock Llama with the weights of our model."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = implementation
    stock = LlamaForCausalLM(config).to(model.dtype).eval()
    stock.load_state_dict(model.state_dict())
    return stock


def our_logits(model, *, padding, cached):
    """Run an infill forward over `SEGMENTS`, in one call or as context and then spans."""
    segments, positions = torch.tensor(SEGMENTS), torch.tensor(POSITIONS)
    mask = torch.tensor(PADDING[padding])
    if not cached:
        return model(
            IDS, attention_mask=mask, position_ids=positions, mode="infill", segment_ids=segments, use_cache=False
        ).logits
    first = model(
        IDS[:, :CONTEXT],
        attention_mask=mask[:, :CONTEXT],
        position_ids=positions[:, :CONTEXT],
        mode="infill",
        segment_ids=segments[:, :CONTEXT],
        use_cache=True,
    )
    second = model(
        IDS[:, CONTEXT:],
        attention_mask=mask,
        position_ids=positions[:, CONTEXT:],
        past_key_values=first.past_key_values,
        mode="infill",
        segment_ids=segments,
    )
    return torch.cat([first.logits, second.logits], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("padding", list(PADDING))
@torch.no_grad()
def test_forward_equals_a_stock_llama_under_the_double_loops_mask(tiny_model, padding, cached, implementation, dtype):
    check_against_stock(tiny_model, padding=padding, cached=cached, implementation=implementation, dtype=dtype)


# Each compiles a kernel, which costs seconds.
@pytest.mark.long
@pytest.mark.parametrize(
    ("padding", "cached", "dtype"),
    [("none", False, torch.float32), ("left", True, torch.float32), ("right", False, torch.bfloat16)],
)
@torch.no_grad()
def test_flex_attention_equals_a_stock_llama_under_the_double_loops_mask(tiny_model, padding, cached, dtype):
    check_against_stock(tiny_model, padding=padding, cached=cached, implementation="flex_attention", dtype=dtype)


def check_against_stock(model, *, padding, cached, implementation, dtype):
    stock = stock_twin(model.to(dtype))
    allowed = mask_by_loop(SEGMENTS, PADDING[padding], 12)
    float_mask = torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)
    expected = stock(IDS, attention_mask=float_mask, position_ids=torch.tensor(POSITIONS)).logits
    logits = our_logits(with_backend(model, implementation, dtype), padding=padding, cached=cached)
    real = torch.tensor(PADDING[padding]).bool()
    if dtype == torch.float32:
        torch.testing.assert_close(logits[real], expected[real], atol=2e-5, rtol=0)
    else:  # bfloat16 keeps 8 bits
        spread = expected[real].float().std()
        assert ((logits[real] - expected[real]).float().abs().mean() / spread) < 0.02


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_forward_uses_the_mask_that_the_method_returns(tiny_model, implementation):
    class SeesOnlyThePast(MagnetLlamaForCausalLM):
        def _prepare_4d_causal_attention_mask(self, attention_mask, input_shape, inputs_embeds, *args, **kwargs):
            kwargs.update(mode="infill", segment_ids=torch.ones(*input_shape, dtype=torch.long))
            return super()._prepare_4d_causal_attention_mask(
                attention_mask, input_shape, inputs_embeds, *args, **kwargs
            )

    model = with_backend(tiny_model, implementation)
    causal, bidirectional = model(IDS).logits, model(IDS, mode="bidirectional").logits
    assert (causal - bidirectional).abs().max() > 0.1
    model.__class__ = SeesOnlyThePast
    torch.testing.assert_close(model(IDS, mode="bidirectional").logits, causal, atol=2e-5, rtol=0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_a_row_does_not_depend_on_padding(tiny_model, implementation):
    model = with_backend(tiny_model, implementation)
    alone = model(IDS[:1, :8], mode="bidirectional").last_hidden_state
    for side in ("left", "right"):
        cells = slice(4, 12) if side == "left" else slice(0, 8)
        mask = torch.ones(2, 12, dtype=torch.long)
        mask[0] = 0
        mask[0, cells] = 1
        ids = IDS.clone()
        ids[0, cells] = IDS[0, :8]
        states = model(ids, attention_mask=mask, mode="bidirectional").last_hidden_state[:1, cells]
        torch.testing.assert_close(states, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("position", [3, 8])
@torch.no_grad()
def test_a_span_token_changes_only_later_tokens_of_its_span(tiny_model, implementation, position):
    model = with_backend(tiny_model, implementation)
    changed = IDS.clone()
    changed[:, position] = (changed[:, position] + 1) % 300
    before = model(IDS, mode="infill", segment_ids=MIXED_SEGMENTS)
    after = model(changed, mode="infill", segment_ids=MIXED_SEGMENTS)
    moved = (before.last_hidden_state - after.last_hidden_state).abs().amax(-1)  # (B, S)
    own_future = (MIXED_SEGMENTS == MIXED_SEGMENTS[:, position, None]) & (torch.arange(12) >= position)
    assert (moved[own_future] > 1e-3).all()
    assert moved[~own_future].max() == 0.0
    assert (before.logits - after.logits)[~own_future].abs().max() == 0.0


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_a_context_token_changes_all_tokens(tiny_model, implementation):
    model = with_backend(tiny_model, implementation)
    changed = IDS.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 300
    before = model(IDS, mode="infill", segment_ids=MIXED_SEGMENTS).last_hidden_state
    after = model(changed, mode="infill", segment_ids=MIXED_SEGMENTS).last_hidden_state
    assert ((before - after).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_one_span_equals_causal_mode_and_no_span_equals_bidirectional_mode(tiny_model, implementation):
    model = with_backend(tiny_model, implementation)
    ones = torch.ones_like(IDS)
    infill = [model(IDS, mode="infill", segment_ids=ids).logits for ids in (ones, 0 * ones)]
    torch.testing.assert_close(infill[0], model(IDS).logits, atol=2e-5, rtol=0)
    assert torch.equal(infill[1], model(IDS, mode="bidirectional").logits)
