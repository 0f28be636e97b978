"""The probe passes what is right in every back-end and dtype, and catches a model whose mask is lost."""

import pytest
import torch

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.probe_magnet import check_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_real_models_pass(real_llama, implementation, dtype):
    check_attention(
        MagnetLlamaForCausalLM.from_pretrained(real_llama, attn_implementation=implementation, dtype=dtype)
    )


@pytest.mark.parametrize("initializer_range", [0.02, 0.2])
def test_untrained_models_pass(tiny_config, initializer_range):
    tiny_config = type(tiny_config).from_dict({**tiny_config.to_dict(), "initializer_range": initializer_range})
    for seed in range(5):
        torch.manual_seed(seed)
        check_attention(MagnetLlamaForCausalLM(tiny_config))


def lose_mask(model):
    """What an upgrade has done to others: the model's mask goes unheard, and the layers are causal by themselves."""
    forward = model.base_model.forward
    model.base_model.forward = lambda **kwargs: forward(**{**kwargs, "attention_mask": None})


def lose_causality(model):
    """The opposite: every forward sees everything."""
    forward = model.base_model.forward

    def see_all(**kwargs):
        given = kwargs["input_ids"] if kwargs["inputs_embeds"] is None else kwargs["inputs_embeds"]
        batch_size, length = given.shape[:2]
        return forward(**{**kwargs, "attention_mask": torch.ones(batch_size, 1, length, length, dtype=torch.bool)})

    model.base_model.forward = see_all


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lose_mask, "bidirectional mode does not see later tokens"),
        (lose_causality, "causal mode sees later tokens"),
    ],
)
def test_a_model_that_lost_its_mask_is_caught_before_it_encodes(tiny_model, break_it, complaint):
    break_it(tiny_model)
    for call in (lambda: tiny_model.encode("A cat."), lambda: tiny_model.encode_words("A cat.")):
        with pytest.raises(RuntimeError, match=rf"'sdpa_magnet' on cpu in torch.float32, tr.*{complaint}"):
            call()


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_states_that_are_not_finite_are_reported(tiny_model, number):
    tiny_model.model.layers[1].mlp.down_proj.weight.data[3, 4] = float(number)
    with pytest.raises(RuntimeError, match=r"not finite, with .*'sdpa_magnet' on cpu in torch.float32"):
        tiny_model.encode("A cat.")


def test_it_runs_once_for_each_back_end(tiny_model, monkeypatch):
    calls = []
    monkeypatch.setattr("modeling_magnet.encoding_magnet.check_attention", lambda model: calls.append(model))
    for implementation in ("sdpa", "sdpa", "eager", "sdpa"):
        tiny_model.set_attn_implementation(implementation)
        tiny_model.encode("A cat.")
    assert len(calls) == 2
    tiny_model.bfloat16().encode("A cat.")
    assert len(calls) == 3
