"""What cannot be opened is refused by the name of its file, with a remedy, and before anything is read for long."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, LlamaForCausalLM

from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.sources_magnet import CheckpointError, ModelSource, check_safetensors

LOADERS = [MagnetLlamaForCausalLM.from_pretrained, AutoMagnetForCausalLM.from_pretrained]


@pytest.fixture
def single(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "single")
    return tmp_path / "single"


@pytest.fixture
def sharded(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    return tmp_path / "sharded"


def refused(folder, message):
    for load in LOADERS:
        with pytest.raises(ValueError, match=message) as caught:
            load(folder)
        assert isinstance(caught.value, OSError), "as transformers' own errors about files"


def test_a_missing_shard(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[2]
    shard.unlink()
    refused(sharded, rf"{shard.name}' is missing\. Fetch it again")


def test_a_missing_file(single):
    (single / "model.safetensors").unlink()
    refused(single, "model.safetensors' is missing")


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_a_file_that_was_cut_short(single, sharded, kept):
    for file in (single / "model.safetensors", sorted(sharded.glob("model-*.safetensors"))[0]):
        file.write_bytes(file.read_bytes()[:kept])
        refused(file.parent, rf"{file.name}' .*(cut short|header promises)")


def test_a_header_that_lies(tmp_path):
    file = tmp_path / "model.safetensors"
    for header in (b"[]", b"{}x", b'{"a": {}}', b'{"a": {"data_offsets": [0]}}', b'{"a": 1}', b"\xff"):
        file.write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(CheckpointError, match="no readable safetensors header"):
            check_safetensors(file)
    offsets = ('["0", "4"]', "[0, 4.0]", "[4, 0]", "[-4, 0]", "[true, true]", "[0, 4, 8]", "[[0], [4]]")
    deep = b'{"a": ' * 100_000
    for header in (*(b'{"a": {"data_offsets": %b}}' % given.encode() for given in offsets), deep):
        file.write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(CheckpointError, match="no readable safetensors header"):
            check_safetensors(file)
    file.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(CheckpointError, match="no readable safetensors header"):
        check_safetensors(file)


def test_an_index_that_is_none(sharded):
    for content, message in (
        ("{", "is not JSON"),
        ("[]", "holds list; expected an object"),
        ("{}", "no `weight_map`"),
    ):
        (sharded / "model.safetensors.index.json").write_text(content)
        refused(sharded, message)
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}, "metadata": []}')
    refused(sharded, r"`metadata` in .*index.json' is \[\]; expected an object")
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x" * 300}}))
    refused(sharded, "x' is missing")
    for shard in (7, [], "", None):
        content = json.dumps({"weight_map": {"lm_head.weight": shard}})
        message = r"`weight_map` in .*index.json' has .* for 'lm_head.weight'; expected the name of a file"
        (sharded / "model.safetensors.index.json").write_text(content)
        refused(sharded, message)


def test_a_tensor_of_another_shape(single):
    weights = load_file(single / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, single / "model.safetensors", metadata={"format": "pt"})
    refused(single, r"model\.norm\.weight has shape \(7,\) where \(32,\) is expected \(1 tensors\)")


def test_a_tensor_that_is_missing(single):
    weights = load_file(single / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, single / "model.safetensors", metadata={"format": "pt"})
    refused(single, r"lack \['lm_head.weight'\] \(1 tensors\), which would be random")


def test_a_pickle_is_never_read(single):
    (single / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was read",))

    torch.save({"model.norm.weight": Bomb()}, single / "pytorch_model.bin")
    refused(single, r"pytorch_model.bin' is a pickle, which can run any code .* expected model.safetensors")


def test_an_adapter_that_is_a_pickle_or_cut_short(single, tmp_path):
    from peft import LoraConfig

    model = MagnetLlamaForCausalLM.from_pretrained(single)
    model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    refused(tmp_path / "adapter", "adapter_model.safetensors' has .* bytes where its header promises")
    file.unlink()
    torch.save({}, tmp_path / "adapter" / "adapter_model.bin")
    refused(tmp_path / "adapter", "adapter_model.bin' is a pickle")
    weights = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(8, 32)}
    save_file(weights, file, metadata={"format": "pt"})
    refused(tmp_path / "adapter", "lacks .*lora_A")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("poolling", "mean", "Did you mean 'pooling' for 'poolling'"),
        ("telepathy", True, r"Unknown MAGNET settings \['telepathy'\] in '.*single'"),
        ("pooling", "median", "`pooling` is 'median'"),
        ("adapter_modes", ["off"], r"`adapter_modes` is \['off'\]"),
    ],
)
def test_settings_that_are_none_of_ours(single, key, value, message):
    values = json.loads((single / "config.json").read_text())
    values["magnet"][key] = value
    (single / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        MagnetLlamaForCausalLM.from_pretrained(single)


def test_a_newer_schema_is_warned_of_by_name(single):
    values = json.loads((single / "config.json").read_text())
    values["magnet"] |= {"schema": 2, "telepathy": True}
    (single / "config.json").write_text(json.dumps(values))
    with pytest.warns(UserWarning, match=r"single' were written in schema 2; this code reads schema 1.*telepathy"):
        model = MagnetLlamaForCausalLM.from_pretrained(single)
    assert model.config.magnet["schema"] == 1 and "telepathy" not in model.config.magnet
    del values["magnet"]["schema"], values["magnet"]["telepathy"], values["magnet"]["adapter_modes"]
    (single / "config.json").write_text(json.dumps(values))
    assert MagnetLlamaForCausalLM.from_pretrained(single).config.magnet["schema"] == 1, "one from before schemas"


def test_a_config_that_is_none(single):
    (single / "config.json").write_text("{")
    refused(single, "config.json' is not JSON")
    (single / "config.json").write_text("[" * 100_000)
    refused(single, "config.json' is not JSON")
    for content in ("{}", '{"model_type": ""}', '{"hidden_size": 32}'):
        (single / "config.json").write_text(content)
        refused(single, "config.json of '.*single' holds no model_type")
    for value in (["llama"], 7, {"a": 1}):
        (single / "config.json").write_text(json.dumps({"model_type": value}))
        refused(single, "`model_type` in config.json of '.*single' is .*; expected a string")
    (single / "config.json").unlink()
    refused(single, "has no config.json, so it holds no model, or one whose saving was interrupted")


def test_a_name_that_is_nowhere(tmp_path):
    refused("me/not-a-model-at-all", "'me/not-a-model-at-all' is no directory here, and as a repository it has no")
    refused(str(tmp_path / "nowhere"), "is no directory here")


def test_a_missing_head_is_named(tiny_model, tmp_path):
    from modeling_magnet.pooling_magnet import ContrastiveHead

    tiny_model.config.magnet["contrastive_head"] = "tanh"
    tiny_model.sscl_head = ContrastiveHead(32)
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    refused(tmp_path, "2_Dense/model.safetensors, which is missing")


def test_without_remote_code_it_is_the_stock_class_and_says_so(single):
    """Nothing of ours runs there; what is missing is the method, and the README says which argument brings it."""
    model = AutoModel.from_pretrained(single)
    with pytest.raises(AttributeError, match="'LlamaModel' object has no attribute 'encode'"):
        model.encode(["The cat"])


def test_a_subfolder_is_looked_into(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "inner")
    source = ModelSource(str(tmp_path), {"subfolder": "inner"})
    assert source.directory == tmp_path / "inner" and source.read_json("config.json")["model_type"] == "llama"
    (tmp_path / "inner" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="inner/model.safetensors"):
        MagnetLlamaForCausalLM.from_pretrained(tmp_path, subfolder="inner")


def test_plain_models_are_checked_too(tiny_config, tmp_path):
    LlamaForCausalLM(tiny_config).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    refused(tmp_path, "no readable safetensors header")


GOOD = {"magnet": {"pooling": "mean"}, "base": {"hidden_size": 32}}


def test_settings_beside_an_adapter_are_read(tmp_path):
    source = ModelSource(str(tmp_path), {})
    assert source.adapter_settings() is None
    (tmp_path / "magnet_adapter.json").write_text(json.dumps(GOOD))
    assert source.adapter_settings() == GOOD


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base": {}}, "`magnet` in magnet_adapter.json of '.*' is missing; expected an object"),
        ({"magnet": {}}, "`base` in magnet_adapter.json of '.*' is missing"),
        (GOOD | {"base": [32]}, r"`base` in magnet_adapter.json of '.*' is \[32\]; expected an object"),
        (GOOD | {"magnet": None}, "`magnet` in magnet_adapter.json of '.*' is None"),
        ([], "magnet_adapter.json' holds list; expected an object"),
    ],
)
def test_settings_beside_an_adapter_that_are_none(tmp_path, content, message):
    (tmp_path / "magnet_adapter.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        ModelSource(str(tmp_path), {}).adapter_settings()


@pytest.mark.parametrize("key", ["base_model_name_or_path", "revision"])
def test_an_adapter_whose_base_is_no_name(tmp_path, key):
    values = {"base_model_name_or_path": "me/base", key: ["main"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(
        CheckpointError, match=rf"`{key}` in adapter_config.json of '.*' is \['main'\]; expected a str"
    ):
        ModelSource(str(tmp_path), {}).adapter_base()


def test_an_error_without_a_message_is_told_by_its_type(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError

    monkeypatch.setattr("modeling_magnet.sources_magnet.cached_file", fail)
    with pytest.raises(CheckpointError, match=r"as a repository it cannot be read \(OSError\)"):
        ModelSource("me/mine", {}).file("config.json")


@pytest.mark.parametrize(
    "changes",
    [{"intermediate_size": {}}, {"num_key_value_heads": ["", []]}, {"rms_norm_eps": "x"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_config_with_a_value_that_it_cannot_have_is_named(single, changes):
    values = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps({**values, **changes}))
    refused(single, r"config.json of .* is not a valid 'llama' config \(.*Restore the file")
    with pytest.raises(ValueError, match="is not a valid 'llama' config"):
        open_without_weights(str(single))


def test_a_base_whose_name_no_directory_can_have_is_no_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x" * 300}))
    refused(tmp_path, "is an adapter, and its base cannot be read")
