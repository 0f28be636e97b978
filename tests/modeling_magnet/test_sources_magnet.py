"""Damaged or incomplete files raise an error that names the file and a remedy, before weights are read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.sources_magnet import CheckpointError, ModelSource

from ..adapters import add_lora

LOADERS = [MagnetLlamaForCausalLM.from_pretrained, AutoMagnetForCausalLM.from_pretrained]


@pytest.fixture
def sharded(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    return tmp_path / "sharded"


def refused(folder, message):
    for load in LOADERS:
        with pytest.raises(ValueError, match=message) as caught:
            load(folder)
        assert isinstance(caught.value, OSError), "as transformers' own errors about files"


def test_missing_weights_raise(checkpoint, sharded):
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, "model.safetensors")
    shard = sorted(sharded.glob("model-*.safetensors"))[2]
    shard.unlink()
    refused(sharded, shard.name)


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_truncated_weights_raise(checkpoint, sharded, kept):
    for file in (checkpoint / "model.safetensors", sorted(sharded.glob("model-*.safetensors"))[0]):
        file.write_bytes(file.read_bytes()[:kept])
        refused(file.parent, rf"{file.name}' cannot be read \(SafetensorError")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[]", r"\[\]"),
        ("{}", "weight_map"),
        ('{"weight_map": {"lm_head.weight": 7}}', "index.json"),
        ('{"weight_map": {"lm_head.weight": "../other/model.safetensors"}}', "outside"),
        ('{"weight_map": {"lm_head.weight": "other.safetensors"}}', "other.safetensors"),
    ],
)
def test_an_invalid_index_raises(sharded, content, message):
    (sharded / "model.safetensors.index.json").write_text(content)
    refused(sharded, message)


def test_a_tensor_of_another_shape_raises(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    refused(checkpoint, r"1 mismatched tensors, such as \['model.norm.weight'\]")


def test_a_missing_tensor_raises(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    refused(checkpoint, r"1 missing tensors, such as \['lm_head.weight'\]")


def test_a_pickled_or_truncated_adapter_raises(checkpoint, tmp_path):
    model = add_lora(MagnetLlamaForCausalLM.from_pretrained(checkpoint), r=8, target_modules=["q_proj"])
    model.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    refused(tmp_path / "adapter", "adapter_model.safetensors' cannot be read")
    file.unlink()
    torch.save({}, tmp_path / "adapter" / "adapter_model.bin")
    refused(tmp_path / "adapter", "adapter_model.safetensors' cannot be read")
    weights = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(8, 32)}
    save_file(weights, file, metadata={"format": "pt"})
    refused(tmp_path / "adapter", "missing tensors.*lora_A")


def test_a_newer_schema_warns(checkpoint):
    values = json.loads((checkpoint / "config.json").read_text())
    values["magnet"] |= {"schema": 2, "telepathy": True}
    (checkpoint / "config.json").write_text(json.dumps(values))
    with pytest.warns(UserWarning, match=r"tiny'.*schema 2.*schema 1.*telepathy"):
        model = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    assert model.config.magnet["schema"] == 1 and "telepathy" not in model.config.magnet
    del values["magnet"]["schema"], values["magnet"]["telepathy"], values["magnet"]["adapter_modes"]
    (checkpoint / "config.json").write_text(json.dumps(values))
    assert MagnetLlamaForCausalLM.from_pretrained(checkpoint).config.magnet["schema"] == 1, "one from before schemas"


def test_an_invalid_config_raises(checkpoint):
    for content in ("{", "[" * 100_000, "[]"):
        (checkpoint / "config.json").write_text(content)
        refused(checkpoint, "config.json' cannot be read")
    for value in ("", ["llama"], 7, None):
        (checkpoint / "config.json").write_text(json.dumps({"model_type": value}))
        refused_as_another_type(checkpoint)
    (checkpoint / "config.json").unlink()
    refused(checkpoint, "has no config.json")


def refused_as_another_type(folder):
    for load in LOADERS:
        with pytest.raises(ValueError, match="a model of type"):
            load(folder)


def test_an_unknown_name_raises(tmp_path):
    refused("me/not-a-model-at-all", "'me/not-a-model-at-all'.* config.json")
    refused(str(tmp_path / "nowhere"), "nowhere' is not a local directory")


def test_a_missing_head_raises(tiny_model, tmp_path):
    from modeling_magnet.pooling_magnet import ContrastiveHead

    tiny_model.config.magnet["contrastive_head"] = "tanh"
    tiny_model.sscl_head = ContrastiveHead(32)
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    refused(tmp_path, "has no 2_Dense/model.safetensors")


def test_a_subfolder_is_searched(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "inner")
    source = ModelSource(str(tmp_path), {"subfolder": "inner"})
    assert source.directory == tmp_path / "inner" and source.read_json("config.json")["model_type"] == "llama"
    (tmp_path / "inner" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="inner/model.safetensors"):
        MagnetLlamaForCausalLM.from_pretrained(tmp_path, subfolder="inner")


GOOD = {"magnet": {"pooling": "mean"}, "base": {"hidden_size": 32}}


def test_settings_beside_an_adapter_are_read(tmp_path):
    source = ModelSource(str(tmp_path), {})
    assert source.adapter_settings() is None
    (tmp_path / "magnet_adapter.json").write_text(json.dumps(GOOD))
    assert source.adapter_settings() == GOOD


@pytest.mark.parametrize("content", [{"base": {}}, {"magnet": {}}, GOOD | {"base": [32]}, GOOD | {"magnet": None}, []])
def test_invalid_adapter_settings_raise(tmp_path, content):
    (tmp_path / "magnet_adapter.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="magnet_adapter.json"):
        ModelSource(str(tmp_path), {}).adapter_settings()


@pytest.mark.parametrize("key", ["base_model_name_or_path", "revision"])
def test_an_adapter_with_an_invalid_base_name_raises(tmp_path, key):
    values = {"base_model_name_or_path": "me/base", key: ["main"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"adapter_config.json.*\['main'\]"):
        ModelSource(str(tmp_path), {}).adapter_base()


def test_an_error_without_a_message_shows_its_type(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError

    monkeypatch.setattr("modeling_magnet.sources_magnet.cached_file", fail)
    with pytest.raises(CheckpointError, match=r"\(OSError\)"):
        ModelSource("me/mine", {}).file("config.json")


@pytest.mark.parametrize(
    "changes",
    [{"intermediate_size": {}}, {"num_key_value_heads": ["", []]}, {"rms_norm_eps": "x"}],
    ids=lambda changes: next(iter(changes)),
)
def test_an_invalid_value_in_a_config_raises(checkpoint, changes):
    values = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**values, **changes}))
    refused(checkpoint, "tiny' cannot be read")
    with pytest.raises(CheckpointError, match="config.json of .* cannot be read"):
        open_without_weights(str(checkpoint))


def test_a_base_name_too_long_for_a_directory_raises(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x" * 300}))
    refused(tmp_path, "is an adapter, and its base cannot be read")
