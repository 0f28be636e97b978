"""TensorBoard and trackio, if installed, get a scalar for each objective."""

import importlib.util
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from .tiny import tiny_args, tiny_pairs, tiny_rows, tiny_trainer

OBJECTIVES = ("mntp", "msg", "sscl")
REPOSITORY = Path(__file__).resolve().parents[2]


def train(folder, tracker):
    """Four steps, the last two with pairs, and an evaluation after every second step."""
    changes = {"loss_phases": ["2:1,0,1", "2:1,9,1"], "eval_strategy": "steps", "eval_steps": 2}
    args = tiny_args(folder, report_to=tracker, project="magnet", run_name="a run", **changes)
    trainer = tiny_trainer(args, eval_dataset=tiny_rows(5, seed=3), eval_pair_dataset=tiny_pairs(8))
    trainer.train()
    return trainer.state.log_history


def curves_of(log_history):
    """Return the expected steps and values of each objective in training and evaluation."""
    return {
        f"{kind}/loss_{name}": [(log["step"], log[key]) for log in log_history if key in log]
        for name in OBJECTIVES
        for kind, key in (("train", f"loss_{name}"), ("eval", f"eval_loss_{name}"))
    }


def test_tensorboard_has_a_scalar_for_each_objective_in_training_and_evaluation(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_history = train(tmp_path, "tensorboard")
    (events,) = tmp_path.glob("runs/*/events.out.tfevents.*")
    found = EventAccumulator(str(events)).Reload()
    wanted = curves_of(log_history)
    assert [len(curve) for curve in wanted.values()] == [4, 2, 4, 2, 2, 2]  # training has pairs in its second half
    for name, curve in wanted.items():
        assert [event.step for event in found.Scalars(name)] == [step for step, _ in curve]
        assert [event.value for event in found.Scalars(name)] == pytest.approx([value for _, value in curve])


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_has_a_scalar_for_each_objective_in_training_and_evaluation(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads once a process
    code = f"""
import json, sys
from tests.trainer.test_curves import train
json.dump(train({str(tmp_path / "run")!r}, "trackio"), open({str(tmp_path / "log.json")!r}, "w"))
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True)
    with sqlite3.connect(tmp_path / "trackio" / "magnet.db") as database:
        rows = [json.loads(row) for (row,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    for name, curve in curves_of(json.loads((tmp_path / "log.json").read_text())).items():
        assert curve
        assert [row[name] for row in rows if name in row] == pytest.approx([value for _, value in curve])
