"""Files beside weights: config.json, settings, indexes, headers, adapters, seals, records, plans and recipes."""

import dataclasses
import io
import json
import os
import random
from contextlib import redirect_stderr
from pathlib import Path

from examples.adapt import parse_arguments
from examples.evaluate.records import Record, RecordFile, answered, newest
from examples.evaluate.study_plan import read_plan
from examples.evaluate.training_curves import models_by_step, read_report
from modeling_magnet.configuration_magnet import MagnetSettings
from tests.fuzz import inputs
from tests.fuzz.judging import REPOSITORY, Target, check, naming
from trainer.checkpoints import check_checkpoint, last_complete_checkpoint, seal_checkpoint
from trainer.whole_files import append_rows, resume_rows


def settings(draw: random.Random, folder: Path) -> None:
    """The `magnet` of a config.json, as JSON can hold it: settings that say the same again, or an error by name."""
    known = {**MagnetSettings().to_dict(), "mask_token": "_", "adapter_modes": ["infill"]}
    values = inputs.changed(draw, known, chance=draw.choice((0.01, 0.05, 0.3)))
    with naming("here/config.json"):
        made = MagnetSettings.from_dict(values, source="here/config.json")
    check(MagnetSettings.from_dict(made.to_dict()) == made, "settings are not read as they were written")
    check(made.default_prompt_name is None or made.default_prompt_name in made.prompts, "no such prompt")


def seals(draw: random.Random, folder: Path) -> None:
    """A sealed checkpoint is trusted as it is, and not with another byte in it."""
    place = folder / "checkpoint-7"
    (place / "sub").mkdir(parents=True)
    for name in ("trainer_state.json", "rng_state.pth", "sub/weights"):
        (place / name).write_bytes(b'{"global_step": 7}')
    seal_checkpoint(place)
    check(last_complete_checkpoint(folder) == place, "a whole checkpoint is passed over")
    name = draw.choice(("trainer_state.json", "rng_state.pth", "sub/weights", "checksums.json", "checksums.json"))
    raw = (place / name).read_bytes()
    given = (
        inputs.json_bytes(draw, inputs.changed(draw, json.loads(raw)))
        if name.endswith(".json")
        else inputs.mutated(draw, raw)
    )
    (place / name).write_bytes(given)
    (
        folder
        / draw.choice(("checkpoint-", "checkpoint-9", "checkpoint-٣", "checkpoint-" + "9" * 200, "checkpoint-8x"))
    ).mkdir()
    found = last_complete_checkpoint(folder)
    if given != raw and name != "checksums.json":
        check(found is None, f"a checkpoint whose {name} was changed is trusted")
    with naming(str(place)):
        check_checkpoint(place)


def resumable(draw: random.Random, folder: Path) -> None:
    """Rows that were appended are there again, but for a last line that was cut; anything else is refused by name."""
    path, told = folder / "rows.jsonl", {"a": inputs.value(draw, of_json=True), "b": 1}
    rows = [{"text": inputs.unicode_text(draw, 3), "n": n} for n in range(draw.randrange(4))]
    check(resume_rows(path, settings=told) == [], "rows of a new file")
    append_rows(path, rows)
    check(resume_rows(path, settings=told) == rows, "rows are not read as they were written")
    if draw.random() < 0.7:
        path.write_bytes(inputs.mutated(draw, path.read_bytes()))
    if draw.random() < 0.5:
        sidecar = folder / "rows.jsonl.settings.json"
        sidecar.write_bytes(inputs.json_bytes(draw, inputs.changed(draw, json.loads(sidecar.read_bytes()))))
    with naming("rows.jsonl"):
        kept = resume_rows(path, settings=told)
    check(all(isinstance(row, dict) for row in kept), f"rows that are no objects: {kept!r:.200}")


