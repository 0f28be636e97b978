"""The three modes of forward: which mask it uses, who influences whom, and what it refuses."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AttentionInterface, DynamicCache, LlamaForCausalLM, StaticCache
from transformers.masking_utils import AttentionMaskInterface

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.masking_magnet import attention_pattern

from .test_masking_magnet import mask_by_loop

# Context first, spans behind, so that one table serves a full and a cached forward; positions put them in their gaps.
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
    """A copy of the model on one attention back-end."""
    model = copy.deepcopy(model).to(dtype)
    model.set_attn_implementation(implementation)
    return model


def stock_twin(model, implementation="eager"):
    """A stock Llama with the weights of a model of ours."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = implementation
    stock = LlamaForCausalLM(config).to(model.dtype).eval()
    stock.load_state_dict(model.state_dict())
    return stock


def our_logits(model, *, padding, cached):
    """Infill forward over the table above, in one call or as context and then spans."""
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
@pytest.mark.parametrize("rows", [1, 2])
@torch.no_grad()
def test_bidirectional_sees_the_future_without_any_padding(tiny_model, implementation, rows):
    model = with_backend(tiny_model, implementation)
    changed = IDS[:rows].clone()
    changed[:, -1] = (changed[:, -1] + 1) % 300
    for mask in (None, torch.ones(rows, 12, dtype=torch.long)):
        before = model(IDS[:rows], attention_mask=mask, mode="bidirectional").last_hidden_state
        after = model(changed, attention_mask=mask, mode="bidirectional").last_hidden_state
        assert ((before - after).abs().amax(-1) > 1e-3).all(), "a position did not see the last token"


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_a_row_is_the_same_whatever_its_neighbours_are_padded_to(tiny_model, implementation):
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
def test_a_changed_span_token_moves_its_own_spans_future_only(tiny_model, implementation, position):
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
def test_a_changed_context_token_moves_everything(tiny_model, implementation):
    model = with_backend(tiny_model, implementation)
    changed = IDS.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 300
    before = model(IDS, mode="infill", segment_ids=MIXED_SEGMENTS).last_hidden_state
    after = model(changed, mode="infill", segment_ids=MIXED_SEGMENTS).last_hidden_state
    assert ((before - after).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_one_span_over_all_is_causal_and_no_span_is_bidirectional(tiny_model, implementation):
    model = with_backend(tiny_model, implementation)
    ones = torch.ones_like(IDS)
    infill = [model(IDS, mode="infill", segment_ids=ids).logits for ids in (ones, 0 * ones)]
    torch.testing.assert_close(infill[0], model(IDS).logits, atol=2e-5, rtol=0)
    assert torch.equal(infill[1], model(IDS, mode="bidirectional").logits)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model):
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(tiny_model).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        output = model(IDS, mode="infill", segment_ids=MIXED_SEGMENTS, labels=IDS)
        output.loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-7, rtol=0)


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "infill"])
def test_compiling_the_forward_breaks_no_graph(tiny_model, mode):
    extra = {"segment_ids": MIXED_SEGMENTS} if mode == "infill" else {}
    mask = torch.tensor(PADDING["left"])
    torch._dynamo.reset()
    with torch.no_grad():
        report = torch._dynamo.explain(tiny_model.forward)(
            input_ids=IDS, attention_mask=mask, mode=mode, use_cache=False, **extra
        )
    assert report.graph_break_count == 0, report.break_reasons
    assert report.graph_count == 1


@torch.no_grad()
def test_threads_share_one_model(tiny_model):
    calls = [{"mode": "causal"}, {"mode": "bidirectional"}, {"mode": "infill", "segment_ids": MIXED_SEGMENTS}, {}]
    expected = [tiny_model(IDS, **call).logits for call in calls]
    config = copy.deepcopy(tiny_model.config.to_dict())
    failures = []

    def work(first):
        with torch.no_grad():
            for turn in range(30):
                index = (first + turn) % len(calls)
                if not torch.equal(tiny_model(IDS, **calls[index]).logits, expected[index]):
                    failures.append((first, turn))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert tiny_model.config.to_dict() == config


def test_threads_encode_and_infill_with_one_model(tiny_model):
    texts = [f"The cat sat {'and sat ' * (n % 3)}{n}" for n in range(8)]
    vectors = [tiny_model.encode(text) for text in texts]
    fills = [tiny_model.infill(text, " mat.", max_new_tokens=4) for text in texts]

    def encode(index):
        return (tiny_model.encode(texts[index]) == vectors[index]).all()

    def infill(index):
        return tiny_model.infill(texts[index], " mat.", max_new_tokens=4) == fills[index]

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(work, index) for index in range(8) for work in (encode, infill)]
        assert all(call.result() for call in calls)


