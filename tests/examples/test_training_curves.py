"""Test the evaluations of a run as one record per step, and the models of its steps."""

import json

import pytest
import torch

from examples import adapt
from examples.evaluate import training_curves
from examples.evaluate.parts.records import RecordFile
from examples.evaluate.training_curves import models_by_step
from modeling_magnet import AutoMagnetForCausalLM

ARGUMENTS = {"eval_texts": ["some/where/held_out.txt"], "max_length": 64, "dtype": "float32"}
LOG = [
    {"step": 0, "eval_loss_mntp": 5.5, "eval_masked_accuracy": 0.125, "eval_runtime": 9.0, "epoch": 0},
    {"step": 10, "loss": 4.0, "loss_mntp": 3.75},
    {"step": 10, "eval_loss_mntp": 4.5, "eval_masked_accuracy": 0.25, "eval_samples_per_second": 3.0},
    {"step": 10, "train_runtime": 8.0, "train_loss": 4.0},
]


def write_run(folder, log=LOG, arguments=ARGUMENTS):
    folder.mkdir(exist_ok=True)
    (folder / "adapt.json").write_text(json.dumps({"arguments": arguments, "log_history": log, "torch": "2.0"}))
    return folder


def test_records_contain_metrics_without_timings(tmp_path):
    run = write_run(tmp_path / "mine")
    first, second = training_curves.main(
        ["--run", f"MTP={run}", "--results", str(tmp_path / "results"), "--replica", "2"]
    )
    assert (first.table, first.system, first.unit, first.seed, first.replica) == ("curves", "MTP", "training", 0, 2)
    assert (first.step, first.metrics) == (0, {"loss_mntp": 5.5, "masked_accuracy": 0.125})
    assert (second.step, second.metrics) == (10, {"loss_mntp": 4.5, "masked_accuracy": 0.25})
    assert first.settings["eval_texts"] == ["held_out.txt"] and first.settings["max_length"] == 64
    assert first.model["name"] == "mine" and first.versions == {"torch": "2.0"}
    slower = [
        {key: 2 * value if "runtime" in key or "second" in key else value for key, value in log.items()} for log in LOG
    ]
    write_run(run, slower)
    assert [record.measurement_key for record in training_curves.curve_records("MTP", run, replica=2)] == [
        first.measurement_key,
        second.measurement_key,
    ]


def test_another_run_is_recorded_beside_the_first(tmp_path):
    given = ["--run", f"MTP={write_run(tmp_path / 'mine')}", "--results", str(tmp_path / "results")]
    training_curves.main(given)
    write_run(tmp_path / "mine", [{**LOG[0], "eval_loss_mntp": 5.0}, *LOG[1:]])
    assert training_curves.main(given)[0].metrics["loss_mntp"] == 5.0
    assert [record.step for record in RecordFile(tmp_path / "results", "curves").read()] == [0, 10, 0, 10]


def test_curve_of_a_run_begins_with_the_run_that_it_continues(tmp_path):
    first = write_run(tmp_path / "first", arguments={**ARGUMENTS, "per_device_train_batch_size": 2})
    second = write_run(tmp_path / "second", arguments={**ARGUMENTS, "model_name_or_path": str(first)})
    records = training_curves.curve_records("recipe", second, replica=0)
    found = [(record.system, record.step, record.counts["tokens"]) for record in records]
    assert found == [("recipe", 0, 0), ("recipe", 10, 10 * 2 * 64), ("recipe", 20, 10 * 2 * 64 + 10 * 64)]
    assert models_by_step(second) == {10: first, 20: second}


SAVING = ["--save_strategy=steps", "--save_steps=2", "--mask_token=the", "--contrastive_prompt=Represent this"]
SAVING += ["--keep_checkpoints"]


@pytest.mark.parametrize("training", [["--lora_r=0"], ["--lora_r=2", "--learning_rate=1e-2"]], ids=["full", "lora"])
def test_checkpoints_load_as_the_model_of_their_step(tmp_path, options, training):
    adapt.main([*(option for option in options if option != "--save_strategy=no"), *SAVING, *training])
    run = tmp_path / "run"
    first, last = training_curves.main(["--runs", f"MNTP={run}", "--results", str(tmp_path / "results")])
    assert (first.step, last.step) == (0, 6) and "infilling_perplexity" in last.metrics.keys() == first.metrics.keys()
    found = models_by_step(run)
    assert found == {2: run / "checkpoint-2", 4: run / "checkpoint-4", 6: run}
    assert (run / "checkpoint-4" / "adapter_config.json").is_file() == (training != ["--lora_r=0"])

    final = AutoMagnetForCausalLM.from_pretrained(run)
    logits = {}
    for step, place in {**found, "last checkpoint": run / "checkpoint-6"}.items():
        model = AutoMagnetForCausalLM.from_pretrained(place).eval()
        assert model.tokenizer.decode([model.magnet_settings.mask_token_id]) == "the"
        # Only checkpoints contain the head, which resuming needs.
        settings = {**model.magnet_settings.to_dict(), "contrastive_head": None}
        assert settings == {**final.magnet_settings.to_dict(), "contrastive_head": None}
        assert settings["prompts"]["sentence"] == "Represent this: "
        with torch.no_grad():
            logits[step] = model(torch.tensor([[1, 40, 41, 42]]), mode="bidirectional").logits
    torch.testing.assert_close(logits["last checkpoint"], logits[6], atol=1e-4, rtol=1e-4)
    assert (logits[2] - logits[4]).abs().max() > 1e-3 and (logits[4] - logits[6]).abs().max() > 1e-3


def write_checkpoint(run, step, *, state=None):
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


def test_incomplete_checkpoints_are_skipped(tmp_path):
    whole = {step: write_checkpoint(tmp_path, step, state=json.dumps({"global_step": step})) for step in (10, 9)}
    write_checkpoint(tmp_path, 11)
    write_checkpoint(tmp_path, 12, state='{"global_st')
    write_checkpoint(tmp_path, 13, state='{"global_step": 1e999}')
    write_checkpoint(tmp_path, 14, state="[" * 100_000)
    assert list(models_by_step(tmp_path).items()) == [(9, whole[9]), (10, whole[10])]
