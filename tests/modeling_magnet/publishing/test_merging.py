"""Adapters are merged in float32, written in the requested dtype, and verified before the target is replaced."""

import copy

import pytest
import torch
from peft import get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.publishing import merging
from modeling_magnet.publishing.merging import largest_differences, merged_weights, verify_files
from tests.adapters import add_lora, lora

IDS = torch.tensor([[1, 40, 41, 42, 43, 44]])
KINDS = {
    "linear": {"target_modules": "all-linear"},
    "scaled": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True, "lora_alpha": 7},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    "saved module": {"target_modules": ["k_proj"], "modules_to_save": ["lm_head"]},
    "bias": {"target_modules": ["o_proj"], "bias": "lora_only"},
}


def adapt(model, kind):
    add_lora(model, seed=5, **KINDS[kind])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.5)
    return model


@pytest.fixture
def reports(monkeypatch):
    """Return the reports of the verification, at level INFO."""
    said: list[str] = []
    monkeypatch.setattr(merging.logger, "info", said.append)
    return said


def load(folder, **options):
    return MagnetLlamaForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize("kind", list(KINDS))
@torch.no_grad()
def test_a_merged_checkpoint_equals_the_model(checkpoint, tmp_path, kind, reports):
    model = adapt(load(checkpoint), kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "merged", merge_adapter=True)
    assert "largest differences: logits, causal" in reports[-1]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the model itself stays unmerged"
    loaded, info = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.has_adapter
    differences = largest_differences(model, loaded)
    assert set(differences) == {"logits, causal", "logits, bidirectional", "logits, infill", "embeddings"}
    assert max(differences.values()) < 1e-4
    assert max(largest_differences(load(checkpoint), loaded).values()) > 1e-2, "the adapter does something"
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(stock(IDS).logits, loaded(IDS).logits)


@torch.no_grad()
def test_trained_token_embeddings_are_merged(checkpoint, tmp_path):
    """PEFT merges their layer by another method than LoRA layers, and few texts contain such a token."""
    model = load(checkpoint)
    model.add_adapter(lora(init_lora_weights=True, target_modules=["v_proj"], trainable_token_indices=[40, 41]))
    (trained,) = (tensor for name, tensor in model.named_parameters() if "trainable_tokens_delta" in name)
    trained.add_(1.0)
    model.eval().save_pretrained(tmp_path / "merged", merge_adapter=True)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(stock.get_input_embeddings().weight[[40, 41]], trained)
    torch.testing.assert_close(stock(IDS).logits, model(IDS).logits)
    assert not torch.allclose(stock(IDS).logits, load(checkpoint)(IDS).logits, atol=1e-2)


