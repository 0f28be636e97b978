"""Test bases quantized by transformers: their results, what is saved, and which calls raise.

torchao is tested everywhere; bitsandbytes where it is installed.
"""

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig

from modeling_magnet import MagnetLlamaForCausalLM
from tests.adapters import add_lora
from trainer import LoraArguments, MagnetTrainer, MagnetTrainingArguments, apply_lora, texts_to_blocks
from trainer.contrastive_head import attach_contrastive_head

IDS = torch.tensor([[1, 40, 41, 42, 43, 44]])
TEXTS = ["A cat.", "The dog barked at the cat, and the cat sat on the mat.", ""]


def torchao_int8():
    return TorchAoConfig(Int8WeightOnlyConfig())


def bitsandbytes_int8():
    pytest.importorskip("bitsandbytes", reason="an optional library")
    from transformers import BitsAndBytesConfig

    # At its default threshold a vector depends on the texts beside it.
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


@pytest.mark.parametrize("config", [torchao_int8, bitsandbytes_int8])
def test_a_quantized_base_supports_all_calls_and_is_saved_unchanged(tiny_model, tmp_path, config):
    attach_contrastive_head(tiny_model, kind="tanh", hidden_size=32, seed=0)
    tiny_model.config.magnet["contrastive_head"] = "tanh"
    tiny_model.save_pretrained(tmp_path / "plain")
    model = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config()).eval()
    vectors, expected = model.encode(TEXTS), tiny_model.encode(TEXTS)
    assert not np.array_equal(vectors, expected)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((vectors * expected).sum(1) / norms).min() > 0.99
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(model.encode(text), vector, atol=1e-5, err_msg="whatever stands beside it")
    assert isinstance(model.infill("A cat", " mat.", max_new_tokens=3), str)
    with torch.no_grad():
        logits = model(IDS).logits
        ones = torch.ones(1, 32)
        assert torch.equal(model.sscl_head(ones), tiny_model.sscl_head(ones)), "the head is no part of the base"
    model.save_pretrained(tmp_path / "quantized")
    np.testing.assert_array_equal(model.encode(TEXTS), vectors)
    with safe_open(tmp_path / "quantized" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith("sscl_head")]
    again = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "quantized").eval()
    np.testing.assert_array_equal(again.encode(TEXTS), vectors)
    stock, info = AutoModelForCausalLM.from_pretrained(tmp_path / "quantized", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(stock.eval()(IDS).logits, logits)


@pytest.fixture
def quantized(checkpoint):
    return MagnetLlamaForCausalLM.from_pretrained(checkpoint, quantization_config=torchao_int8())


def train(model, folder, **options):
    texts = Dataset.from_dict({"text": ["The cat sat on the mat and the dog barked at it. " * 3] * 8})
    rows = texts_to_blocks(texts, model.tokenizer, max_length=24)
    args = MagnetTrainingArguments(
        output_dir=str(folder), loss_phases=["3:1,0,1"], report_to="none", use_cpu=True, disable_tqdm=True, **options
    )
    trainer = MagnetTrainer(
        apply_lora(model, LoraArguments(lora_r=2)), args=args, train_dataset=rows, processing_class=model.tokenizer
    )
    trainer.train()
    return trainer


def test_an_adapter_is_trained_on_it_bound_and_carried_to_the_exact_base(quantized, tmp_path):
    with torch.no_grad():
        causal = quantized(IDS).logits
    trainer = train(quantized, tmp_path / "run", learning_rate=0.05)
    model = trainer.model.get_base_model().eval()
    with torch.no_grad():
        assert not torch.equal(model(IDS).logits, causal)
        model.set_adapter_modes(["bidirectional", "infill"])
        assert torch.equal(model(IDS).logits, causal)
    with pytest.raises(ValueError, match="is only on in"):
        model.save_pretrained(tmp_path / "merged", merge_adapter=True)
    model.set_adapter_modes(None)
    with pytest.raises(ValueError, match="The base is quantized"):
        model.save_pretrained(tmp_path / "merged", merge_adapter=True)
    model.save_pretrained(tmp_path / "adapter")
    exact = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapter")
    assert not getattr(exact, "is_quantized", False)
    first, second = exact.encode(TEXTS, normalize_embeddings=True), model.encode(TEXTS, normalize_embeddings=True)
    assert (first * second).sum(1).min() > 0.99
    exact.save_pretrained(tmp_path / "merged", merge_adapter=True)
    again = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapter", quantization_config=torchao_int8())
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))


def test_training_a_base_that_passes_no_gradient_raises(checkpoint, tmp_path):
    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    model = MagnetLlamaForCausalLM.from_pretrained(checkpoint, quantization_config=config)
    assert model.encode(TEXTS).shape == (3, 32)
    with pytest.raises(ValueError, match="pass no gradient on"):
        train(model, tmp_path / "run")


def test_an_adapter_loads_onto_a_quantized_base(quantized, checkpoint, tmp_path):
    model = add_lora(MagnetLlamaForCausalLM.from_pretrained(checkpoint))
    model.save_pretrained(tmp_path / "adapter")
    quantized.load_adapter(str(tmp_path / "adapter"))
    first, second = (one.encode(TEXTS, normalize_embeddings=True) for one in (model, quantized))
    assert (first * second).sum(1).min() > 0.99


def test_saving_repacked_four_bit_weights_raises(wiki_7m, tmp_path):
    pytest.importorskip("bitsandbytes", reason="an optional library")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m, quantization_config=config).eval()
    model.encode(TEXTS)
    states = [parameter.quant_state for parameter in model.parameters() if hasattr(parameter, "quant_state")]
    if not any(getattr(state, "packing_format_for_cpu", False) for state in states):
        pytest.skip("this CPU has no kernels that repack")
    with pytest.raises(ValueError, match="was repacked by the 4-bit CPU kernels"):
        model.save_pretrained(tmp_path / "saved")
