"""Test forward apart from masks: gradients, compiled graphs, threads, an unchanged config, and errors."""

import copy
import inspect

import pytest
import torch
from transformers import AttentionInterface, DynamicCache, LlamaForCausalLM, StaticCache
from transformers.masking_utils import AttentionMaskInterface

from modeling_magnet import FAMILIES, MagnetLlamaForCausalLM
from modeling_magnet.masking_magnet import attention_pattern

from .test_families_magnet import make_config
from .test_modeling_magnet import IDS, MIXED_SEGMENTS, PADDING, with_backend


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model):
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(tiny_model).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        labels = IDS.where(MIXED_SEGMENTS > 0, -100)
        output = model(IDS, mode="infill", segment_ids=MIXED_SEGMENTS, labels=labels)
        output.loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-7, rtol=0)


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "infill"])
@torch.no_grad()
def test_one_compiled_graph_gives_equal_logits(tiny_model, mode):
    check_graphs(tiny_model, mode, exports=False)


# Tracing costs seconds.
@pytest.mark.long
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", ["causal", "bidirectional", "infill"])
@pytest.mark.parametrize("model_type", list(FAMILIES))
@torch.no_grad()
def test_compiled_and_exported_families_give_equal_logits(model_type, mode, implementation):
    check_graphs(FAMILIES[model_type](make_config(model_type)).eval(), mode, implementation)


def check_graphs(model, mode, implementation="sdpa", *, exports=True):
    model.set_attn_implementation(implementation)
    call = {
        "attention_mask": torch.tensor(PADDING["left"]),
        "mode": mode,
        "use_cache": False,
        "segment_ids": MIXED_SEGMENTS if mode == "infill" else None,
    }
    torch._dynamo.reset()
    expected = model(IDS, **call).logits
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    assert torch.equal(compiled(IDS, **call).logits, expected)
    if exports:
        exported = torch.export.export(model, (IDS,), call, strict=True).module()
        assert torch.equal(exported(IDS, **call).logits, expected)


@torch.no_grad()
def test_is_causal_selects_the_mode(tiny_model):
    ids, calls = IDS, {True: "causal", False: "bidirectional"}
    for is_causal, mode in calls.items():
        for extra in ({}, {"mode": mode}):
            logits = tiny_model(ids, is_causal=is_causal, **extra).logits
            torch.testing.assert_close(logits, tiny_model(ids, mode=mode).logits, atol=1e-5, rtol=0)
    assert torch.equal(tiny_model(ids, is_causal=None).logits, tiny_model(ids).logits)
    generated = tiny_model.generate(ids, is_causal=True, max_new_tokens=3, do_sample=False)
    assert torch.equal(generated, tiny_model.generate(ids, max_new_tokens=3, do_sample=False))
    assert not hasattr(tiny_model.config, "is_causal")
    tiny_model.default_mode = "bidirectional"  # as in a model that was opened as an encoder
    assert torch.equal(tiny_model(ids, is_causal=True).logits, tiny_model(ids, mode="causal").logits)


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "infill"])
@torch.no_grad()
def test_attentions_are_those_of_the_mode(tiny_model, mode):
    model = with_backend(tiny_model, "eager")
    call = {"mode": mode, "segment_ids": MIXED_SEGMENTS if mode == "infill" else None, "use_cache": False}
    call |= {"output_attentions": True, "output_hidden_states": True}
    output = model(IDS, **call)
    seen = attention_pattern(
        {"infill": MIXED_SEGMENTS, "causal": torch.ones_like(IDS)}.get(mode, torch.zeros_like(IDS)), query_length=12
    )
    assert len(output.attentions) == 3 and len(output.hidden_states) == 4
    for attention in output.attentions:
        assert torch.equal(attention > 0, seen.expand_as(attention))
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    as_tuple = model(IDS, **call, return_dict=False)
    assert torch.equal(as_tuple[0], output.logits)
    assert torch.equal(as_tuple[2][-1], output.attentions[-1])
    assert torch.equal(as_tuple[3], output.last_hidden_state)


