"""Test the training-step benchmark: its counts, the equality of both steps, and a complete run."""

import json

import pytest
import torch

from examples.benchmarks import training_step
from examples.benchmarks.training_systems import step_operations
from trainer import LoraArguments, apply_lora
from trainer.loss_phases import LossPhase

from ..trainer.tiny import tiny_model
from .tiny_run import write_corpus


@pytest.fixture
def options(tmp_path, plain_llama) -> list[str]:
    texts = write_corpus(tmp_path / "texts.jsonl.xz", num_texts=60, seed=0)
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("first\tsecond\n" + "".join(f"the old dog ran {n}\tthe dog sat then {n}\n" for n in range(20)))
    return [
        *("--model", str(plain_llama), "--texts", str(texts), "--pairs", str(pairs), "--results", str(tmp_path)),
        *("--batch_size", "3", "--max_length", "200", "--contrastive_batch_size", "4", "--lora_r", "2"),
    ]


def test_step_is_timed_against_the_naive_one(options, tmp_path, capsys):
    report = training_step.main([*options, "--rounds", "2", "--name", "step"])
    assert capsys.readouterr().out.splitlines()[-1] == "training_step: OK (step.json)"
    assert json.loads((tmp_path / "step.json").read_text())["ratios"] == report["ratios"]
    assert max(report["apart"].values()) < 1e-5
    assert all(len(times) == 2 for times in report["seconds"].values())
    tokens = report["tokens"]
    assert tokens["joint"] == tokens["naive, the same rows"] > tokens["MNTP alone"]
    floors = report["floor_flop"]
    assert floors["joint"] > floors["MNTP and MSG"]
    assert floors["joint"] == floors["naive, the same rows"] > floors["MNTP alone"] == floors["MNTP, all logits"] > 0


def test_differing_steps_are_not_timed(options, monkeypatch):
    monkeypatch.setattr(
        "examples.benchmarks.training_systems.language_loss", lambda *_, **__: torch.ones((), requires_grad=True)
    )
    with pytest.raises(SystemExit, match="steps differ"):
        training_step.main(options)


@pytest.mark.parametrize("lora", [True, False])
def test_operation_counts_match_manual_calculation(lora):
    model = tiny_model()
    adapted = apply_lora(model, LoraArguments(lora_r=2 if lora else 0))
    batch = {
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "mntp_labels": torch.tensor([[7, -100, 7, -100, -100]] * 2),
        "msg_labels": torch.tensor([[-100, 7, -100, -100, -100], [-100] * 5]),
        "pairs": {"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])},
    }
    # Width 16, MLP 32, two key-value heads of 4: query and output, key and value, three of the MLP.
    shapes = [(16, 16)] * 2 + [(16, 8)] * 2 + [(16, 32)] * 3
    weights = 2 * sum(rows * columns for rows, columns in shapes)
    adapters = 2 * sum(2 * (rows + columns) for rows, columns in shapes)
    of_token = 4 * weights + 6 * adapters if lora else 6 * weights
    of_label = (4 if lora else 6) * 16 * 44
    scores = 12 * 2 * 16
    joint = LossPhase(1, {"mntp": 1, "sscl": 1, "msg": 1})
    assert step_operations(adapted, batch, phase=joint) == of_token * 13 + scores * (25 + 9 + 9 + 4) + of_label * 5
    alone = LossPhase(1, {"mntp": 1})
    assert step_operations(adapted, batch, phase=alone) == of_token * 8 + scores * (25 + 9) + of_label * 4
