"""What a run of `adapt.py` saves and pushes: merged or as an adapter, with a card of its facts."""

import json
import lzma

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM

from examples import adapt
from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.publishing.card import rename_card
from modeling_magnet.publishing.merging import largest_differences
from tests.hub_client import run_client
from tests.hub_server import HubServer

from .tiny_run import save_plain_llama, tiny_options

IDS = torch.tensor([[1, 40, 41, 42]])
LORA = ["--lora_r=2", "--learning_rate=1e-2"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No cached data set of another test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def options(tmp_path, tiny_tokenizer):
    base = save_plain_llama(tmp_path / "base", tiny_tokenizer)
    (base / "README.md").write_text("---\nlicense: llama2\nlanguage: en\n---\n\n# Its own card\n")
    return tiny_options(tmp_path, model=base)


def test_an_adapter_alone_leaves_generation_to_the_base(tmp_path, options):
    """The same run merged and unmerged: the same embeddings; generation is the base's where the adapter is bound."""
    adapt.main([*options, *LORA])
    merged = AutoMagnetForCausalLM.from_pretrained(tmp_path / "run")
    bound_options = [option.replace("/run", "/bound") for option in options]
    adapt.main([*bound_options, *LORA, "--merge_adapter=false", "--adapter_modes", "bidirectional", "infill"])
    names = {file.name for file in (tmp_path / "bound").iterdir()}
    assert {"adapter_model.safetensors", "magnet_adapter.json", "adapt.json"} <= names and "config.json" not in names
    bound = AutoMagnetForCausalLM.from_pretrained(tmp_path / "bound")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        assert torch.equal(bound(IDS).logits, base(IDS).logits)
        assert not torch.equal(merged(IDS).logits, base(IDS).logits)
    differences = largest_differences(merged, bound)
    assert differences.pop("logits, causal") > 1e-3
    assert max(differences.values()) < 1e-4
    log = json.loads((tmp_path / "bound" / "adapt.json").read_text())["log_history"]
    causal = [entry["eval_causal_perplexity"] for entry in log if "eval_causal_perplexity" in entry]
    infilling = [entry["eval_infilling_perplexity"] for entry in log if "eval_infilling_perplexity" in entry]
    assert causal[0] == causal[-1] and infilling[0] != infilling[-1], "evaluations see what is saved"
    text = (tmp_path / "bound" / "README.md").read_text()
    assert "on in bidirectional and infill mode" in text and "rank 2, alpha 32" in text


def test_the_card_tells_the_run(tmp_path, options):
    adapt.main([*options, *LORA])
    card = ModelCard((tmp_path / "run" / "README.md").read_text())
    report = json.loads((tmp_path / "run" / "adapt.json").read_text())
    last = [log for log in report["log_history"] if "eval_loss" in log][-1]
    measured = {result.metric_name.split(" (before")[0]: result.metric_value for result in card.data.eval_results}
    assert measured["infilling perplexity, span tokens from both sides"] == last["eval_infilling_perplexity"]
    assert len(measured) == 4 and {result.dataset_name for result in card.data.eval_results} == {"held_out.jsonl.xz"}
    assert card.data.license == "llama2" and card.data.language == ["en"]
    assert "| training data | train.jsonl.xz |" in card.text and "| loss_phases | 4:1,0,1 2:1,9,1 |" in card.text
    assert "(before: " in card.text and str(tmp_path) not in card.content
    loaded = AutoMagnetForCausalLM.from_pretrained(tmp_path / "run")
    loaded.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == rename_card(
        (tmp_path / "run" / "README.md").read_text(), "copy"
    )


def test_checkpoints_of_a_lora_run_are_adapters_of_ours(tmp_path, options):
    given = [*options, *LORA, "--save_strategy=steps", "--save_steps=4", "--keep_checkpoints"]
    adapt.main([option for option in given if option != "--save_strategy=no"])
    folder = tmp_path / "run" / "checkpoint-4"
    assert (folder / "magnet_adapter.json").is_file()
    loaded = AutoMagnetForCausalLM.from_pretrained(folder)
    plain = AutoMagnetForCausalLM.from_pretrained(tmp_path / "base")
    wrapped = PeftModel.from_pretrained(AutoMagnetForCausalLM.from_pretrained(tmp_path / "base"), folder).eval()
    np.testing.assert_array_equal(loaded.encode(["the cat"], prompt=""), wrapped.encode(["the cat"], prompt=""))
    assert not np.array_equal(loaded.encode(["the cat"], prompt=""), plain.encode(["the cat"], prompt=""))


UNMERGED = [*LORA, "--merge_adapter=false"]


@pytest.mark.long
def test_the_cost_of_an_adapter_is_measured_on_what_the_run_read(tmp_path, options, capsys):
    """A column of another name, and texts of many tokens before a small context."""
    rows = [json.loads(line) for line in lzma.decompress((tmp_path / "train.jsonl.xz").read_bytes()).splitlines()]
    long = [" ".join(row["text"] for row in rows[start : start + 8]) for start in range(8)]
    for name in ("train", "held_out"):
        lines = "".join(json.dumps({"body": text}) + "\n" for text in long)
        (tmp_path / f"{name}.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    given = ["--text_column=body", "--max_length=256", "--per_device_train_batch_size=2"]
    adapt.main([*options, *UNMERGED, *given])
    assert "Unmerged, the adapter costs time: `encode` " in (tmp_path / "run" / "README.md").read_text()
    assert "warning" not in capsys.readouterr().out


def test_a_cost_that_cannot_be_measured_is_a_warning(tmp_path, options, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(adapt, "adapter_cost", fail)
    adapt.main([*options, *UNMERGED])
    assert (
        "warning: the cost of the adapter was not measured (RuntimeError('out of memory'))" in capsys.readouterr().out
    )
    assert {"adapter_model.safetensors", "adapt.json"} <= {file.name for file in (tmp_path / "run").iterdir()}
    assert "costs time" not in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    "card",
    [b"---\na: [\n---\n", b"---\n1: x\nlanguage: 5\n---\n", b"---\nlanguage: 5\nlicense: [a]\n---\n", b"\xff\xfe"],
    ids=["broken", "numbers", "other types", "no text"],
)
def test_a_broken_card_of_the_base_does_not_end_a_run(tmp_path, options, card):
    (tmp_path / "base" / "README.md").write_bytes(card)
    adapt.main([*options, *LORA])
    assert {"model.safetensors", "adapt.json", "README.md"} <= {file.name for file in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--use_lora=false", "--merge_adapter=false"], "`use_lora` is false"),
        (["--adapter_modes", "infill"], "`adapter_modes` is for an unmerged adapter"),
        (["--merge_adapter=false", "--adapter_modes", "infil"], r"`adapter_modes` is \['infil'\]"),
        (["--push_to_hub=true"], "no `hub_model_id` says where to"),
    ],
)
def test_contradictions_are_refused_before_anything_is_read(options, given, message):
    with pytest.raises(ValueError, match=message):
        adapt.main([*options, *given])


@pytest.mark.long
def test_an_adapter_is_merged_before_it_is_trained_further(tmp_path, options):
    adapt.main([*options, *LORA, "--merge_adapter=false"])
    again = [*options, *LORA, f"--output_dir={tmp_path / 'again'}"]  # the last of an option counts
    for training in ([], ["--use_lora=false"]):
        with pytest.raises(ValueError, match=r"has an adapter already[\s\S]* Merge it first"):
            adapt.main([*again, f"--model_name_or_path={tmp_path / 'run'}", *training])
    AutoMagnetForCausalLM.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "merged", merge_adapter=True)
    adapt.main([*again, f"--model_name_or_path={tmp_path / 'merged'}"])
    assert (tmp_path / "again" / "config.json").is_file()


