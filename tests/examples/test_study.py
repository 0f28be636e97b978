"""Test the study: validation of the plan, resumed trainings, and the commands of the drivers."""

import fcntl
import importlib
import json
import shutil
import threading

import pytest

from examples.evaluate import study
from examples.evaluate.parts.study_plan import read_plan
from examples.evaluate.reporting.names import show

from ..conftest import REPOSITORY
from .tiny_run import save_plain_llama, tiny_options

FOLDER = REPOSITORY / "examples" / "evaluate"
FIRST = "LLM2Vec, first stage"
# Steps of a run, its steps with pairs, trainings of MAGNET, and the runs that end where pairs begin.
PLANS = {"study_wiki7m.json": (900, 170, 2, {FIRST}), "study_gemma270m.json": (490, 98, 3, {FIRST, "MTP"})}


def write_plan(folder, **changes):
    """Write a plan with a run that starts from another, on a tiny Llama."""
    values = {
        "title": "A trial",
        "base": str(folder / "base"),
        "data": str(folder),
        "training": {"loss_phases": ["4:1,0,1"], "save_steps": 2, "learning_rate": 0.001},
        "runs": {
            "first": {"replicas": 2},
            "second one": {"base": "first", "training": {"loss_phases": ["200:1,0,0"]}},
        },
        "calls": [],
        "presets": {"paper": {}, "smoke": {"steps": 0.5, "replicas": 1, "training": {"learning_rate": 1}}},
        **changes,
    }
    (folder / "plan.json").write_text(json.dumps(values))
    return folder / "plan.json"


@pytest.mark.parametrize("name", PLANS)
def test_committed_plan_is_valid_with_every_preset(tmp_path, name):
    for preset, sizes in (("paper", "paper"), ("gpu", "paper"), ("smoke", "smoke")):
        plan = read_plan(FOLDER / name, preset=preset, output=tmp_path)
        assert all(call.arguments[-2:] == ["--preset", sizes] for call in plan.calls)
        assert all(run.arguments["use_cpu"] == (preset != "gpu") for run in plan.runs)
        names = [run.name for run in plan.runs]
        assert {"MAGNET", "LLM2Vec recipe", "MTP", "MNTP + MSG", "SSCL", "SSCL + MSG"} <= set(names)
        assert "MNTP" in names or "MTP" in PLANS[name][3], "MTP is compared with MNTP of as many steps"
        assert names.count("MAGNET") == (1 if preset == "smoke" else PLANS[name][2])
        assert len({run.folder for run in plan.runs}) == len(plan.runs)


@pytest.mark.parametrize("name", PLANS)
def test_systems_of_a_committed_plan_share_steps_texts_and_adapters(tmp_path, name):
    runs = {run.name: run for run in read_plan(FOLDER / name, preset="paper", output=tmp_path).runs}

    def steps(run):
        own = sum(int(phase.split(":")[0]) for phase in run.arguments["loss_phases"])
        return own + (0 if run.base == "base" else steps(runs[run.base]))

    full, with_pairs, _, shorter = PLANS[name]
    expected = {"SSCL": with_pairs, **dict.fromkeys(shorter, full - with_pairs)}
    assert {run: steps(runs[run]) for run in runs} == {**dict.fromkeys(runs, full), **expected}
    for shared in ("train_texts", "lora_r", "lora_alpha", "learning_rate", "contrastive_batch_size", "max_length"):
        assert len({json.dumps(run.arguments[shared]) for run in runs.values()}) == 1, shared


def test_preset_scales_steps_and_replaces_arguments(tmp_path):
    plan = read_plan(write_plan(tmp_path), preset="smoke", output=tmp_path / "out")
    assert [(run.name, run.base, run.replica) for run in plan.runs] == [
        ("first", "base", 0),
        ("second one", "first", 0),
    ]
    first, second = (run.arguments for run in plan.runs)
    assert first == {"loss_phases": ["2:1,0,1"], "save_steps": 1, "learning_rate": 1, "seed": 0}
    assert second["loss_phases"] == ["100:1,0,0"]
    assert plan.runs[1].folder == tmp_path / "out" / "runs" / "second-one-0"


