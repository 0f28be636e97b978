"""Test that `adapt.py` accepts each recipe, and that recipes contain the published values."""

import json
from pathlib import Path
from typing import Any

import pytest

from examples.adapt import check_arguments, parse_arguments

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "configs"

# Khosla et al. 2025, section 4 and appendix.
PAPER = {
    "model_name_or_path": "meta-llama/Llama-2-7b-hf",
    "train_texts": ["Salesforce/wikitext"],
    "dataset_config": "wikitext-103-raw-v1",
    "loss_phases": ["3400: mntp=1 msg=1", "800: mntp=1 sscl=9 msg=1"],
    "max_steps": 4200,
    "per_device_train_batch_size": 32,
    "max_length": 512,
    "mask_ratio": 0.2,
    "mask_token_share": 0.8,
    "random_token_share": 0.1,
    "max_spans": 2,
    "min_span_tokens": 4,
    "max_span_tokens": 128,
    "pairs": "paraphrase",
    "pair_min_words": 21,
    "contrastive_batch_size": 64,
    "contrastive_max_length": 128,
    "temperature": 0.1,
    "lora_r": 16,
    "lora_alpha": 32,
    "learning_rate": 3e-5,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "bf16": True,
    "attn_implementation": "sdpa",
}

EXPLAINED = ("gemma3_270m_cpu", "llama2_7b_paper", "llm2vec_mntp", "llm2vec_simcse")


def read(name: str, output_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON object and the resulting arguments, on a machine without a GPU."""
    options = [str(CONFIGS / f"{name}.json"), f"--output_dir={output_dir}", "--use_cpu"]
    adapt, lora, training = parse_arguments(options)
    check_arguments(adapt, lora, training)
    values = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return values, {**vars(training), **vars(lora), **vars(adapt)}


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.json")))
def test_recipe_values_reach_the_arguments(name, tmp_path):
    values, arguments = read(name, tmp_path)
    for key, value in values.items():
        if not key.startswith("_") and key not in ("output_dir", "report_to", "use_cpu"):
            assert arguments[key] == value, key


def test_recipe_of_the_paper_has_its_values(tmp_path):
    _, arguments = read("llama2_7b_paper", tmp_path)
    assert {key: arguments[key] for key in PAPER} == PAPER


@pytest.mark.parametrize("name", EXPLAINED)
def test_recipe_values_have_a_source_or_a_reason(name):
    values = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    settings = {key for key in values if not key.startswith("_")}
    assert set(values["_sources"]) - {"paper"} == settings


def test_argument_defaults_equal_the_recipe_of_the_paper(tmp_path):
    _, recipe = read("llama2_7b_paper", tmp_path)
    _, _, plain = parse_arguments(
        ["--model_name_or_path=m", "--train_texts=t", f"--output_dir={tmp_path}", "--use_cpu"]
    )
    for name in ("loss_phases", "mask_ratio", "max_spans", "temperature", "contrastive_prompt", "learning_rate"):
        assert getattr(plain, name) == recipe[name]


def test_second_llm2vec_stage_starts_from_the_first():
    first, second = (json.loads((CONFIGS / f"llm2vec_{stage}.json").read_text()) for stage in ("mntp", "simcse"))
    assert second["model_name_or_path"] == first["output_dir"]
