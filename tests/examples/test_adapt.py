"""Test `examples/adapt.py` from its command line to the saved checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from examples import adapt
from examples.adapt import parse_arguments
from examples.command_line import start
from modeling_magnet.tokenization_magnet import PAPER_PROMPTS

from .tiny_run import save_plain_llama, tiny_options

REPOSITORY = Path(__file__).resolve().parents[2]
FULL, LORA = ["--lora_r=0"], ["--lora_r=2", "--lora_dropout=0.1"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Isolate the data set cache of each test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def plain_llama(tmp_path, tiny_tokenizer) -> Path:
    return save_plain_llama(tmp_path / "base", tiny_tokenizer)


@pytest.fixture
def options(tmp_path, plain_llama) -> list[str]:
    return tiny_options(tmp_path, model=plain_llama)


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
    model = adapt.build_trainer(*parse_arguments([*options, *given])).model
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
def paraphraser(tmp_path, tiny_tokenizer) -> Path:
    """Return a random T5 that reads and writes the tokens of the tiny Llama."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tiny_tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    model = T5ForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = tiny_tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "t5")
    tiny_tokenizer.save_pretrained(str(tmp_path / "t5"))
    return tmp_path / "t5"


def test_paraphrased_pairs_are_saved_beside_the_checkpoint(tmp_path, options, paraphraser):
    changes = ["--pairs=paraphrase", "--view_dropout=0", f"--paraphraser={paraphraser}", "--pair_limit=6"]
    report = adapt.main([*options, *FULL, *changes])
    rows = [json.loads(line) for line in (tmp_path / "run" / "paraphrases.jsonl").read_text().splitlines()]
    assert len(rows) == report["pairs"] == 6
    assert all(len(row["anchor"].split()) > 20 for row in rows)


def test_invalid_options_are_refused_before_paraphrasing(tmp_path, options):
    with pytest.raises(ValueError, match="40 pairs, but one contrastive batch takes 64"):
        adapt.main([*options, "--pairs=paraphrase", "--paraphraser=nowhere", "--contrastive_batch_size=64"])
    assert not (tmp_path / "run").exists()


# ---- Interruption ----


