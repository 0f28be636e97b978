"""Test GGUF files as bases: they load dequantized, train and save, and their adapters find them again."""

import json

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM
from modeling_magnet.bases import gguf
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.sources_magnet import CheckpointError

pytest.importorskip("gguf", reason="GGUF files are read and written by the package gguf")

from tests.adapters import add_lora
from tests.gguf_files import SHAPE, write_gguf

IDS = torch.tensor([[1, 5, 9, 40, 200, 7]])
# Heads of 128 and this scale of queries are what transformers takes a file to mean, which does not say them.
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "tied llama": (LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=128)),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=8, query_pre_attn_scalar=256),
    ),
}


def random_model(name):
    torch.manual_seed(0)
    kind, config = FAMILIES[name]
    return kind(config).eval()


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    """Write a directory with only a Llama in Q8_0."""
    place = tmp_path / "base"
    place.mkdir()
    write_gguf(random_model("llama"), tiny_tokenizer, place / "tiny.Q8_0.gguf", quantized=True)
    return place


def logits(model, **kwargs):
    with torch.no_grad():
        return model(IDS, **kwargs).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_opens_as_the_stock_class_does(name, tmp_path, tiny_tokenizer):
    model = random_model(name)
    write_gguf(model, tiny_tokenizer, tmp_path / "tiny.gguf", tokens=name != "gemma3")
    opened = AutoMagnetForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    assert torch.equal(logits(opened), logits(model)), "F32 rounds nothing"
    stock = type(model).from_pretrained(tmp_path, gguf_file="tiny.gguf")
    assert torch.equal(logits(opened), logits(stock))


def test_quantized_weights_are_those_of_the_stock_class(folder):
    stock = LlamaForCausalLM.from_pretrained(folder, gguf_file="tiny.Q8_0.gguf", dtype=torch.bfloat16)
    opened = MagnetLlamaForCausalLM.from_pretrained(folder, gguf_file="tiny.Q8_0.gguf", dtype=torch.bfloat16)
    assert opened.dtype == torch.bfloat16
    assert torch.equal(logits(opened), logits(stock))
    assert not torch.equal(logits(opened), logits(random_model("llama").bfloat16())), "it was quantized"


def test_a_model_from_gguf_saves_as_an_ordinary_checkpoint(folder, tmp_path):
    opened = AutoMagnetForCausalLM.from_pretrained(folder, gguf_file="tiny.Q8_0.gguf")
    assert not hasattr(opened.config, "quantization_config") and not opened.is_quantized
    opened.save_pretrained(tmp_path / "saved")
    values = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in values and values["dtype"] == "float32"
    again = AutoMagnetForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(opened))
    text = "She ate <s> 北 _ <|endoftext|>."
    assert again.tokenizer(text)["input_ids"] == opened.tokenizer(text)["input_ids"]
    assert (again.encode(text) == opened.encode(text)).all()
    assert (tmp_path / "saved" / "modules.json").is_file() and values["auto_map"]
    opened.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert AutoMagnetForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_the_tokenizer_is_that_of_the_file(folder, tiny_tokenizer):
    config, tokenizer = open_without_weights(str(folder), gguf_file="tiny.Q8_0.gguf")
    assert config.vocab_size == len(tokenizer) == 300
    stock = AutoTokenizer.from_pretrained(folder, gguf_file="tiny.Q8_0.gguf")
    assert len(stock) == 301, "transformers adds an <|endoftext|> that the model does not embed"
    for text in ("She ate the apple.", "北京", " two  spaces\n"):
        expected = tiny_tokenizer(text)["input_ids"]
        assert tokenizer(text)["input_ids"] == stock(text)["input_ids"] == expected


def adapted_over(folder, **kwargs):
    return add_lora(AutoMagnetForCausalLM.from_pretrained(folder, **kwargs))


def test_an_adapter_names_directory_and_file(folder, tmp_path):
    model = adapted_over(folder, gguf_file="tiny.Q8_0.gguf")
    model.save_pretrained(tmp_path / "adapter")
    size = (folder / "tiny.Q8_0.gguf").stat().st_size
    stored = json.loads((tmp_path / "adapter" / "magnet_adapter.json").read_text())
    assert stored["gguf_file"] == {"name": "tiny.Q8_0.gguf", "size": size}
    peft = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert peft["base_model_name_or_path"] == str(folder)
    again = AutoMagnetForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(tmp_path / "merged", merge_adapter=True)
    merged = AutoMagnetForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), logits(model), atol=1e-4)


