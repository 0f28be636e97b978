"""The cost of an adapter is taken against a twin that does the same without one."""

import pytest
import torch
from peft import LoraConfig

from examples.benchmarks.adapter_cost import extra_products, main
from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.merging_magnet import largest_differences
from trainer.lora import adapter_cost, merged_twin


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


def test_products_are_counted(adapted):
    # A query of 32 x 32 and a value of 32 x 16: (4 * 64 + 4 * 48) / (1024 + 512).
    assert extra_products(adapted) == pytest.approx((4 * 64 + 4 * 48) / (1024 + 512))


@pytest.mark.long
def test_the_benchmark_runs(stories260k, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("Once upon a time there was a cat.\nIt sat on a mat.\n")
    given = [f"--model={stories260k}", f"--texts={tmp_path / 'texts.txt'}", "--rounds=1"]
    result = main([*given, f"--output={tmp_path / 'r.json'}"])
    assert set(result["times_over_merged"]) == {"always on", "bound"}
    assert (tmp_path / "r.json").is_file() and "adapter_cost: OK" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([f"--model={stories260k}", "--texts=x", "--rounds=0"])