def records(draw: random.Random, folder: Path) -> None:
    """Lines of records are read as they were written; half a line is skipped, and what is no record is named."""
    file = RecordFile(folder, "sts")
    record = Record(
        table="sts", system=inputs.unicode_text(draw, 2), unit="STS12", settings={"a": 1}, model={"name": "m"}
    )
    values = dataclasses.asdict(record)
    for _ in range(draw.randint(1, 3)):
        file.append(record)
    with open(file.path, "ab") as stream:
        stream.write(inputs.json_bytes(draw, inputs.changed(draw, values)).replace(b"\n", b" ") + b"\n")
    if draw.random() < 0.3:
        file.path.write_bytes(inputs.mutated(draw, file.path.read_bytes()))
    file.append(record)
    with naming(str(file.path)):
        found = file.read()
    check(found[-1] == record, "the last record is not read as it was written")
    check(len(newest(found)) >= 1 and len(answered(found)) <= len(found), "cells of records")


PLAN = json.loads((REPOSITORY / "examples/evaluate/study_wiki7m.json").read_text(encoding="utf-8"))


def plans(draw: random.Random, folder: Path) -> None:
    """A plan is read with all its runs below its folder, or all that is wrong is said."""
    file, values = folder / "plan.json", inputs.changed(draw, PLAN, chance=draw.choice((0.0, 0.02, 0.1, 0.5)))
    if draw.random() < 0.3 and isinstance(values, dict) and isinstance(values.get("runs"), dict):
        values["runs"] = {**values["runs"], "more": {"replicas": inputs.value(draw, 0, of_json=True)}}
    file.write_bytes(inputs.json_bytes(draw, values))
    with naming(str(file)):
        plan = read_plan(file, preset=draw.choice(("paper", *PLAN["presets"])), output=folder / "out")
    for place in (*(run.folder for run in plan.runs), *(corpus.file for corpus in plan.corpora)):
        check(
            (folder / "out") in Path(os.path.normpath(place)).parents, f"{str(place)!r} is outside the study's folder"
        )


RECIPES = sorted((REPOSITORY / "examples/configs").glob("*.json"))


def recipes(draw: random.Random, folder: Path) -> None:
    """A recipe of `adapt.py` becomes arguments, or says what is wrong; `argparse` ends with status 2 for options."""
    file, recipe = folder / "recipe.json", json.loads(draw.choice(RECIPES).read_text(encoding="utf-8"))
    fixed = {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "report_to": "none",
        "model_name_or_path": "m",
        "train_texts": ["t"],
    }
    own = {name: value for name, value in recipe.items() if name not in fixed}
    values = inputs.changed(draw, own, chance=draw.choice((0.02, 0.1, 0.3)))
    file.write_bytes(inputs.json_bytes(draw, {**values, **fixed} if isinstance(values, dict) else values))
    try:
        with redirect_stderr(io.StringIO()):
            _, _, training = parse_arguments([str(file)])
    except SystemExit as error:
        check(error.code == 2, f"it ended with {error.code}")
        return
    check(training.max_steps == sum(phase.steps for phase in training.phases), "steps")


def reports(draw: random.Random, folder: Path) -> None:
    """The report and the states of a run, as `adapt.py` and transformers write them."""
    report = {"arguments": {"a": 1}, "log_history": [{"step": 1, "loss": 2.0}, {"step": 4}]}
    (folder / "adapt.json").write_bytes(inputs.json_bytes(draw, inputs.changed(draw, report)))
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "trainer_state.json").write_bytes(
        inputs.json_bytes(draw, inputs.changed(draw, {"global_step": 3}))
    )
    with naming(str(folder)):
        steps = models_by_step(folder)
        read_report(folder)
    check(list(steps) == sorted(steps), "steps in order")


TARGETS = (
    Target(name="settings", run=settings, weight=150, seeds=400),
    Target(name="seals", run=seals, weight=5, seeds=60),
    Target(name="resumable", run=resumable, weight=12, seeds=100),
    Target(name="records", run=records, weight=4, seeds=80),
    Target(name="plans", run=plans, weight=8, seeds=60),
    Target(name="recipes", run=recipes, weight=1, seeds=10, allowed=("hf_argparser.py",)),
    Target(name="reports", run=reports, weight=20, seeds=100),
)
