"""The cost of an adapter is taken against a twin that does the same without one."""

import pytest
import torch
from peft import LoraConfig

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.publishing.merging import largest_differences
from trainer.adapter_cost import adapter_cost, merged_twin


@pytest.fixture
def adapted(tiny_model):
    torch.manual_seed(0)
    tiny_model.add_adapter(
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    )
    return tiny_model.eval()


@pytest.mark.parametrize("tied", [False, True])
def test_the_twin_is_the_merged_model(tiny_model, adapted, tied):
    if tied:
        config = tiny_model.config
        config.tie_word_embeddings = True
        model = MagnetLlamaForCausalLM(config)
        model.tokenizer = tiny_model.tokenizer
        model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False))
        adapted = model.eval()
    twin = merged_twin(adapted)
    assert not twin.has_adapter and adapted.has_adapter
    assert max(largest_differences(adapted, twin).values()) < 1e-5


def test_times_are_ratios(adapted):
    adapted.train()
    adapted.model.layers[0].eval()  # as a user freezes a part
    before = [module.training for module in adapted.modules()]
    cost = adapter_cost(adapted, texts=["The cat sat.", "She ate."], new_tokens=2, rounds=1)
    assert set(cost) == {"encode", "infill", "generate"} and all(0 < ratio < 100 for ratio in cost.values())
    assert [module.training for module in adapted.modules()] == before