def test_an_adapter_opens_over_the_same_weights_as_safetensors(folder, tmp_path):
    model = adapted_over(folder, gguf_file="tiny.Q8_0.gguf")
    model.save_pretrained(tmp_path / "adapter")
    AutoMagnetForCausalLM.from_pretrained(folder, gguf_file="tiny.Q8_0.gguf").save_pretrained(tmp_path / "plain")
    over = AutoMagnetForCausalLM.from_pretrained(tmp_path / "plain")
    over.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(over), logits(model))


def test_another_file_than_the_adapters_raises_unless_requested(folder, tmp_path, tiny_tokenizer):
    adapted_over(folder, gguf_file="tiny.Q8_0.gguf").save_pretrained(tmp_path / "adapter")
    write_gguf(random_model("llama"), tiny_tokenizer, folder / "tiny.F32.gguf")
    other = AutoMagnetForCausalLM.from_pretrained(tmp_path / "adapter", gguf_file="tiny.F32.gguf")
    assert other.has_adapter and other._weights_source.arguments["gguf_file"] == "tiny.F32.gguf"
    (folder / "tiny.F32.gguf").replace(folder / "tiny.Q8_0.gguf")
    with pytest.raises(CheckpointError, match=r"'tiny.Q8_0.gguf' of \d+ bytes.* has \d+"):
        AutoMagnetForCausalLM.from_pretrained(tmp_path / "adapter")
    (folder / "tiny.Q8_0.gguf").unlink()
    with pytest.raises(CheckpointError, match="base.*`gguf_file` 'tiny.Q8_0.gguf'"):
        AutoMagnetForCausalLM.from_pretrained(tmp_path / "adapter")


def test_a_file_of_that_name_in_the_working_directory_is_ignored(folder, tmp_path, tiny_tokenizer, monkeypatch):
    expected = logits(AutoMagnetForCausalLM.from_pretrained(folder, gguf_file="tiny.Q8_0.gguf"))
    torch.manual_seed(9)
    other = LlamaForCausalLM(FAMILIES["llama"][1])
    (tmp_path / "elsewhere").mkdir()
    write_gguf(other, tiny_tokenizer, tmp_path / "elsewhere" / "tiny.Q8_0.gguf")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(logits(AutoMagnetForCausalLM.from_pretrained(folder, gguf_file="tiny.Q8_0.gguf")), expected)


@pytest.mark.parametrize("kept", [0, 3, 100, 5000, -300])
def test_a_damaged_file_raises(folder, kept):
    file = folder / "tiny.Q8_0.gguf"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="tiny.Q8_0.gguf' cannot be read"):
        AutoMagnetForCausalLM.from_pretrained(folder, gguf_file="tiny.Q8_0.gguf")


def test_a_missing_file_raises_and_lists_the_others(folder):
    for name in ("tiny.gguf", "", "../tiny.gguf"):
        with pytest.raises(CheckpointError, match=r"has no such file; it has \['tiny.Q8_0.gguf'\]"):
            AutoMagnetForCausalLM.from_pretrained(folder, gguf_file=name)


def test_a_path_outside_of_the_directory_raises(folder, tmp_path):
    inside = AutoMagnetForCausalLM.from_pretrained(folder, gguf_file=str(folder / "tiny.Q8_0.gguf"))
    assert gguf.file_record(inside._weights_source)["name"] == "tiny.Q8_0.gguf"
    (tmp_path / "other").mkdir()
    for name in (str(folder / "tiny.Q8_0.gguf"), "../base/tiny.Q8_0.gguf"):
        with pytest.raises(CheckpointError, match="has no such file"):
            AutoMagnetForCausalLM.from_pretrained(tmp_path / "other", gguf_file=name)


def test_config_options_are_applied(folder):
    model = AutoMagnetForCausalLM.from_pretrained(
        folder, gguf_file="tiny.Q8_0.gguf", attn_implementation="eager", rms_norm_eps=0.5
    )
    assert model.config.rms_norm_eps == 0.5 and model.config._attn_implementation == "eager"


def test_a_file_without_a_tokenizer_opens_without_one(tmp_path, tiny_tokenizer):
    write_gguf(random_model("llama"), tiny_tokenizer, tmp_path / "tiny.gguf", tokens=False)
    model = AutoMagnetForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    with pytest.raises(ValueError, match="No tokenizer can be read at"):
        model.encode("A cat.")