def test_plan_errors_are_reported_together(tmp_path):
    calls = [{"driver": "no_such", "systems": ["nobody"], "replicas": 0}]
    path = write_plan(tmp_path, runs={"first": {"base": "later"}, "later": {}}, calls=calls)
    with pytest.raises(ValueError, match="cannot be used") as raised:
        read_plan(path, preset="huge", output=tmp_path)
    complaints = str(raised.value).split("\n- ")[1:]
    for complaint, values in zip(
        complaints, ("'huge'", "'later'", "'no_such'", "0 replicas", "'nobody'"), strict=True
    ):
        assert values in complaint
    (tmp_path / "plan.json").write_text('{"title": ""}')
    with pytest.raises(ValueError, match=r"it has the keys \['title'\]; expected"):
        read_plan(tmp_path / "plan.json", preset="paper", output=tmp_path)
    with pytest.raises(ValueError, match="cannot be read as a plan"):
        read_plan(tmp_path / "missing.json", preset="paper", output=tmp_path)


@pytest.fixture
def tiny_plan(tmp_path, tiny_tokenizer):
    """Write a plan whose runs train in seconds."""
    base = save_plain_llama(tmp_path / "base", tiny_tokenizer)
    given = [option.removeprefix("--") for option in tiny_options(tmp_path, model=base) if "=" in option]
    options = {"use_cpu": True, **dict(option.split("=", 1) for option in given), "save_strategy": "steps"}
    for name in ("model_name_or_path", "output_dir", "loss_phases", "save_steps"):
        options.pop(name, None)
    return write_plan(
        tmp_path,
        training={**options, "loss_phases": ["2:1,0,1"], "save_steps": 1, "keep_checkpoints": True},
        runs={"first": {}, "second": {"base": "first"}},
        calls=[
            {"driver": "word_probes", "data": ".", "systems": ["b=base", "f=first"], "arguments": ["--x", "1"]},
            {"driver": "repetition", "systems": ["b=base", "f=first"], "over_steps": 1},
        ],
    )