def run_and_push(*options):
    """A run as its user starts it, and what it printed of its push."""
    adapt.main(list(options))
    return "done"


@pytest.mark.long
def test_a_run_can_end_on_the_hub(tmp_path, options):
    with HubServer({"hf_owner": "me"}) as hub:
        pushed = [*options, *LORA, "--push_to_hub=true", "--hub_model_id=me/mine", "--hub_private_repo=true"]
        run_client(run_and_push, *pushed, "--save_steps=2", hub=hub, home=tmp_path / "home", token="hf_owner")
        titles = [commit.title for commit in hub.commits("me/mine")]
        assert titles[0] == "Upload model" and len(titles) <= 2, "the result alone, not the checkpoints on the way"
        files = hub.files("me/mine")
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert ModelCard(files["README.md"].decode()).data.model_name == "me/mine"


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("train*.xz", "2 files: train.jsonl.xz, train2.jsonl.xz"),
        ("data", "2 files: a.jsonl.xz, b.jsonl.xz"),
        ("train.jsonl.xz", "train.jsonl.xz"),
    ],
    ids=["glob", "folder", "file"],
)
def test_the_card_names_the_files_of_the_training_data(tmp_path, options, named, told):
    content = (tmp_path / "train.jsonl.xz").read_bytes()
    (tmp_path / "data").mkdir()
    for name in ("train2.jsonl.xz", "data/a.jsonl.xz", "data/b.jsonl.xz"):
        (tmp_path / name).write_bytes(content)
    adapt.main([*options, *LORA, f"--train_texts={tmp_path / named}"])
    text = (tmp_path / "run" / "README.md").read_text()
    assert f"| training data | {told} |" in text and "*" not in told and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("config", "card", "found"),
    [
        ({"_name_or_path": "google/gemma-3-270m"}, "", "google/gemma-3-270m"),
        ({}, "base_model: meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b"),
        ({}, "base_model:\n- meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b"),
        ({"_name_or_path": "outputs/mine"}, "", None),
        ({"_name_or_path": "/home/me/model"}, "base_model:\n- a/b\n- c/d", None),
        ({"_name_or_path": 3}, "base_model: 3", None),
    ],
    ids=["config", "card", "card-list", "path", "merge", "broken"],
)
def test_the_card_names_the_base_of_a_local_directory(tmp_path, options, config, card, found):
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    (tmp_path / "base" / "README.md").write_text(f"---\nlicense: llama2\n{card}\n---\n")
    adapt.main([*options, *LORA])
    written = ModelCard((tmp_path / "run" / "README.md").read_text())
    assert written.data.base_model == found
    assert f"adapted from `{found or 'base'}`" in written.text
    told = f"| base model | base, a directory whose files name {found} |"
    assert (told in written.text) == (found is not None)
    assert str(tmp_path) not in written.content