@torch.no_grad()
def test_no_call_writes_to_the_config_or_the_model(tiny_model):
    config, attributes = copy.deepcopy(tiny_model.config.to_dict()), set(vars(tiny_model))
    for call in ({}, {"mode": "bidirectional"}, {"mode": "infill", "segment_ids": MIXED_SEGMENTS}):
        tiny_model(IDS, **call)
    tiny_model.encode(["A cat.", "A longer text."])
    tiny_model.encode_words(["A", "cat"])
    tiny_model.infill("A ", " sat.", max_new_tokens=3)
    tiny_model.generate(IDS, max_new_tokens=2, do_sample=False)
    assert tiny_model.config.to_dict() == config
    assert set(vars(tiny_model)) == attributes


@torch.no_grad()
def test_a_boolean_mask_picks_the_cells_that_the_head_runs_on(tiny_model):
    full = tiny_model(IDS, mode="infill", segment_ids=MIXED_SEGMENTS).logits
    picked = MIXED_SEGMENTS == 2
    shapes = []
    tiny_model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    for keep in (picked, torch.zeros_like(picked)):
        logits = tiny_model(IDS, mode="infill", segment_ids=MIXED_SEGMENTS, logits_to_keep=keep).logits
        torch.testing.assert_close(logits, full[keep], atol=1e-5, rtol=0)
    assert shapes == [(6, 32), (0, 32)]


def call_with(**arguments):
    return lambda model: model(IDS, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (call_with(mode="prefix"), r"Unknown mode 'prefix'. Expected one of 'causal', 'bidirectional', 'infill'"),
        (call_with(mode="infill"), r'mode="infill" needs `segment_ids`'),
        (call_with(segment_ids=MIXED_SEGMENTS), r"given with mode='causal'"),
        (call_with(mode="bidirectional", segment_ids=MIXED_SEGMENTS), r"given with mode='bidirectional'"),
        (call_with(mode="infill", segment_ids=MIXED_SEGMENTS[:1]), r"shape \(1, 12\); expected \(2, 12\)"),
        (call_with(mode="infill", segment_ids=MIXED_SEGMENTS - 1), r"negative value -1"),
        (call_with(mode="infill", segment_ids=MIXED_SEGMENTS.float()), r"dtype torch.float32"),
        (call_with(mode="bidirectional", is_causal=False), r"pass `mode` instead"),
        (
            call_with(mode="bidirectional", attention_mask=torch.ones(2, 9)),
            r"\(2, 9\).*of shape \(2, 12\)",
        ),
        (call_with(mode="bidirectional", attention_mask=torch.ones(2, 1, 12, 12)), r"shape \(2, 1, 12, 12\).*2-D"),
        (call_with(mode="bidirectional", attention_mask={"full_attention": None}), r"`attention_mask` is dict.*2-D"),
        (lambda model: model.generate(IDS, mode="infill", max_new_tokens=1), r"Use `model.infill`"),
        (lambda model: model.generate(IDS, segment_ids=MIXED_SEGMENTS, max_new_tokens=1), r"Use `model.infill`"),
    ],
)
def test_what_forward_cannot_do_is_refused(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model)


@torch.no_grad()
def test_a_static_cache_serves_causal_calls_and_is_refused_elsewhere(tiny_model):
    cache = StaticCache(config=tiny_model.config, max_cache_len=16)
    logits = tiny_model(IDS, past_key_values=cache).logits
    torch.testing.assert_close(logits, tiny_model(IDS).logits, atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="DynamicCache"):
        tiny_model(IDS, mode="bidirectional", past_key_values=StaticCache(config=tiny_model.config, max_cache_len=16))


def test_a_backend_without_such_masks_is_named(tiny_model):
    sdpa = AttentionInterface()["sdpa"]
    AttentionInterface.register("maskless", sdpa)
    AttentionMaskInterface.register("maskless", lambda *args, **kwargs: None)
    tiny_model.config._attn_implementation = "maskless"
    with pytest.raises(ValueError, match=r"'maskless' cannot do mode='bidirectional'.*eager, sdpa, flex_attention"):
        tiny_model(IDS, mode="bidirectional")


def test_flex_attention_refuses_to_train_on_a_cpu(tiny_model):
    model = with_backend(tiny_model, "flex_attention").train()
    with pytest.raises(ValueError, match="no backward pass on the CPU"):
        model(IDS, mode="infill", segment_ids=MIXED_SEGMENTS)


def test_the_classic_method_gives_the_pattern_for_hand_written_use(tiny_model):
    embeds = torch.zeros(2, 12, 32)
    mask = tiny_model._prepare_4d_causal_attention_mask(
        None, (2, 12), embeds, 0, segment_ids=MIXED_SEGMENTS, mode="infill"
    )
    assert torch.equal(mask, attention_pattern(MIXED_SEGMENTS, query_length=12))
    assert tiny_model._prepare_4d_causal_attention_mask(None, (2, 12), embeds, 0) is None
    with pytest.raises(ValueError, match="sliding_window=4"):
        tiny_model._prepare_4d_causal_attention_mask(None, (2, 12), embeds, 0, 4, mode="bidirectional")


@torch.no_grad()
def test_a_bidirectional_call_keeps_no_cache_unless_asked(tiny_model):
    assert tiny_model(IDS, mode="bidirectional").past_key_values is None
    assert isinstance(tiny_model(IDS, mode="bidirectional", use_cache=True).past_key_values, DynamicCache)
