"""Test the default attention: independence of the batch, equality with a loop in float64, and the user's choice."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from modeling_magnet import attention_magnet
from modeling_magnet.attention_magnet import DEFAULT_ATTENTION, MASK_IS_OURS, ReservedCache, masked_attention
from modeling_magnet.families_magnet import MagnetGemma3ForCausalLM


def make_config(**changes: Any) -> Gemma3TextConfig:
    """Build a tiny model with shared key-value heads and a sliding window."""
    values = {
        "vocab_size": 90,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "sliding_window": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 1024,
    }
    return Gemma3TextConfig(**{**values, **changes})


@pytest.fixture
def model() -> MagnetGemma3ForCausalLM:
    torch.manual_seed(0)
    return MagnetGemma3ForCausalLM(make_config()).to(torch.bfloat16).eval()


def draw(num_queries: int = 7, *, groups: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Draw query, key, value and a float mask for three rows and four heads."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(3, 4, num_queries, 16, generator=generator).bfloat16().requires_grad_()
    key, value = (torch.randn(3, groups, 9, 16, generator=generator).bfloat16().requires_grad_() for _ in range(2))
    seen = torch.rand(3, 1, num_queries, 9, generator=generator) < 0.7
    seen[..., 0] = True
    mask = torch.zeros(seen.shape).bfloat16().masked_fill(~seen, torch.finfo(torch.bfloat16).min)
    return query, key, value, mask


def by_hand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute attention head by head in double precision."""
    heads = []
    for head in range(query.shape[1]):
        shared = head * key.shape[1] // query.shape[1]
        scores = query[:, head].double() @ key[:, shared].double().transpose(1, 2) / 4
        heads.append(scores.masked_fill(mask[:, 0] < 0, -torch.inf).softmax(-1) @ value[:, shared].double())
    return torch.stack(heads, dim=2)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_values_and_gradients_equal_those_of_single_heads(groups):
    query, key, value, mask = draw(groups=groups)
    found, weights = masked_attention(torch.nn.Module(), query, key, value, mask, **{MASK_IS_OURS: True})
    expected = by_hand(query, key, value, mask)
    assert weights is None and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)
    factors = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((found.float() * factors).sum(), (query, key, value))
    wanted = torch.autograd.grad((expected * factors).sum(), (query, key, value))
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=3e-2, atol=3e-2)


def test_large_scores_are_computed_in_parts(monkeypatch):
    parts, layer = draw(), torch.nn.Module()
    layer.num_key_value_groups = 2  # type: ignore[assignment]
    with torch.no_grad():
        whole, _ = masked_attention(layer, *parts, **{MASK_IS_OURS: True})
        monkeypatch.setattr(attention_magnet, "_MAX_BYTES", 2 * 4 * 9 * 2)  # two queries of one row
        found, _ = masked_attention(layer, *parts, **{MASK_IS_OURS: True})
    torch.testing.assert_close(found, whole, rtol=1e-2, atol=1e-2)
    kept, _ = masked_attention(layer, *parts, **{MASK_IS_OURS: True})
    torch.testing.assert_close(kept, whole, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("boolean", [True, False])
def test_an_unmarked_mask_is_passed_to_sdpa(boolean):
    query, key, value, mask = draw(groups=4)
    mask = mask == 0 if boolean else mask
    found, _ = masked_attention(torch.nn.Module(), query, key, value, mask)
    assert torch.equal(found, sdpa_attention_forward(torch.nn.Module(), query, key, value, mask)[0])


@torch.no_grad()
def test_a_row_has_the_same_states_alone_and_in_a_batch(model):
    """Draw rows shorter and longer than the window, and one of 200 tokens."""
    lengths = [1, 2, 5, 8, 33, 120, 200]
    rows = [torch.randint(5, 90, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    attention_mask = (torch.arange(200) < torch.tensor(lengths)[:, None]).long()
    together = model(ids, attention_mask=attention_mask, mode="bidirectional").last_hidden_state
    for row, states in zip(rows, together, strict=True):
        alone = model(row[None], mode="bidirectional").last_hidden_state[0]
        similarity = torch.cosine_similarity(alone.double(), states[: len(row)].double(), dim=-1)
        assert similarity.min() > 0.9999


@torch.no_grad()
@pytest.mark.parametrize("mode", ["bidirectional", "infill"])
def test_states_are_as_far_from_float32_as_those_of_the_stock_products(model, mode):
    ids = torch.randint(5, 90, (2, 40), generator=torch.Generator().manual_seed(0))
    segments = {"segment_ids": torch.tensor([[0] * 10 + [1] * 5 + [0] * 25] * 2)} if mode == "infill" else {}
    exact = copy.deepcopy(model).float()(ids, mode=mode, **segments).last_hidden_state
    apart = {}
    for backend in (DEFAULT_ATTENTION, "eager"):
        model.set_attn_implementation(backend)
        states = model(ids, mode=mode, **segments).last_hidden_state
        apart[backend] = float((states.float() - exact).norm() / exact.norm())
    assert apart[DEFAULT_ATTENTION] < 1.3 * apart["eager"] < 0.05


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_mode_is_sdpa_bit_for_bit(dtype):
    torch.manual_seed(0)
    model = MagnetGemma3ForCausalLM(make_config()).to(dtype).eval()
    stock = Gemma3ForCausalLM(make_config()).to(dtype).eval()
    stock.load_state_dict(model.state_dict())
    ids = torch.randint(5, 90, (3, 20))
    mask = (torch.arange(20) < torch.tensor([20, 9, 4])[:, None]).long()
    assert (model.config._attn_implementation, stock.config._attn_implementation) == (DEFAULT_ATTENTION, "sdpa")
    for given in ({}, {"attention_mask": mask}):
        assert torch.equal(model(ids, mode="causal", **given).logits, stock(ids, **given).logits)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_requested_backend_is_used_and_not_saved(tmp_path, backend):
    model = MagnetGemma3ForCausalLM(make_config())
    model.save_pretrained(tmp_path)
    assert DEFAULT_ATTENTION not in (tmp_path / "config.json").read_text()
    assert Gemma3ForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    asked = MagnetGemma3ForCausalLM.from_pretrained(tmp_path, attn_implementation=backend)
    assert asked.config._attn_implementation == backend
    assert MagnetGemma3ForCausalLM.from_pretrained(tmp_path).config._attn_implementation == DEFAULT_ATTENTION
    model.set_attn_implementation(backend)
    assert model.config._attn_implementation == backend


def test_autocast_computes_the_products_of_a_float32_model_in_bfloat16(model):
    whole = copy.deepcopy(model).float()
    ids = torch.randint(5, 90, (2, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = whole(ids, mode="bidirectional").last_hidden_state
        whole.set_attn_implementation("eager")
        expected = whole(ids, mode="bidirectional").last_hidden_state
    torch.testing.assert_close(states.float(), expected.float(), rtol=5e-2, atol=5e-2)
    states.float().sum().backward()


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