@torch.no_grad()
def test_merging_is_done_in_float32(checkpoint, tmp_path):
    """A half-precision base is merged in float32 and rounded once; PEFT's merge rounds more often."""
    model = adapt(load(checkpoint, dtype=torch.bfloat16), "linear")
    for parameter in model.parameters():
        assert parameter.dtype == torch.bfloat16
    layer = model.model.layers[0].self_attn.q_proj
    exact = layer.base_layer.weight.float() + layer.scaling["default"] * (
        layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
    )
    torch.testing.assert_close(merged_weights(model)["model.layers.0.self_attn.q_proj.weight"], exact)
    model.save_pretrained(tmp_path / "merged", merge_adapter=True, dtype=torch.float32)
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert torch.allclose(file.get_tensor("model.layers.0.self_attn.q_proj.weight"), exact)
    model.save_pretrained(tmp_path / "rounded", merge_adapter=True)
    with safe_open(tmp_path / "rounded" / "model.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert torch.equal(stored["model.layers.0.self_attn.q_proj.weight"], exact.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_can_change_its_dtype(tiny_model, tmp_path, dtype, reports):
    tiny_model.save_pretrained(tmp_path, dtype=dtype)
    assert "largest differences" in reports[-1]
    assert tiny_model.dtype == torch.float32
    loaded = load(tmp_path)
    assert loaded.dtype == dtype
    for (name, tensor), other in zip(tiny_model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(tensor.to(dtype), other), name


def test_tied_weights_are_written_once_in_any_dtype(wiki_7m, tmp_path):
    model = load(wiki_7m)
    model.save_pretrained(tmp_path, dtype=torch.bfloat16)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()
    assert (tmp_path / "model.safetensors").stat().st_size < 2.01 * model.num_parameters()


def test_a_tied_model_stays_tied(tiny_model, tmp_path):
    config = copy.deepcopy(tiny_model.config)
    config.tie_word_embeddings = True
    model = MagnetLlamaForCausalLM(config)
    model.tokenizer = tiny_model.tokenizer
    adapt(model, "linear").save_pretrained(tmp_path / "merged", merge_adapter=True)
    loaded = load(tmp_path / "merged")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert max(largest_differences(model, loaded).values()) < 1e-4


def test_embeddings_untied_by_an_adapter_are_written_separately(tiny_model, tmp_path):
    config = copy.deepcopy(tiny_model.config)
    config.tie_word_embeddings = True
    model = MagnetLlamaForCausalLM(config)
    model.tokenizer = tiny_model.tokenizer
    adapt(model, "embeddings")
    model.save_pretrained(tmp_path / "merged", merge_adapter=True)
    assert model.config.tie_word_embeddings
    loaded = load(tmp_path / "merged")
    assert not loaded.config.tie_word_embeddings
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
    assert max(largest_differences(model, loaded).values()) < 1e-4
    stock, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(stock(IDS).logits, loaded(IDS).logits)


def test_files_that_fail_verification_are_deleted(checkpoint, tmp_path, monkeypatch):
    model = adapt(load(checkpoint), "linear")
    monkeypatch.setattr(merging, "merged_weights", lambda model: load(checkpoint).state_dict())  # forgot to merge
    with pytest.raises(ValueError, match="differ from the model in memory"):
        model.save_pretrained(tmp_path / "merged", merge_adapter=True)
    assert not (tmp_path / "merged").exists()
    model.save_pretrained(tmp_path / "merged", merge_adapter=True, verify=False)
    assert (tmp_path / "merged" / "config.json").is_file()


def weak_adapter(checkpoint, **options):
    """Return an adapter that changes logits by about a percent, and the logits of the base."""
    model = add_lora(load(checkpoint, **options), seed=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.02)
    return model


@pytest.mark.parametrize("size", ["50GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_lost_weak_adapter_is_detected_in_half_precision(checkpoint, tmp_path, monkeypatch, dtype, size):
    model = weak_adapter(checkpoint)
    assert max(largest_differences(model, load(checkpoint)).values()) < 0.2, "logits alone do not tell"
    model.save_pretrained(tmp_path / "right", merge_adapter=True, dtype=dtype, max_shard_size=size)
    monkeypatch.setattr(merging, "merged_weights", lambda model: load(checkpoint).state_dict())
    with pytest.raises(ValueError, match="_proj.weight is another tensor"):
        model.save_pretrained(tmp_path / "lost", merge_adapter=True, dtype=dtype, max_shard_size=size)
    assert not (tmp_path / "lost").exists()


def test_unexpected_and_different_tensors_are_detected(tiny_model, checkpoint, tmp_path):
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "more": torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"files have \['more'\]"):
        verify_files(tiny_model, checkpoint, dtype=torch.float32)
    weights["model.norm.weight"] = weights["model.norm.weight"].double()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model.norm.weight is another tensor"):
        verify_files(tiny_model, checkpoint, dtype=torch.float32)


def test_merging_a_disabled_adapter_raises(checkpoint, tmp_path):
    model = adapt(load(checkpoint), "linear")
    model.disable_adapters()
    with pytest.raises(ValueError, match=r"is switched off.*`model.enable_adapters\(\)`"):
        model.save_pretrained(tmp_path / "merged", merge_adapter=True)
    assert not (tmp_path / "merged").exists()
    model.enable_adapters()
    model.save_pretrained(tmp_path / "merged", merge_adapter=True)


def test_verification_restores_training_modes(tiny_model, tmp_path):
    tiny_model.train()
    tiny_model.model.layers[0].eval()  # as a user freezes a part
    before = [module.training for module in tiny_model.modules()]
    tiny_model.save_pretrained(tmp_path, verify=True)
    assert [module.training for module in tiny_model.modules()] == before


def test_verification_is_available_for_any_save(tiny_model, checkpoint, tmp_path, reports):
    tiny_model.save_pretrained(tmp_path / "plain")
    assert reports == []
    tiny_model.train()
    tiny_model.save_pretrained(tmp_path / "plain", verify=True)
    assert "embeddings 0.0e+00" in reports[-1]
    assert tiny_model.training
    adapt(load(checkpoint), "linear").save_pretrained(tmp_path / "adapter", verify=True)
    assert "embeddings 0.0e+00" in reports[-1]


def test_invalid_merges_raise(tiny_model, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="`merge_adapter=True`.*no adapter"):
        tiny_model.save_pretrained(tmp_path / "merged", merge_adapter=True)
    model = adapt(load(checkpoint), "linear")
    model.set_adapter_modes(["infill"])
    with pytest.raises(ValueError, match=r"only on in \['infill'\]"):
        model.save_pretrained(tmp_path / "merged", merge_adapter=True)
    model.set_adapter_modes(None)
    model.add_adapter(lora(), adapter_name="second")
    model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"\['default', 'second'\].*only one"):
        model.save_pretrained(tmp_path / "adapter")
    nameless = MagnetLlamaForCausalLM(tiny_model.config)
    with pytest.raises(ValueError, match="stored with the name of its base"):
        adapt(nameless, "linear").save_pretrained(tmp_path / "adapter")


def test_a_peft_model_around_ours_is_merged_by_its_inner_one(checkpoint, tmp_path):
    torch.manual_seed(5)
    wrapped = get_peft_model(load(checkpoint), lora()).eval()
    wrapped.get_base_model().save_pretrained(tmp_path / "merged", merge_adapter=True)
    assert max(largest_differences(wrapped, load(tmp_path / "merged")).values()) < 1e-4


def test_encoding_ignores_the_default_dtype(tiny_model):
    """Verification loads the model, which temporarily sets torch's default dtype for the whole process."""
    tiny_model.eval()
    texts = ["The cat sat on the mat.", "She ate"]
    vectors, empty = tiny_model.encode(texts), tiny_model.encode([])
    states = tiny_model.encode(texts, output_value="token_embeddings")
    torch.set_default_dtype(torch.bfloat16)
    try:
        found, nothing = tiny_model.encode(texts), tiny_model.encode([])
        found_states = tiny_model.encode(texts, output_value="token_embeddings")
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == nothing.dtype == empty.dtype and (found == vectors).all()
    assert all(torch.equal(one, other) for one, other in zip(found_states, states, strict=True))
