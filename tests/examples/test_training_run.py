"""Test that the intermediate and final models saved by `adapt.py` can be opened by step."""

import json

import pytest
import torch

from examples import adapt
from examples.evaluate.training_curves import models_by_step
from modeling_magnet import AutoMagnetForCausalLM

IDS = torch.tensor([[1, 40, 41, 42]])
SAVING = ["--save_strategy=steps", "--save_steps=2", "--mask_token=the", "--contrastive_prompt=Represent this"]
SAVING += ["--keep_checkpoints"]


@pytest.mark.parametrize("training", [["--lora_r=0"], ["--lora_r=2", "--learning_rate=1e-2"]], ids=["full", "lora"])
def test_checkpoints_load_as_the_model_of_their_step(tmp_path, options, training):
    adapt.main([*(option for option in options if option != "--save_strategy=no"), *SAVING, *training])
    run = tmp_path / "run"
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
            logits[step] = model(IDS, mode="bidirectional").logits
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
