"""Test the content of saved directories, their readers, and interrupted saves."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, BertConfig, LlamaForCausalLM, pipeline

from modeling_magnet import FAMILIES, AutoMagnetForCausalLM, MagnetLlamaForCausalLM

from .test_families_magnet import make_config

IDS = torch.tensor([[1, 40, 41, 42, 43, 44]])


def variant(model, *, tied=False, head=None):
    """Build a tiny model with tied embeddings or a contrastive head."""
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = tied
    config.magnet["contrastive_head"] = head
    torch.manual_seed(1)
    other = MagnetLlamaForCausalLM(config).eval()
    other.tokenizer = model.tokenizer
    return other


def stored_keys(directory):
    """Return the names of all tensors in the main weights."""
    keys = set()
    for file in directory.glob("model*.safetensors"):
        with safe_open(file, "pt") as tensors:
            keys |= set(tensors.keys())
    return keys


@torch.no_grad()
def behavior(model):
    """Return everything that must survive a round trip, as numbers and text."""
    segments = torch.tensor([[0, 0, 1, 1, 0, 0]])
    return {
        "causal": model(input_ids=IDS).logits.numpy(),
        "bidirectional": model(input_ids=IDS, mode="bidirectional").last_hidden_state.numpy(),
        "infill": model(input_ids=IDS, mode="infill", segment_ids=segments).logits.numpy(),
        "embedding": model.encode(["A cat.", ""]),
        "words": model.encode_words("A cat").vectors,
        "fill": np.array(model.infill("The cat", " mat.", max_new_tokens=5)),
    }


def assert_same_behavior(model, other):
    expected, given = behavior(model), behavior(other)
    for name in expected:
        np.testing.assert_array_equal(given[name], expected[name], err_msg=name)


@pytest.mark.parametrize("head", [None, "tanh"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_round_trip_changes_nothing(tiny_model, tmp_path, tied, head):
    model = variant(tiny_model, tied=tied, head=head)
    model.save_pretrained(tmp_path / "saved")
    loaded, report = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not loaded.training
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_behavior(model, loaded)
    assert loaded.magnet_settings == model.magnet_settings
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    names = sorted(str(file.relative_to(again)) for file in again.rglob("*"))
    assert names == sorted(str(file.relative_to(tmp_path / "saved")) for file in (tmp_path / "saved").rglob("*"))
    for name in names:
        # Transformers notes in the tokenizer's config that it came from a local file; the card names its directory.
        if (again / name).is_file() and name not in ("tokenizer_config.json", "README.md"):
            assert (again / name).read_bytes() == (tmp_path / "saved" / name).read_bytes(), name


@pytest.mark.parametrize("head", [None, "tanh"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_checkpoint_opens_as_a_stock_llama_without_remote_code(tiny_model, tmp_path, tied, head):
    model = variant(tiny_model, tied=tied, head=head)
    model.save_pretrained(tmp_path)
    stock, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, trust_remote_code=False)
    assert type(stock) is LlamaForCausalLM
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(stock(IDS).logits, model(IDS).logits)
    stock.save_pretrained(tmp_path / "stock")
    assert stored_keys(tmp_path) == stored_keys(tmp_path / "stock")
    assert not any("sscl_head" in key for key in stored_keys(tmp_path))
    assert (tmp_path / "2_Dense").exists() == (head is not None)
    trunk, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True, trust_remote_code=False)
    assert not report["missing_keys"] and type(trunk).__name__ == "LlamaModel"


def test_config_json_names_the_stock_and_the_magnet_class(tiny_model, tmp_path):
    tiny_model.config.magnet["prompts"]["query"] = "Find: "
    before = copy.deepcopy(tiny_model.config.to_dict())
    tiny_model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    ours = "modeling_magnet.MagnetLlamaForCausalLM"
    assert values["model_type"] == "llama"
    assert values["architectures"] == ["LlamaForCausalLM"]
    assert values["auto_map"] == {"AutoModel": ours, "AutoModelForCausalLM": ours}
    assert values["is_causal"] is True
    assert values["magnet"] == tiny_model.magnet_settings.to_dict()
    changed = {name for name, value in tiny_model.config.to_dict().items() if before.get(name) != value}
    assert changed <= {"architectures", "dtype"}, "transformers notes both; nothing else changes"


def test_the_pipeline_of_the_card_s_tag_gives_states(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert "pipeline_tag: feature-extraction" in (tmp_path / "README.md").read_text()
    text = "The cat sat on the mat."
    ids = tiny_model.tokenizer(text, return_tensors="pt").input_ids
    for options, mode in (({}, "causal"), ({"model_kwargs": {"is_causal": False}}, "bidirectional")):
        features = pipeline("feature-extraction", model=str(tmp_path), trust_remote_code=True, **options)
        with torch.no_grad():
            expected = tiny_model(ids, mode=mode).last_hidden_state
        torch.testing.assert_close(torch.tensor(features(text)), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_auto_class_decides_what_comes_first_in_an_output(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    wide, narrow = (1, 6, tiny_model.config.vocab_size), (1, 6, tiny_model.config.hidden_size)
    expected = tiny_model(IDS, labels=IDS)
    for factory, first in ((AutoModel, narrow), (AutoModelForCausalLM, wide), (AutoModel, narrow)):
        model = factory.from_pretrained(tmp_path, trust_remote_code=True)
        assert model(IDS)[0].shape == model(IDS, return_dict=False)[0].shape == first
        output = model(IDS, labels=IDS)
        assert torch.equal(output[0], expected.loss) and torch.equal(output.logits, expected.logits)
        options = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(model.generate(IDS, **options), tiny_model.generate(IDS, **options))


def peft_merge(folder):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"]))
    return model.merge_and_unload()


# Two families, the second with names of its own for what a config holds.
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
@pytest.mark.parametrize("opener", [AutoModelForCausalLM.from_pretrained, peft_merge], ids=["stock", "peft"])
@torch.no_grad()
def test_a_copy_that_a_stock_class_saved_opens_everywhere(tiny_tokenizer, tmp_path, opener, model_type):
    ours = FAMILIES[model_type](make_config(model_type)).eval()
    ours.tokenizer = tiny_tokenizer
    ours.save_pretrained(tmp_path / "ours")
    opener(tmp_path / "ours").save_pretrained(tmp_path / "copy")
    tiny_tokenizer.save_pretrained(tmp_path / "copy")
    stock = type(AutoModelForCausalLM.from_pretrained(tmp_path / "ours"))
    for trusted in (False, True):
        copy_ = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", trust_remote_code=trusted)
        assert type(copy_) is stock
        assert torch.equal(copy_(IDS).logits, ours(IDS).logits)
        AutoModel.from_pretrained(tmp_path / "copy", trust_remote_code=trusted)
    again = AutoMagnetForCausalLM.from_pretrained(tmp_path / "copy")
    assert again.magnet_settings == ours.magnet_settings
    again.save_pretrained(tmp_path / "again")
    remote = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert type(remote).__name__ == type(ours).__name__


def test_loading_leaves_the_callers_config_alone(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    before = copy.deepcopy(config.to_dict())
    MagnetLlamaForCausalLM.from_pretrained(tmp_path, config=config)
    MagnetLlamaForCausalLM(config)
    assert config.to_dict() == before


def test_saving_over_a_checkpoint_replaces_it(tiny_model, tmp_path):
    other = variant(tiny_model, tied=True, head="tanh")
    (tmp_path / "notes.txt").write_text("kept")
    for model, arguments in (
        (tiny_model, {"max_shard_size": "20KB"}),
        (other, {}),
        (tiny_model, {}),
        (other, {"max_shard_size": "20KB"}),
    ):
        model.save_pretrained(tmp_path, **arguments)
        shards = list(tmp_path.glob("model-*.safetensors"))
        assert bool(shards) == bool(arguments) == (tmp_path / "model.safetensors.index.json").exists()
        assert ("2_Dense" in (tmp_path / "modules.json").read_text()) == (model is other)
        assert_same_behavior(model, MagnetLlamaForCausalLM.from_pretrained(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_a_model_can_be_saved_where_it_came_from(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        loaded.lm_head.weight.mul_(2)
    loaded.save_pretrained(tmp_path)
    assert_same_behavior(loaded, MagnetLlamaForCausalLM.from_pretrained(tmp_path))


def test_an_interrupted_save_leaves_the_old_checkpoint(tiny_model, tmp_path):
    target = tmp_path / "checkpoint"
    tiny_model.save_pretrained(target)
    files = {file: file.read_bytes() for file in target.rglob("*") if file.is_file()}
    other = variant(tiny_model, tied=True)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    other.tokenizer = copy.deepcopy(tiny_model.tokenizer)
    other.tokenizer.save_pretrained = interrupt  # by now the new weights are written
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(target)
    assert {file: file.read_bytes() for file in target.rglob("*") if file.is_file()} == files
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"], "nothing half-written stays beside it"
    assert_same_behavior(tiny_model, MagnetLlamaForCausalLM.from_pretrained(target))
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_only_the_main_process_writes(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "saved", is_main_process=False)
    assert list(tmp_path.iterdir()) == []


def test_a_state_dict_may_be_passed(tiny_model, tmp_path):
    weights = {name: tensor * 2 for name, tensor in variant(tiny_model, head="tanh").state_dict().items()}
    assert any(name.startswith("sscl_head.") for name in weights)
    tiny_model.save_pretrained(tmp_path, state_dict=weights)
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, weights["lm_head.weight"])
    assert not any("sscl_head" in key for key in stored_keys(tmp_path))


def test_half_precision_and_subfolders_survive(tiny_model, tmp_path):
    variant(tiny_model, head="tanh").save_pretrained(tmp_path / "full")
    model = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "inner")
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path, subfolder="inner")
    assert loaded.dtype == torch.bfloat16 and loaded.sscl_head.linear.weight.dtype == torch.bfloat16
    np.testing.assert_array_equal(loaded.encode("A cat."), model.encode("A cat."))
    assert MagnetLlamaForCausalLM.from_pretrained(tmp_path / "inner", dtype=torch.float32).dtype == torch.float32


def test_another_model_type_raises_before_weights_are_read(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of type 'bert'; this class expects 'llama'"):
        MagnetLlamaForCausalLM.from_pretrained(tmp_path)


def test_a_mask_token_needs_a_tokenizer(tiny_config, tmp_path):
    LlamaForCausalLM(tiny_config).save_pretrained(tmp_path)
    assert MagnetLlamaForCausalLM.from_pretrained(tmp_path).magnet_settings.mask_token is None
    with pytest.raises(ValueError, match=r"mask_token='_' was passed"):
        MagnetLlamaForCausalLM.from_pretrained(tmp_path, mask_token="_")


def test_a_tokenizer_that_does_not_fit_raises(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    larger = copy.deepcopy(tiny_model.tokenizer)
    larger.add_tokens(["<new>"])
    larger.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="has 301 tokens, but the model embeds 300"):
        MagnetLlamaForCausalLM.from_pretrained(tmp_path).encode("A cat.")


def test_a_target_that_is_a_file_raises(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; expected a directory"):
        tiny_model.save_pretrained(tmp_path / "file")
    with pytest.raises(ValueError, match="`push_to_hub=True` is not supported"):
        tiny_model.save_pretrained(tmp_path / "other", push_to_hub=True)


def test_a_dtype_may_be_passed_by_name(tiny_model, tmp_path):
    for name in ("bfloat16", "torch.bfloat16"):
        tiny_model.save_pretrained(tmp_path / name, dtype=name)
        assert MagnetLlamaForCausalLM.from_pretrained(tmp_path / name).dtype == torch.bfloat16
    for wrong in ("bf16", "int8", "nn", 16):
        with pytest.raises(ValueError, match=f"`dtype={wrong!r}`"):
            tiny_model.save_pretrained(tmp_path / "wrong", dtype=wrong)


def test_merging_with_a_state_dict_raises(tiny_model, tmp_path):
    tiny_model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="do not pass `state_dict`"):
        tiny_model.save_pretrained(tmp_path / "merged", merge_adapter=True, state_dict=tiny_model.state_dict())


@pytest.mark.parametrize("saved", [[], ["lm_head"]], ids=["LoRA", "LoRA and a copy"])
def test_a_model_whose_adapters_were_deleted_is_a_checkpoint(tiny_model, tmp_path, saved):
    expected = behavior(tiny_model)
    torch.manual_seed(0)
    options = {"target_modules": ["q_proj", "embed_tokens"], "init_lora_weights": False, "modules_to_save": saved}
    tiny_model.add_adapter(LoraConfig(task_type="CAUSAL_LM", **options))
    tiny_model.eval()
    tiny_model.set_adapter_modes(["bidirectional"] if not saved else None)
    tiny_model.delete_adapter("default")
    tiny_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["magnet"]["adapter_modes"] is None
    assert "library_name: transformers" in (tmp_path / "README.md").read_text()
    given = behavior(MagnetLlamaForCausalLM.from_pretrained(tmp_path))
    for name in expected:
        np.testing.assert_array_equal(given[name], expected[name], err_msg=name)
    with pytest.raises(ValueError, match="this model has no adapter"):
        tiny_model.save_pretrained(tmp_path, merge_adapter=True)


def test_a_full_checkpoint_has_no_adapter_modes(tiny_model, tmp_path):
    tiny_model.config.magnet["adapter_modes"] = ["bidirectional"]
    tiny_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["magnet"]["adapter_modes"] is None
    assert tiny_model.config.magnet["adapter_modes"] == ["bidirectional"]


def test_saving_without_the_loaded_tokenizer_raises(tiny_model, tiny_config, tmp_path):
    tiny_model.save_pretrained(tmp_path / "mine")
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"tokenizer at '.*mine'.*no longer be read"):
        loaded.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    loaded.tokenizer = tiny_model.tokenizer
    loaded.save_pretrained(tmp_path / "copy")
    LlamaForCausalLM(tiny_config).save_pretrained(tmp_path / "plain")
    MagnetLlamaForCausalLM.from_pretrained(tmp_path / "plain").save_pretrained(tmp_path / "without")
    assert not (tmp_path / "without" / "tokenizer.json").exists()
