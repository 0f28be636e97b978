"""Loading raises stock errors for arguments and memory, and errors that name the file for damaged files."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from modeling_magnet import FAMILIES, AutoMagnetForCausalLM, MagnetLlamaForCausalLM
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.sources_magnet import CheckpointError, TokenizerSource

from ..adapters import add_lora
from .test_families_magnet import make_config


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_folder_without_a_tokenizer_opens_without_one(model_type, tmp_path):
    AutoModelForCausalLM.from_config(make_config(model_type)).save_pretrained(tmp_path / "stock")
    model = AutoMagnetForCausalLM.from_pretrained(tmp_path / "stock")
    assert model.magnet_settings.mask_token is None
    with pytest.raises(ValueError, match="No tokenizer can be read at"):
        model.encode(["the cat sat", "one dog ran"])
    with pytest.raises(ValueError, match="tokenizer"):
        open_without_weights(str(tmp_path / "stock"))
    model.save_pretrained(tmp_path / "again")
    assert not list((tmp_path / "again").glob("tokenizer*"))
    assert AutoMagnetForCausalLM.from_pretrained(tmp_path / "again")._tokenizer_source.find() is None


def test_a_tokenizer_without_a_vocabulary_is_not_loaded(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path)
    assert len(TokenizerSource(str(tmp_path)).find()) == 300
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert TokenizerSource(str(tmp_path)).find() is None


def test_a_byte_level_tokenizer_needs_no_vocabulary(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    found = TokenizerSource(str(tmp_path)).find()
    assert found is not None and found("a")["input_ids"] == AutoTokenizer.from_pretrained(tmp_path)("a")["input_ids"]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"dtyp": torch.float32}, TypeError),
        ({"dtype": "banana"}, ValueError),
        ({"device_map": "nowhere"}, Exception),
        ({"hidden_act": "none such"}, KeyError),
    ],
    ids=["unknown", "dtype", "device", "config"],
)
def test_an_invalid_argument_raises_its_own_error(checkpoint, arguments, kind):
    with pytest.raises(kind) as stock:
        LlamaForCausalLM.from_pretrained(checkpoint, **arguments)
    with pytest.raises(kind) as ours:
        MagnetLlamaForCausalLM.from_pretrained(checkpoint, **arguments)
    assert type(ours.value) is type(stock.value) and not isinstance(ours.value, CheckpointError)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["device", "host"],
)
def test_out_of_memory_errors_are_raised_unchanged(checkpoint, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(fail))
    with pytest.raises(RuntimeError) as caught:
        MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    assert caught.value is error


def test_a_meta_device_context_raises_as_in_the_stock_class(checkpoint):
    for kind in (LlamaForCausalLM, MagnetLlamaForCausalLM):
        with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context"):
            kind.from_pretrained(checkpoint)


def test_invalid_values_of_a_file_raise_a_checkpoint_error(checkpoint):
    values = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**values, "hidden_act": "none such"}))
    for arguments in ({}, {"dtype": torch.bfloat16, "attn_implementation": "eager"}):
        with pytest.raises(CheckpointError, match="tiny' cannot be read"):
            MagnetLlamaForCausalLM.from_pretrained(checkpoint, **arguments)


def test_loading_an_adapter_raises_argument_and_memory_errors_unchanged(checkpoint, tmp_path, monkeypatch):
    model = add_lora(MagnetLlamaForCausalLM.from_pretrained(checkpoint))
    model.save_pretrained(tmp_path / "adapter")
    base = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    with pytest.raises(TypeError, match="is_trainabel"):
        base.load_adapter(str(tmp_path / "adapter"), is_trainabel=True)
    error = torch.OutOfMemoryError("CUDA out of memory")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "load_adapter", fail)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        base.load_adapter(str(tmp_path / "adapter"))
    assert caught.value is error
