"""An adapter that is off in some modes leaves the base unchanged in every call, also with concurrent threads."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.adapters_magnet import ADAPTER_LAYERS
from tests.adapters import add_lora, lora

BOUND = ["bidirectional", "infill"]
IDS = torch.tensor([[1, 40, 41, 42, 43, 44], [1, 50, 51, 52, 53, 54], [1, 60, 61, 62, 63, 64]])
SEGMENTS = torch.tensor([[0, 0, 1, 1, 0, 0]]).expand(3, -1)
TEXTS = ["The cat sat.", "She ate the apple for breakfast.", "dog"]


def adapt(checkpoint, **options):
    """Return the model of a checkpoint with an adapter."""
    return add_lora(MagnetLlamaForCausalLM.from_pretrained(checkpoint), **options)


@pytest.fixture
def adapted(checkpoint):
    return adapt(checkpoint, seed=3)


@pytest.fixture
def bound(adapted):
    adapted.set_adapter_modes(BOUND)
    return adapted


@pytest.fixture
def stock(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


def differs(first, second):
    return float((first - second).abs().max()) > 1e-3


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_causal_mode_is_the_base_bit_for_bit(checkpoint, implementation, dtype):
    options = {"attn_implementation": implementation, "dtype": dtype}
    model = add_lora(MagnetLlamaForCausalLM.from_pretrained(checkpoint, **options), seed=3)
    always = {
        mode: model(IDS, mode=mode, segment_ids=SEGMENTS if mode == "infill" else None) for mode in ("causal", *BOUND)
    }
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, **options).eval()
    assert differs(model(IDS).logits, stock(IDS).logits)
    model.set_adapter_modes(BOUND)
    for mask in (None, torch.ones_like(IDS), torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6, [1, 1, 1, 1, 0, 0]])):
        assert torch.equal(model(IDS, attention_mask=mask).logits, stock(IDS, attention_mask=mask).logits)
    for mode in BOUND:
        given = model(IDS, mode=mode, segment_ids=SEGMENTS if mode == "infill" else None)
        assert torch.equal(given.logits, always[mode].logits), "as with an adapter that is always on"
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2}
    assert torch.equal(model.generate(IDS, **options), stock.generate(IDS, **options))
    model.set_adapter_modes(None)
    assert torch.equal(model(IDS).logits, always["causal"].logits)


@torch.no_grad()
def test_a_callback_may_use_another_mode(bound, stock):
    """The outer call is base-only; the mode of the inner call decides for itself."""
    seen = {}

    def look(module, args, output):
        if "embedding" not in seen:
            seen["embedding"] = None
            seen["embedding"] = bound.encode(TEXTS)

    handle = bound.model.layers[1].register_forward_hook(look)
    logits = bound(IDS).logits
    handle.remove()
    np.testing.assert_array_equal(seen["embedding"], bound.encode(TEXTS))
    assert torch.equal(logits, stock(IDS).logits)


@torch.no_grad()
def test_an_adapter_may_be_on_in_any_set_of_modes(adapted, stock):
    plain = MagnetLlamaForCausalLM.from_pretrained(adapted.config._name_or_path)
    infill = {"max_new_tokens": 4}
    with_adapter = adapted.infill("The cat", " mat.", **infill), adapted.encode(TEXTS), adapted(IDS).logits
    for modes in ([], ["causal"], ["infill"], ["bidirectional"], ["causal", "bidirectional", "infill"]):
        adapted.set_adapter_modes(modes)
        expected = [
            with_adapter[0] if "infill" in modes else plain.infill("The cat", " mat.", **infill),
            with_adapter[1] if "bidirectional" in modes else plain.encode(TEXTS),
            with_adapter[2] if "causal" in modes else stock(IDS).logits,
        ]
        assert adapted.infill("The cat", " mat.", **infill) == expected[0]
        np.testing.assert_array_equal(adapted.encode(TEXTS), expected[1])
        assert torch.equal(adapted(IDS).logits, expected[2])
        scores = adapted.score_infill("The cat", [" sat"], " down.")[0].logprobs
        other = plain.score_infill("The cat", [" sat"], " down.")[0].logprobs
        assert (scores == other) == ("infill" not in modes)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"use_dora": True},
        {"use_rslora": True},
    ],
    ids=["embeddings", "saved module", "dora", "rslora"],
)
@torch.no_grad()
def test_other_lora_variants_can_be_bypassed(checkpoint, stock, changes):
    model = adapt(checkpoint, seed=3, **changes)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.add_(1)
    assert differs(model(IDS).logits, stock(IDS).logits)
    model.set_adapter_modes(BOUND)
    assert torch.equal(model(IDS).logits, stock(IDS).logits)
    assert differs(model(IDS, mode="infill", segment_ids=SEGMENTS).logits, model(IDS).logits)


def test_adapters_that_cannot_be_bypassed_raise(checkpoint, tiny_model):
    with pytest.raises(ValueError, match="has no adapter to bind"):
        tiny_model.set_adapter_modes(BOUND)
    with pytest.raises(ValueError, match="Unknown mode 'off'"):
        tiny_model.set_adapter_modes(["off"])
    with pytest.raises(ValueError, match=r"`modes` is 'infill'.*\['infill'\]"):
        tiny_model.set_adapter_modes("infill")
    model = adapt(checkpoint, bias="all")
    with pytest.raises(ValueError, match=r"biases of the base model \(bias='all'\)"):
        model.set_adapter_modes(BOUND)
    model = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    model.add_adapter(
        IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    )
    with pytest.raises(ValueError, match="cannot bypass"):
        model.set_adapter_modes(BOUND)


def test_layers_without_a_hook_raise(bound):
    for layer in (layer for layer in bound.modules() if isinstance(layer, ADAPTER_LAYERS)):
        layer._forward_pre_hooks.clear()
    with pytest.raises(ValueError, match="some adapter layer has no hook"):
        bound(IDS)


def test_gradient_checkpointing_raises_if_the_adapter_is_off(bound):
    bound.train()
    bound.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing would recompute"):
        bound(IDS)
    bound(IDS, mode="bidirectional").last_hidden_state.sum().backward()
    with torch.no_grad():
        bound(IDS)


@torch.no_grad()
def test_a_bound_model_can_be_copied_and_pickled(bound, stock):
    for other in (copy.deepcopy(bound), pickle.loads(pickle.dumps(bound))):
        assert torch.equal(other(IDS).logits, stock(IDS).logits)
        np.testing.assert_array_equal(other.encode(TEXTS), bound.encode(TEXTS))


@torch.no_grad()
def test_a_peft_model_around_ours_can_be_bound(checkpoint, stock):
    torch.manual_seed(3)
    wrapped = get_peft_model(MagnetLlamaForCausalLM.from_pretrained(checkpoint), lora()).eval()
    embedding = wrapped.encode(TEXTS)
    wrapped.set_adapter_modes(BOUND)
    assert torch.equal(wrapped(input_ids=IDS).logits, stock(IDS).logits)
    assert torch.equal(
        wrapped.generate(input_ids=IDS, max_new_tokens=4, do_sample=False, pad_token_id=2),
        stock.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=2),
    )
    np.testing.assert_array_equal(wrapped.encode(TEXTS), embedding)


@torch.no_grad()
def test_an_adapter_directory_keeps_everything(bound, checkpoint, stock, tmp_path):
    bound.config.magnet["prompts"]["query"] = "Find"
    folder = tmp_path / "adapter"
    bound.save_pretrained(folder)
    names = {file.name for file in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "magnet_adapter.json", "tokenizer.json"} <= names
    assert not names & {"config.json", "model.safetensors", "modeling_magnet.py"}
    assert (folder / "adapter_model.safetensors").stat().st_size < (checkpoint / "model.safetensors").stat().st_size
    loaded, info = MagnetLlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.magnet_settings == bound.magnet_settings
    assert loaded.config.magnet["adapter_modes"] == BOUND
    assert torch.equal(loaded(IDS).logits, stock(IDS).logits)
    np.testing.assert_array_equal(loaded.encode(TEXTS, prompt_name="query"), bound.encode(TEXTS, prompt_name="query"))
    by_hand = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    by_hand.load_adapter(str(folder))
    np.testing.assert_array_equal(by_hand.encode(TEXTS), bound.encode(TEXTS))
    assert torch.equal(by_hand(IDS).logits, stock(IDS).logits)
    loaded.save_pretrained(tmp_path / "again")
    for file in folder.iterdir():
        if file.is_file() and file.name not in ("tokenizer_config.json", "README.md"):  # the card has its name
            assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


@torch.no_grad()
def test_a_kept_head_travels_with_the_adapter(checkpoint, adapted, tmp_path):
    from modeling_magnet.pooling_magnet import ContrastiveHead

    adapted.sscl_head = ContrastiveHead(adapted.config.hidden_size)
    adapted.config.magnet["contrastive_head"] = "tanh"
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapter")
    np.testing.assert_array_equal(loaded.encode(TEXTS), adapted.encode(TEXTS))
    merged = tmp_path / "merged"
    adapted.save_pretrained(merged, merge_adapter=True)
    np.testing.assert_allclose(
        MagnetLlamaForCausalLM.from_pretrained(merged).encode(TEXTS), adapted.encode(TEXTS), atol=1e-5
    )


@torch.no_grad()
def test_an_adapter_saved_by_peft_loads(checkpoint, tmp_path):
    torch.manual_seed(3)
    wrapped = get_peft_model(MagnetLlamaForCausalLM.from_pretrained(checkpoint), lora()).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapter")
    np.testing.assert_array_equal(loaded.encode(TEXTS), wrapped.encode(TEXTS))
    inner = tmp_path / "inner"
    wrapped.get_base_model().save_pretrained(inner)
    again = PeftModel.from_pretrained(MagnetLlamaForCausalLM.from_pretrained(checkpoint), inner)
    np.testing.assert_array_equal(again.encode(TEXTS), wrapped.encode(TEXTS))


def test_an_adapter_of_another_base_raises(adapted, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    stored = json.loads((folder / "magnet_adapter.json").read_text())
    stored["base"]["hidden_size"] = 64
    (folder / "magnet_adapter.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="hidden_size 64 .this base has 32"):
        MagnetLlamaForCausalLM.from_pretrained(folder)
    (folder / "magnet_adapter.json").unlink()  # one of peft's own making
    config = copy.deepcopy(adapted.config)
    config.hidden_size = 64
    config.magnet["adapter_modes"] = None
    MagnetLlamaForCausalLM(config).save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="mismatched tensors"):
        MagnetLlamaForCausalLM.from_pretrained(folder)
    config.hidden_size, config.num_hidden_layers = 32, 2
    MagnetLlamaForCausalLM(config).save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="unexpected tensors"):
        MagnetLlamaForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": [["q_proj"]]}, r"cannot be read \(TypeError: unhashable type"),
        ({"megatron_config": {"a": 1}, "megatron_core": "theirs"}, "`megatron_config`"),
        (None, "cannot be read"),
    ],
    ids=["type", "module", "no JSON"],
)
def test_an_adapter_config_that_peft_cannot_use_raises(adapted, checkpoint, tmp_path, monkeypatch, changes, message):
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text("{" if changes is None else json.dumps({**json.loads(file.read_text()), **changes}))
    (tmp_path / "theirs.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    model = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match=rf"adapter.*{message}"):
        model.load_adapter(str(tmp_path / "adapter"))
    assert not getattr(model, "peft_config", None)


def test_invalid_adapter_weights_raise_and_leave_the_model_unchanged(adapted, checkpoint, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    model = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="adapter' cannot be read .SafetensorError"):
        model.load_adapter(str(tmp_path / "adapter"))
    assert not getattr(model, "peft_config", None)


def test_an_adapter_without_its_base_raises(adapted, tmp_path):
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for base, message in (
        (None, "names the base None"),
        (str(tmp_path / "gone"), "is an adapter, and its base cannot be read"),
        (str(folder), "has no readable config.json"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        with pytest.raises(ValueError, match=message):
            MagnetLlamaForCausalLM.from_pretrained(folder)


# ---- Several adapters, and what goes wrong behind the model's back ----


@torch.no_grad()
def test_two_adapters_can_be_loaded_side_by_side(checkpoint, tmp_path, stock):
    first, second = adapt(checkpoint, seed=1), adapt(checkpoint, seed=2)
    first.save_pretrained(tmp_path / "one")
    second.save_pretrained(tmp_path / "two")
    model = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "one")
    model.load_adapter(str(tmp_path / "two"), adapter_name="two")
    for name, single in (("default", first), ("two", second)):
        model.set_adapter(name)
        np.testing.assert_array_equal(model.encode(TEXTS), single.encode(TEXTS))
    model.set_adapter_modes(BOUND)
    assert torch.equal(model(IDS).logits, stock(IDS).logits)
    model.delete_adapter("two")
    model.set_adapter("default")
    assert torch.equal(model(IDS).logits, stock(IDS).logits)
    model.delete_adapter("default")
    assert not model.has_adapter and model.config.magnet["adapter_modes"] is None
    model.save_pretrained(tmp_path / "base again")
    assert torch.equal(MagnetLlamaForCausalLM.from_pretrained(tmp_path / "base again")(IDS).logits, stock(IDS).logits)


@torch.no_grad()
def test_an_adapter_that_is_added_later_is_bound_as_well(bound, stock):
    torch.manual_seed(4)
    bound.add_adapter(lora(target_modules=["v_proj"]), "second")
    bound.set_adapter("second")
    bound.eval()
    assert torch.equal(bound(IDS).logits, stock(IDS).logits)


@torch.no_grad()
def test_changes_made_through_peft_raise(checkpoint):
    torch.manual_seed(3)
    wrapped = get_peft_model(MagnetLlamaForCausalLM.from_pretrained(checkpoint), lora()).eval()
    wrapped.set_adapter_modes(BOUND)
    wrapped(input_ids=IDS)
    wrapped.add_adapter("second", lora(target_modules=["v_proj"]))
    wrapped.set_adapter("second")
    with pytest.raises(ValueError, match="some adapter layer has no hook"):
        wrapped(input_ids=IDS)
    wrapped.set_adapter_modes(BOUND)
    wrapped(input_ids=IDS)
    merged = wrapped.merge_and_unload()
    with pytest.raises(ValueError, match="the adapter was merged"):
        merged(IDS)
    merged.set_adapter_modes(None)
    merged(IDS)


def test_an_adapter_that_fails_to_load_leaves_the_model_as_it_was(checkpoint, tmp_path, stock):
    from safetensors.torch import load_file, save_file

    adapt(checkpoint).save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    model = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    for _ in range(2):
        with pytest.raises(ValueError, match="missing tensors"):
            model.load_adapter(str(tmp_path / "adapter"))
        assert not model.has_adapter
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, stock(IDS).logits)


@pytest.mark.parametrize(
    "changes", [{"use_dora": True}, {"trainable_token_indices": [40, 41]}], ids=["dora", "tokens"]
)
@torch.no_grad()
def test_adapter_types_with_names_only_peft_knows_survive_a_round_trip(checkpoint, tmp_path, changes):
    model = adapt(checkpoint, **changes)
    for name, parameter in model.named_parameters():
        if "trainable_tokens" in name or "magnitude" in name:
            parameter.mul_(1.3)
    model.save_pretrained(tmp_path / "adapter")
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapter")
    np.testing.assert_array_equal(loaded.encode(TEXTS), model.encode(TEXTS))


@torch.no_grad()
def test_an_adapter_remembers_which_files_its_base_is(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "many")
    tiny_model.lm_head.weight.mul_(-1)
    tiny_model.model.embed_tokens.weight.mul_(2)
    tiny_model.save_pretrained(tmp_path / "many" / "inner")
    model = add_lora(MagnetLlamaForCausalLM.from_pretrained(tmp_path / "many", subfolder="inner"))
    model.save_pretrained(tmp_path / "adapter")
    loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapter")
    np.testing.assert_array_equal(loaded.encode(TEXTS), model.encode(TEXTS))


@torch.no_grad()
def test_adapter_modes_survive_every_way_of_loading(bound, checkpoint, stock, tmp_path):
    from transformers import AutoConfig

    bound.save_pretrained(tmp_path / "adapter")
    given = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapter", config=AutoConfig.from_pretrained(checkpoint))
    beside = tmp_path / "beside"
    MagnetLlamaForCausalLM.from_pretrained(checkpoint).save_pretrained(beside)
    for name in ("adapter_config.json", "adapter_model.safetensors", "magnet_adapter.json"):
        (beside / name).write_bytes((tmp_path / "adapter" / name).read_bytes())
    for model in (given, MagnetLlamaForCausalLM.from_pretrained(beside)):
        assert model.config.magnet["adapter_modes"] == BOUND
        assert torch.equal(model(IDS).logits, stock(IDS).logits)
        np.testing.assert_array_equal(model.encode(TEXTS), bound.encode(TEXTS))


@torch.no_grad()
def test_a_nested_call_of_another_model_is_independent(bound, checkpoint):
    """A base-only call of one model does not affect another model that is called within it."""
    other = adapt(checkpoint, seed=8)
    other.set_adapter_modes(BOUND)
    for modes in (BOUND, None, ["causal"]):
        other.set_adapter_modes(modes)
        expected, seen = (other.encode(TEXTS), other(IDS).logits), []
        handle = bound.model.layers[1].register_forward_hook(
            lambda *_: seen.append((other.encode(TEXTS), other(IDS).logits))  # noqa: B023
        )
        bound(IDS)
        handle.remove()
        [(embedding, logits)] = seen
        np.testing.assert_array_equal(embedding, expected[0])
        assert torch.equal(logits, expected[1])


def test_adapter_weights_load_from_memory(tiny_model):
    other = MagnetLlamaForCausalLM.from_pretrained(None, config=tiny_model.config, state_dict=tiny_model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(IDS).logits, tiny_model(IDS).logits)


def test_unexpected_weights_warn(checkpoint):
    values = json.loads((checkpoint / "config.json").read_text())
    values["num_hidden_layers"] = 2
    (checkpoint / "config.json").write_text(json.dumps(values))
    with pytest.warns(UserWarning, match=r"that the model does not use.*'model.layers.2"):
        MagnetLlamaForCausalLM.from_pretrained(checkpoint)


def test_sentence_transformers_refuses_an_adapter_that_is_off_where_it_encodes(adapted, tmp_path):
    from sentence_transformers import SentenceTransformer

    for modes, opens in ((["infill"], False), (BOUND, True)):
        adapted.set_adapter_modes(modes)
        folder = tmp_path / modes[0]
        adapted.save_pretrained(folder)
        if opens:
            vectors = SentenceTransformer(str(folder)).encode(TEXTS)
            np.testing.assert_allclose(vectors, adapted.encode(TEXTS), atol=1e-5)
        else:
            with pytest.raises(ValueError, match="merge_this_adapter_first"):
                SentenceTransformer(str(folder))


def test_an_adapter_over_a_vocabulary_resized_in_memory_is_saved_merged(checkpoint, tmp_path):
    model = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    model.tokenizer.add_tokens(["<magnet>", "<needle>"])
    with pytest.raises(ValueError, match="302 tokens.*300.*resize_token_embeddings"):
        model.encode("A cat.")
    model.resize_token_embeddings(len(model.tokenizer))
    model.add_adapter(lora())
    with pytest.raises(ValueError, match="300 to 302 tokens.*merge_adapter=True"):
        model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    model.eval().save_pretrained(tmp_path / "merged", merge_adapter=True)
    merged = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = model.tokenizer("A <magnet> and a <needle>", return_tensors="pt")["input_ids"]
    assert int(ids.max()) == 301
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, model(ids).logits, atol=1e-4)


@torch.no_grad()
def test_an_adapter_is_saved_in_the_requested_dtype(checkpoint, tmp_path):
    model = adapt(checkpoint)
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        place = tmp_path / str(dtype)
        model.save_pretrained(place, dtype=None if dtype == torch.float32 else dtype)
        sizes[dtype] = sum(tensor.nbytes for tensor in load_tensors(place).values())
        assert {tensor.dtype for tensor in load_tensors(place).values()} == {dtype}
    assert sizes[torch.float32] == 2 * sizes[torch.bfloat16]
    again = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "torch.bfloat16").eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # rounds the weights of both
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def load_tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")
