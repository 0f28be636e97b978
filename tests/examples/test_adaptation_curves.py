"""The picture of several runs: what is read from `adapt.json`, and what is written."""

import json

import pytest

from examples.benchmarks import adaptation_curves


def write_run(directory, evaluations):
    """An output folder of `adapt.py` as far as this script reads it."""
    directory.mkdir()
    log = [{"step": 1, "loss": 3.0}, *evaluations]
    (directory / "adapt.json").write_text(json.dumps({"log_history": log}))
    return directory


def evaluation(step, value):
    return {"step": step, **dict.fromkeys(adaptation_curves.PANELS, value)}


def test_runs_become_a_picture_and_its_figures(tmp_path, capsys):
    magnet = write_run(tmp_path / "a", [evaluation(0, 9.0), evaluation(10, 5.0)])
    causal = write_run(tmp_path / "b", [evaluation(0, 9.0), {"step": 10, "eval_causal_perplexity": 4.0}])
    adaptation_curves.main(
        ["--runs", f"magnet={magnet}", f"causal={causal}", "--name", "two", "--results", str(tmp_path)]
    )
    assert capsys.readouterr().out.startswith("adaptation_curves: OK (")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "two.json").read_text())
    assert written["magnet"]["eval_infilling_perplexity"] == {"0": 9.0, "10": 5.0}
    assert written["causal"]["eval_causal_perplexity"] == {"0": 9.0, "10": 4.0}
    assert written["causal"]["eval_infilling_perplexity"] == {"0": 9.0}


def test_a_folder_without_a_run_and_a_run_without_evaluations_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no adapt\.json"):
        adaptation_curves.read_evaluations(tmp_path)
    with pytest.raises(ValueError, match="evaluated nothing"):
        adaptation_curves.read_evaluations(write_run(tmp_path / "a", []))