@pytest.mark.parametrize(
    "training",
    [pytest.param(FULL, id="full", marks=pytest.mark.nightly), pytest.param(LORA, id="lora", marks=pytest.mark.long)],
)
def test_resumed_run_ends_with_identical_bytes(tmp_path, options, training):
    options = [*options, *training, "--save_strategy=steps", "--save_steps=6", "--save_total_limit=3"]
    options += ["--loss_phases", "10:1,0,1", "80:1,9,1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    adapt.main([*options, f"--output_dir={whole}"])

    command = [sys.executable, str(REPOSITORY / "examples" / "adapt.py"), *options, f"--output_dir={killed}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (killed / "checkpoint-18" / "trainer_state.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "adapt.json").exists()

    with pytest.raises(ValueError, match="holds checkpoints of a run. Pass `--resume_from_checkpoint true`"):
        adapt.main([*options, f"--output_dir={killed}"])
    adapt.main([*options, f"--output_dir={killed}", "--resume_from_checkpoint=true"])
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    losses = [
        [
            (log["step"], log["loss"])
            for log in json.loads((run / "adapt.json").read_text())["log_history"]
            if "loss" in log
        ]
        for run in (whole, killed)
    ]
    assert losses[0] == losses[1]
    # The whole curve, including the steps before the interruption, is written with the same bytes.
    pictures = [(run / "curves.png").read_bytes() for run in (whole, killed)]
    assert pictures[0].startswith(b"\x89PNG") and pictures[0] == pictures[1]


def test_run_killed_in_its_first_checkpoint_restarts_from_scratch(tmp_path, options):
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-2" / "model.safetensors").write_bytes(b"half of")
    with pytest.raises(ValueError, match="has no complete checkpoint .*`resume_from_checkpoint`"):
        adapt.main([*options, *FULL, "--resume_from_checkpoint=true"])
    adapt.main([*options, *FULL])
    assert (tmp_path / "run" / "adapt.json").exists()


def test_finished_run_is_never_overwritten(tmp_path, options):
    adapt.main([*options, *FULL])
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    for more in ([], ["--resume_from_checkpoint=true"]):
        with pytest.raises(ValueError, match="holds a finished run. Choose another directory"):
            adapt.main([*options, *FULL, *more])
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before


# ---- Bad input: one clear error, and nothing written ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--min_span_tokens=70", "--max_span_tokens=80"], "`min_span_tokens` is 70.*longest row of `train_dataset`"),
        (["--view_dropout=0"], "both views would be the same"),
        (["--pair_columns", "a"], "name two columns"),
        (["--pairs=nowhere.tsv", "--view_dropout=0"], "nowhere.tsv.*no data file found"),
        (["--pair_min_words=1000"], "line of at least `min_words`=1000 words"),
        (["--dtype=int8"], "--dtype: invalid choice: 'int8'"),
        (["--attn_implementation=flash_attention_2"], "invalid choice.*sdpa"),
        (["--adapter_modes", "infil"], "--adapter_modes.*invalid choice: 'infil'"),
        (["--lora_r=0", "--adapter_modes", "infill"], "`lora_r` is 0"),
        (["--push_to_hub=true"], "without `hub_model_id`"),
        (["--attn_implementation=flex_attention"], "no backward pass on the CPU"),
        (["--max_length=512"], "`max_length` is 512, but the model has positions for 256"),
        (["--mask_token=absent"], "No mask token"),
        (["--text_column=body"], "no column 'body'; its columns are 'text'"),
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


def test_contradictions_are_reported_together(options):
    with pytest.raises(ValueError) as error:
        adapt.main([*options, "--view_dropout=0", "--push_to_hub=true", "--eval_limit=0"])
    assert str(error.value).count("\n- ") == 3


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


def run_script(*arguments, **environment):
    """Run the script in a subprocess."""
    command = [sys.executable, str(REPOSITORY / "examples" / "adapt.py"), *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def refused(capsys, *arguments):
    """Return the output and the exit status of a script that runs `main`."""
    with pytest.raises(SystemExit) as ended:
        start(lambda: adapt.main(list(arguments)), reported=adapt.ArgumentError)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--learning_rate=abc"], "error: argument --learning_rate/--learning-rate: invalid float value: 'abc'\n"),
        (["--max_lenght=3"], "not used by the HfArgumentParser: ['--max_lenght=3']"),
        (["--save_strategy=never"], "error: argument --save_strategy/--save-strategy: invalid choice: 'never'"),
        (["--loss_phases", "4:0,0,0"], "error: The training arguments cannot be used:\n- The loss phases"),
        (["--lora_r=-1"], "error: The LoRA arguments cannot be used:\n- `lora_r` is -1"),
        (["--view_dropout=0"], "error: `pairs` is dropout and `view_dropout`"),
        (["--contrastive_batch_size=64"], "error: This run cannot work:\n- `pair_dataset` has 40 pairs"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_invalid_arguments_print_one_message_and_exit_with_2(options, changes, message, capsys):
    capsys.readouterr()
    code, said = refused(capsys, *options, *changes)
    assert code == 2 and message in said and said.count("error: ") == 1
    assert "Traceback" not in said and "usage:" not in said


@pytest.mark.long
def test_ordinary_run_emits_no_warnings(tmp_path, options):
    given = [option for option in options if option != "--use_cpu"]
    run = run_script(*given, *LORA, CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    assert run.returncode == 0, run.stderr
    for words in ("is_gradient_checkpointing", "pin_memory", "Failed to load", "_pytree", "Warning", "WARNING"):
        assert words not in run.stdout + run.stderr, run.stderr
    refused = run_script(*options, "--lora_r=-1")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[0] == "error: The LoRA arguments cannot be used:"


# ---- Checkpoints of a finished run ----


def test_finished_run_removes_checkpoints_by_default(tmp_path, options):
    saving = [*options, *FULL, "--save_strategy=steps", "--save_steps=2"]
    adapt.main(saving)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    kept = tmp_path / "kept"
    adapt.main([*saving, f"--output_dir={kept}", "--keep_checkpoints"])
    assert sorted(path.name for path in kept.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert (kept / "model.safetensors").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()


def test_checkpoints_are_kept_if_the_result_cannot_be_saved(tmp_path, options, monkeypatch):
    saving = [*options, *FULL, "--save_strategy=steps", "--save_steps=2"]

    def fail(*args, **kwargs):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(adapt, "save_and_push", fail)
        with pytest.raises(OSError, match="no space left"):
            adapt.main(saving)
    assert (tmp_path / "run" / "checkpoint-6").is_dir()
    adapt.main([*saving, "--resume_from_checkpoint=true"])
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert not list((tmp_path / "run").glob("checkpoint-*"))