@pytest.mark.long
def test_small_study_runs_from_plan_to_page(tmp_path, tiny_plan, capsys):
    data = REPOSITORY.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("no data at ../shared/data beside the repository")
    own = {call["driver"]: call for call in json.loads((FOLDER / "study_wiki7m.json").read_text())["calls"]}
    kept = {  # one call of each driver, below its smoke preset if that takes seconds
        "word_probes": "--steps 20 --train_sentences 40 --test_sentences 20",
        "sts": "--tasks STSBenchmark STS13 --limit 20",
        "clustering": "--tasks TwentyNewsgroupsClustering --subset_size 60",
        "infilling_perplexity": "--limit 4",
        "text_perplexity": "--limit 2 --max_length 128",
        "repetition": "--limit 2 --max_new_tokens 8",
        "mmlu": "--limit 1",
        "side_by_side": "--limit 1 --continuation_tokens 8 --shots 0",
    }
    systems = {"systems": ["base", "MAGNET=first"]}
    calls = [{**own[driver], **systems, "arguments": options.split()} for driver, options in kept.items()]
    curve = {**calls[5], "systems": ["MAGNET=first"], "over_steps": 1}
    values = {**json.loads(tiny_plan.read_text()), "data": str(data), "calls": [*calls, curve]}
    tiny_plan.write_text(json.dumps(values))
    command = [str(tiny_plan), "--output_dir", str(tmp_path / "out"), "--preset", "smoke"]
    results, page = tmp_path / "out" / "results", tmp_path / "out" / "page" / "report.md"
    study.main([*command, "--jobs", "2"])

    out = capsys.readouterr().out
    assert "0 of 2 runs are finished" in out and out.splitlines()[-1].startswith("study: OK")
    second = json.loads((tmp_path / "out" / "runs" / "second-0" / "adapt.json").read_text())
    assert second["arguments"]["model_name_or_path"] == str(tmp_path / "out" / "runs" / "first-0")
    tables = {file.stem: file.read_text().splitlines() for file in results.glob("*.jsonl")}
    assert set(tables) == {
        *("words", "sts", "clustering", "infilling", "perplexity", "repetition", "mmlu", "side_by_side", "curves")
    }
    for title in (*(f"Table {number}" for number in (1, 2, 3, 4, 6, 11)), "How the claims are judged", "Side by side"):
        assert title in page.read_text()
    records = {name: [json.loads(line) for line in lines] for name, lines in tables.items()}
    assert all(one["metrics"] or one["unavailable"] or one["samples"] for rows in records.values() for one in rows)
    assert {record["step"] for record in records["repetition"]} == {0, 1}
    missing = [record["unavailable"] for record in records["sts"] if record["unit"] == "STS13"]
    assert len(missing) == 2 and all("sts13" in reason for reason in missing)
    magnet = next(record for record in records["infilling"] if record["system"] == "MAGNET")
    assert show(magnet["metrics"]["perplexity"]) in page.read_text()

    shutil.copytree(results, tmp_path / "smaller")
    study.main([*command, "--compare", f"a smaller one={tmp_path / 'smaller'}"])
    assert "2 of 2 runs are finished" in capsys.readouterr().out and "a smaller one" in page.read_text()
    again = {file.stem: file.read_text().splitlines() for file in results.glob("*.jsonl")}
    assert again == tables, "nothing is measured twice"

    # Killed after its first checkpoint, a training resumes there; killed during it, it starts again.
    plan = read_plan(tiny_plan, preset="smoke", output=tmp_path / "out")
    run = plan.runs[1]
    assert "--resume_from_checkpoint=true" in study.training_command(plan, run)
    for state in run.folder.glob("checkpoint-*/trainer_state.json"):
        state.unlink()
    assert "--resume_from_checkpoint=true" not in study.training_command(plan, run)


def test_training_that_outlived_a_killed_study_is_waited_for(tmp_path):
    plan = read_plan(write_plan(tmp_path, runs={"first": {}}), preset="paper", output=tmp_path / "out")
    (run,) = plan.runs
    run.folder.mkdir(parents=True)
    with study.log_of(run).open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        waiting = threading.Thread(target=study.train, args=[plan], kwargs={"jobs": 1})
        waiting.start()
        waiting.join(timeout=0.5)
        assert waiting.is_alive()
        (run.folder / "adapt.json").write_text("{}")  # the other training finishes
    waiting.join(timeout=10)
    assert not waiting.is_alive() and (run.folder / "adapt.json").read_text() == "{}"


def test_unfinished_runs_are_skipped_and_reported(tmp_path, monkeypatch, capsys):
    calls = [{"driver": "mmlu", "systems": ["b=base", "f=first", "s=second one", "a=first@adapter"]}]
    plan = read_plan(write_plan(tmp_path, calls=calls), preset="smoke", output=tmp_path / "out")
    first = plan.runs[0].folder
    monkeypatch.setattr(study.training_curves, "main", lambda arguments: None)
    asked = []
    monkeypatch.setattr(importlib.import_module("examples.evaluate.mmlu"), "main", asked.append)
    study.evaluate(plan, results=tmp_path)
    assert [arguments[:3] for arguments in asked] == [["--model", f"b={plan.base}", "--preset"]]
    assert "not finished: first, replica 0; second one, replica 0" in capsys.readouterr().out
    first.mkdir(parents=True)
    (first / "adapt.json").write_text("{}")
    with pytest.raises(ValueError, match="first-0' has no checkpoint, so no adapter"):
        study.evaluate(plan, results=tmp_path)