def test_signatures_have_the_arguments_that_transformers_inspects():
    forward = inspect.signature(MagnetLlamaForCausalLM.forward).parameters
    assert forward["kwargs"].annotation == inspect.signature(LlamaForCausalLM.forward).parameters["kwargs"].annotation
    assert "inputs_embeds" in inspect.signature(MagnetLlamaForCausalLM.prepare_inputs_for_generation).parameters


@torch.no_grad()
def test_a_boolean_logits_to_keep_selects_positions(tiny_model):
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
        (call_with(mode="prefix"), "'prefix'"),
        (call_with(mode="infill"), "`segment_ids` is missing"),
        (call_with(segment_ids=MIXED_SEGMENTS), "`segment_ids` .* mode='causal'"),
        (call_with(mode="infill", segment_ids=MIXED_SEGMENTS[:1]), r"\(1, 12\).*\(2, 12\)"),
        (call_with(mode="bidirectional", is_causal=True), "mode='bidirectional'.*is_causal=True"),
        (call_with(mode="infill", is_causal=False, segment_ids=MIXED_SEGMENTS), "mode='infill'.*is_causal=False"),
        (call_with(mode="bidirectional", position_ids=torch.arange(4)[None]), r"`position_ids`.*\(1, 4\).*\(2, 12\)"),
        (call_with(mode="bidirectional", attention_mask=torch.ones(2, 9)), r"`attention_mask`.*\(2, 9\).*\(2, 12\)"),
        (call_with(mode="bidirectional", attention_mask=torch.ones(2, 1, 12, 12)), r"`attention_mask`.*2-D"),
        (call_with(mode="bidirectional", attention_mask={"full_attention": None}), "`attention_mask` is dict"),
        (call_with(target_ids=torch.ones(2, 7, dtype=torch.long)), r"`target_ids`.*\(2, 7\)"),
        (lambda model: model.generate(IDS, is_causal=False, max_new_tokens=1), "mode='bidirectional'"),
        (lambda model: model.generate(IDS, mode="infill", max_new_tokens=1), "mode='infill'"),
        (lambda model: model.generate(IDS, segment_ids=MIXED_SEGMENTS, max_new_tokens=1), "segment ids"),
    ],
)
def test_invalid_forward_arguments_raise(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model)


@torch.no_grad()
def test_a_static_cache_works_in_causal_mode_only(tiny_model):
    cache = StaticCache(config=tiny_model.config, max_cache_len=16)
    logits = tiny_model(IDS, past_key_values=cache).logits
    torch.testing.assert_close(logits, tiny_model(IDS).logits, atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="DynamicCache"):
        tiny_model(IDS, mode="bidirectional", past_key_values=StaticCache(config=tiny_model.config, max_cache_len=16))


def test_an_unsupported_attention_backend_raises(tiny_model):
    sdpa = AttentionInterface()["sdpa"]
    AttentionInterface.register("maskless", sdpa)
    AttentionMaskInterface.register("maskless", lambda *args, **kwargs: None)
    tiny_model.config._attn_implementation = "maskless"
    with pytest.raises(ValueError, match=r"'maskless'.*'bidirectional'.*eager, sdpa"):
        tiny_model(IDS, mode="bidirectional")


def test_prepare_4d_causal_attention_mask_returns_the_mask(tiny_model):
    embeds = torch.zeros(2, 12, 32)
    mask = tiny_model._prepare_4d_causal_attention_mask(
        None, (2, 12), embeds, 0, segment_ids=MIXED_SEGMENTS, mode="infill"
    )
    assert torch.equal(mask, attention_pattern(MIXED_SEGMENTS, query_length=12))
    assert tiny_model._prepare_4d_causal_attention_mask(None, (2, 12), embeds, 0) is None


@torch.no_grad()
def test_a_bidirectional_call_creates_a_cache_only_on_request(tiny_model):
    assert tiny_model(IDS, mode="bidirectional").past_key_values is None
    assert isinstance(tiny_model(IDS, mode="bidirectional", use_cache=True).past_key_values, DynamicCache)
