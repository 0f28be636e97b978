"""Test `examples/adapt.py` from its command line to the saved checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, LlamaForCausalLM

from examples import adapt
from examples.adapt import parse_arguments
from examples.command_line import start
from modeling_magnet.configuration_magnet import PAPER_PROMPTS

from ..trainer.tiny_t5 import save_tiny_t5

REPOSITORY = Path(__file__).resolve().parents[2]
FULL, LORA = ["--lora_r=0"], ["--lora_r=2", "--lora_dropout=0.1"]


# ---- What a run holds ----


@pytest.mark.parametrize(
    "stored, given, held",
    [
        (torch.bfloat16, ["--bf16=true"], torch.bfloat16),
        (torch.bfloat16, ["--bf16=true", "--dtype=float32"], torch.float32),
        (torch.bfloat16, ["--bf16=true", "--lora_r=0"], torch.float32),
        (torch.bfloat16, [], torch.float32),
        (torch.float32, ["--bf16=true"], torch.float32),
        (torch.float32, ["--dtype=bfloat16"], torch.bfloat16),
    ],
)
def test_bf16_run_keeps_frozen_weights_as_stored_and_adapters_in_float32(plain_llama, options, stored, given, held):
    LlamaForCausalLM.from_pretrained(plain_llama).to(stored).save_pretrained(plain_llama)
    arguments, lora, training = parse_arguments([*options, *given])
    arguments, tokenizer = adapt.inspect_model(arguments, lora, training)
    model = adapt.build_trainer(arguments, lora, training, tokenizer).model
    dtypes = {"lora_" in name: weight.dtype for name, weight in model.named_parameters() if "layers" in name}
    assert dtypes[False] == held
    assert dtypes.get(True, torch.float32) == torch.float32


# ---- What a run leaves ----


@pytest.mark.parametrize("training", [FULL, LORA], ids=["full", "lora"])
def test_run_saves_one_checkpoint_that_encodes_infills_and_loads_as_llama(tmp_path, options, training, capsys):
    adapt.main([*options, *training])
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"adapt: OK ({tmp_path / 'run'}; ")

    model = AutoModel.from_pretrained(tmp_path / "run", trust_remote_code=True)
    assert model.encode(["the cat sat", "a dog ran"]).shape == (2, 16)
    assert isinstance(model.infill("the cat ", " by the river", max_new_tokens=3), str)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert type(stock) is LlamaForCausalLM
    base = load_file(tmp_path / "base" / "model.safetensors")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert weights.keys() == base.keys()
    changed = {name for name, weight in weights.items() if not torch.equal(weight, base[name])}
    linear = {name for name in base if "_proj" in name}
    assert changed == (set(base) if training is FULL else linear)


def test_report_contains_metrics_of_all_stages(tmp_path, options):
    adapt.main([*options, *FULL, "--eval_strategy=steps", "--eval_steps=4"])
    report = json.loads((tmp_path / "run" / "adapt.json").read_text())
    measured = {log["step"]: log for log in report["log_history"] if "eval_infilling_perplexity" in log}
    assert sorted(measured) == [0, 4, 6]
    assert measured[6]["eval_loss_mntp"] < measured[0]["eval_loss_mntp"]
    assert [log["step"] for log in report["log_history"] if "loss_sscl" in log] == [6]
    assert report["arguments"]["max_length"] == 64
    assert report["arguments"]["learning_rate"] == 1e-3
    assert report["pairs"] == 40


@pytest.mark.parametrize(
    ("prompt", "stored", "default"),
    [("Represent this", "Represent this: ", "sentence"), ("", "Given the sentence, find its representation: ", None)],
)
def test_training_prompt_becomes_default_prompt_of_encode(tmp_path, options, prompt, stored, default):
    adapt.main([*options, *FULL, f"--contrastive_prompt={prompt}"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["magnet"]["prompts"] == {**PAPER_PROMPTS, "sentence": stored}
    assert config["magnet"]["default_prompt_name"] == default
    sidecar = json.loads((tmp_path / "run" / "config_sentence_transformers.json").read_text())
    assert (sidecar["prompts"]["sentence"], sidecar["default_prompt_name"]) == (stored, default)
    assert sidecar["prompts"]["query"] == (stored if default else "")


def test_pairs_load_from_two_columns_of_a_file(tmp_path, options):
    pairs = tmp_path / "pairs.tsv"
    rows = [f"{n % 2}\tthe {n} cats sat\tthere were {n} cats\n" for n in range(10)]
    pairs.write_text("label\tfirst\tsecond\n" + "".join(rows))
    columns = ["--pair_columns", "first", "second", "label"]
    assert adapt.main([*options, *FULL, f"--pairs={pairs}", *columns, "--view_dropout=0"])["pairs"] == 5


@pytest.fixture
def paraphraser(tmp_path) -> str:
    return save_tiny_t5(tmp_path / "t5")


def test_paraphrased_pairs_are_saved_beside_the_checkpoint(tmp_path, options, paraphraser):
    changes = ["--pairs=paraphrase", "--view_dropout=0", f"--paraphraser={paraphraser}", "--pair_limit=6"]
    report = adapt.main([*options, *FULL, *changes])
    rows = [json.loads(line) for line in (tmp_path / "run" / "paraphrases.jsonl").read_text().splitlines()]
    assert len(rows) == report["pairs"] == 6
    assert all(len(row["anchor"].split()) > 20 for row in rows)


# ---- Interruption ----


def test_run_killed_in_its_first_checkpoint_restarts_from_scratch(tmp_path, options):
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-2" / "model.safetensors").write_bytes(b"half of")
    with pytest.raises(ValueError, match="no complete checkpoint .*`resume_from"):
        adapt.main([*options, *FULL, "--resume_from_checkpoint=true"])
    adapt.main([*options, *FULL])
    assert (tmp_path / "run" / "adapt.json").exists()


# ---- Bad input: one clear error, and nothing written ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--min_span_tokens=70", "--max_span_tokens=80"], "`min_span_tokens` is 70.*`train_dataset`"),
        (["--view_dropout=0"], "both embeddings would be equal"),
        (["--pair_columns", "a"], "name two columns"),
        (["--save_strategy=never"], "--save_strategy.*invalid choice: 'never'"),
        (["--pairs=paraphrase", "--paraphraser=nowhere", "--contrastive_batch_size=64"], "40 pairs, but one .* 64"),
        (["--dtype=int8"], "--dtype: invalid choice: 'int8'"),
        (["--attn_implementation=flash_attention_2"], "invalid choice.*sdpa"),
        (["--adapter_modes", "infil"], "--adapter_modes.*invalid choice: 'infil'"),
        (["--lora_r=0", "--adapter_modes", "infill"], "`lora_r` is 0"),
        (["--push_to_hub=true"], "without `hub_model_id`"),
        (["--attn_implementation=flex_attention"], "no backward pass on the CPU"),
        (["--max_length=512"], "`max_length` is 512.*256"),
        (["--train_texts=nowhere.txt"], "nowhere.txt.*no data file found"),
        (["--model_name_or_path=./nowhere"], "./nowhere.*cannot be read"),
        (["--eval_limit=0"], "`eval_limit` is 0"),
        (["--resume_from_checkpoint=true"], "no complete checkpoint"),
        (["--resume_from_checkpoint=elsewhere"], "'elsewhere', which is not a folder"),
        (["--lora_r=-1"], "`lora_r` is -1"),
        (["--no_such_option=1"], "no_such_option"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_bad_input_raises_value_error_and_writes_nothing(tmp_path, options, changes, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        adapt.main([*options, *changes])
    assert not (tmp_path / "run").exists()


def test_unsupported_model_is_refused_before_weights_are_read(tmp_path, options):
    BertConfig().save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="a model of type 'bert'"):
        adapt.main(options)
    assert not (tmp_path / "run").exists()


def test_options_after_a_recipe_override_it(tmp_path):
    recipe = {"_note": 1, "model_name_or_path": "m", "train_texts": ["a", "b"], "output_dir": "o", "use_cpu": True}
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe, "contrastive_prompt": "", "eval_texts": None}))
    arguments, _, training = adapt.parse_arguments([str(tmp_path / "recipe.json"), "--train_texts", "c"])
    assert arguments.train_texts == ["c"]
    assert arguments.eval_texts is None
    assert (training.contrastive_prompt, training.use_cpu, training.output_dir) == ("", True, "o")


# ---- As a script ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--learning_rate=abc"], "error: argument --learning_rate/--learning-rate: invalid float value: 'abc'\n"),
        (["--loss_phases", "4:0,0,0"], "error: The training arguments cannot be used:\n- The loss phases"),
        (["--view_dropout=0", "--push_to_hub=true"], "\n- `pairs` is dropout and `view_dropout`"),
        (["--contrastive_batch_size=64"], "error: This run cannot work:\n- `pair_dataset` has 40 pairs"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_invalid_arguments_print_one_message_and_exit_with_2(options, changes, message, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        start(lambda: adapt.main([*options, *changes]), reported=adapt.ArgumentError)
    said = capsys.readouterr().err
    assert message in said and said.count("error: ") == 1
    assert "Traceback" not in said and "usage:" not in said


@pytest.mark.long
def test_ordinary_run_emits_no_warnings(options):
    given = [option for option in options if option != "--use_cpu"]
    command = [sys.executable, str(REPOSITORY / "examples" / "adapt.py"), *given, *LORA]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for words in ("is_gradient_checkpointing", "pin_memory", "Failed to load", "_pytree", "Warning", "WARNING"):
        assert words not in run.stdout + run.stderr, run.stderr


# ---- Checkpoints of a finished run ----


def test_finished_run_removes_its_checkpoints_and_is_never_overwritten(tmp_path, options):
    saving = [*options, *FULL, "--save_strategy=steps", "--save_steps=2"]
    adapt.main(saving)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    kept = tmp_path / "kept"
    adapt.main([*saving, f"--output_dir={kept}", "--keep_checkpoints"])
    assert sorted(path.name for path in kept.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    weights = kept / "model.safetensors"
    assert weights.read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()
    before = weights.stat().st_mtime_ns
    for more in ([], ["--resume_from_checkpoint=true"]):
        with pytest.raises(ValueError, match="finished run"):
            adapt.main([*saving, f"--output_dir={kept}", *more])
    assert weights.stat().st_mtime_ns == before


def test_checkpoints_are_kept_if_the_result_cannot_be_saved(tmp_path, options, monkeypatch):
    saving = [*options, *FULL, "--save_strategy=steps", "--save_steps=2"]

    def fail(*args, **kwargs):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(adapt, "save_and_push", fail)
        with pytest.raises(OSError, match="no space left"):
            adapt.main(saving)
    assert (tmp_path / "run" / "checkpoint-6").is_dir()
    with pytest.raises(ValueError, match="checkpoints.*`--resume_from_checkpoint true`"):
        adapt.main(saving)
    adapt.main([*saving, "--resume_from_checkpoint=true"])
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert not list((tmp_path / "run").glob("checkpoint-*"))
