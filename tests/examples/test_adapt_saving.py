"""Test what `adapt.py` saves and pushes: a merged model or an adapter, with the card of the run."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from examples import adapt
from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.publishing.card import rename_card
from modeling_magnet.publishing.merging import largest_differences
from tests.hub_client import run_client
from tests.hub_server import HubServer

IDS = torch.tensor([[1, 40, 41, 42]])
LORA = ["--lora_r=2", "--learning_rate=1e-2"]


@pytest.fixture
def plain_llama(plain_llama):
    """Add a card."""
    (plain_llama / "README.md").write_text("---\nlicense: llama2\nlanguage: en\n---\n\n# Its own card\n")
    return plain_llama


def test_bound_adapter_leaves_generation_to_the_base(tmp_path, options):
    """Compare a merged and an unmerged run: equal embeddings; with a bound adapter, generation equals the base."""
    adapt.main([*options, *LORA])
    merged = AutoMagnetForCausalLM.from_pretrained(tmp_path / "run")
    bound_options = [option.replace("/run", "/bound") for option in options]
    adapt.main([*bound_options, *LORA, "--adapter_modes", "bidirectional", "infill"])
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


def test_card_describes_the_run(tmp_path, options):
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
    assert card.data.base_model is None and "adapted from `base`" in card.text
    loaded = AutoMagnetForCausalLM.from_pretrained(tmp_path / "run")
    loaded.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == rename_card(
        (tmp_path / "run" / "README.md").read_text(), "copy"
    )


@pytest.mark.long
def test_adapter_is_merged_before_further_training(tmp_path, options):
    adapt.main([*options, *LORA, "--adapter_modes", "causal", "bidirectional", "infill"])
    again = [*options, *LORA, f"--output_dir={tmp_path / 'again'}"]  # the last value of an option counts
    for training in ([], ["--lora_r=0"]):
        with pytest.raises(ValueError, match=r"already has an adapter[\s\S]* Merge it first"):
            adapt.main([*again, f"--model_name_or_path={tmp_path / 'run'}", *training])
    AutoMagnetForCausalLM.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "merged", merge_adapter=True)
    adapt.main([*again, f"--model_name_or_path={tmp_path / 'merged'}"])
    assert (tmp_path / "again" / "config.json").is_file()


def run_and_push(*options):
    """Run `adapt.py` as a user does and return what it printed about the push."""
    adapt.main(list(options))
    return "done"


@pytest.mark.long
def test_run_can_push_to_the_hub(tmp_path, options):
    with HubServer({"hf_owner": "me"}) as hub:
        pushed = [*options, *LORA, "--push_to_hub=true", "--hub_model_id=me/mine", "--hub_private_repo=true"]
        run_client(run_and_push, *pushed, "--save_steps=2", hub=hub, home=tmp_path / "home", token="hf_owner")
        titles = [commit.title for commit in hub.commits("me/mine")]
        assert titles[0] == "Upload model" and len(titles) <= 2, "the result alone, not the checkpoints on the way"
        files = hub.files("me/mine")
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert ModelCard(files["README.md"].decode()).data.model_name == "me/mine"
