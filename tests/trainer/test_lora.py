"""Adapters sit on every linear layer but the LM head, and the modes pass through them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from trainer.contrastive import attach_contrastive_head
from trainer.lora import LoraArguments, apply_lora

from .tiny import tiny_args, tiny_model, tiny_trainer

IDS = torch.tensor([[1, 5, 6, 7, 8, 9]])
SEGMENTS = torch.tensor([[0, 0, 1, 1, 0, 0]])


def test_all_linear_layers_but_the_lm_head_get_adapters():
    model = apply_lora(tiny_model(), LoraArguments())
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 2 * 7  # A and B, two layers
    assert all(".lora_A" in name or ".lora_B" in name for name in trained)


def test_rank_and_scale_are_the_papers():
    model = apply_lora(tiny_model(), LoraArguments())
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.0)


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "infill"])
def test_fresh_adapters_change_nothing_in_any_mode(mode):
    model = tiny_model().eval()
    kwargs = {"mode": mode, "segment_ids": SEGMENTS if mode == "infill" else None}
    keep = torch.tensor([[True, False, True, False, False, True]])
    with torch.no_grad():
        expected = model(IDS, logits_to_keep=keep, **kwargs)
        adapted = apply_lora(model, LoraArguments()).eval()(input_ids=IDS, logits_to_keep=keep, **kwargs)
    assert adapted.logits.shape == (3, 44)
    torch.testing.assert_close(adapted.logits, expected.logits, rtol=0, atol=0)
    torch.testing.assert_close(adapted.last_hidden_state, expected.last_hidden_state, rtol=0, atol=0)


def test_full_training_leaves_the_model_alone():
    model = tiny_model()
    assert apply_lora(model, LoraArguments(use_lora=False)) is model
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_head_that_is_there_already_is_not_adapted():
    model = tiny_model()
    attach_contrastive_head(model, kind="tanh", hidden_size=16, seed=0)
    names = [name for name, _ in apply_lora(model, LoraArguments()).named_parameters()]
    assert not [name for name in names if "sscl_head" in name and "lora" in name]


def test_all_complaints_come_in_one_error():
    with pytest.raises(ValueError) as caught:
        LoraArguments(lora_r=0, lora_alpha=0, lora_dropout=1.0)
    assert all(name in str(caught.value) for name in ("`lora_r` is 0", "`lora_alpha` is 0", "`lora_dropout` is 1.0"))


def test_only_an_adapter_that_can_be_resumed_is_trained(tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    model = tiny_model()
    model.add_adapter(config)
    with pytest.raises(
        ValueError, match=r"could not be\s+resumed\. Wrap .* `get_peft_model`.*`trainer.lora.apply_lora`"
    ):
        tiny_trainer(tiny_args(tmp_path / "run"), model=model)
    assert not (tmp_path / "run").exists()
    tiny_trainer(tiny_args(tmp_path / "run"), model=model, train_dataset=None)  # to evaluate it
    tiny_trainer(tiny_args(tmp_path / "run"), model=get_peft_model(tiny_model(), config))
