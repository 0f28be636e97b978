"""What is wrong with the plan of a study: shapes, names that stand for nothing, numbers that no run can have."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.evaluate.shapes import OTHERS, misfits
from trainer.phases import MOST_STEPS, parse_phases

DRIVERS = Path(__file__).parent
BASE = "base"
# Behind the name of a run: its last checkpoint, which is the adapter alone, instead of the merged result.
ADAPTER = "@adapter"
# Trainings of one system; a study has a few.
MOST_REPLICAS = 1000
STEPS = ("eval_steps", "save_steps", "warmup_steps")
_SHAPE = {
    **dict.fromkeys(("title", "base", "data"), str),
    "corpora": {OTHERS: {"texts": [str], "characters": int}},
    "training": dict,
    "runs": {OTHERS: {"base?": str, "replicas?": int, "training?": dict}},
    "calls": [
        {"driver": str, "data?": str, "systems": [str], "arguments?": [str], "over_steps?": int, "replicas?": int}
    ],
    "presets": {OTHERS: {"steps?": float, "replicas?": int, "training?": dict, "drivers?": str}},
}


def complaints_about(values: Any, *, preset: str) -> Iterator[str]:
    """What is wrong with a plan."""
    if not isinstance(values, dict):
        yield f"it holds a JSON {type(values).__name__}; expected an object."
        return
    wanted = {"title", "base", "data", "corpora", "training", "runs", "calls", "presets"}
    present = {key for key in values if not key.startswith("_")}
    if present != wanted:
        yield f"it has the keys {sorted(present)}; expected {sorted(wanted)}."
        return
    misshapen = list(misfits({key: values[key] for key in sorted(wanted)}, _SHAPE, where="it"))
    yield from misshapen
    if misshapen:
        return
    if preset in values["presets"]:
        yield from _complaints_about_training(values, preset=preset)
    else:
        yield f"it has no preset {preset!r}; choose one of {sorted(values['presets'])}."
    for name in values["corpora"]:
        if not Path(name).name or Path(name).is_absolute() or ".." in Path(name).parts:
            yield f"the corpus {name!r} would be written outside the study's folder; expected the name of a file."
    known = {BASE}
    folders: dict[str, str] = {}
    for name, run in values["runs"].items():
        if run.get("base", BASE) not in known:
            yield f"the run {name!r} starts from {run['base']!r}, which is no run before it."
        if not folder_name(name) or folders.setdefault(folder_name(name), name) != name:
            yield f"the run {name!r} has no folder of its own: {folder_name(name)!r}. Give it a name of other letters."
        known.add(name)
    drivers = {file.stem for file in DRIVERS.glob("*.py")}
    for call in values["calls"]:
        if call["driver"] not in drivers:
            yield f"there is no driver {call['driver']!r} in {DRIVERS.name}/."
        if call.get("replicas", 1) < 1:
            yield f"{call['driver']!r} is asked about {call['replicas']} replicas; expected one at least."
        for system in sorted({run.removesuffix(ADAPTER) for run in named_systems(call["systems"]).values()} - known):
            yield f"{call['driver']!r} is asked about {system!r}, which is no run."


def _complaints_about_training(values: dict[str, Any], *, preset: str) -> Iterator[str]:
    """What is wrong with the numbers of the runs under a preset."""
    chosen = values["presets"][preset]
    if not 0 < (factor := chosen.get("steps", 1)) <= MOST_STEPS:
        yield f"the preset {preset!r} has `steps` {factor!r:.60}; expected a factor above 0."
    for name, run in values["runs"].items():
        replicas = run.get("replicas", 1)
        replicas = min(replicas, chosen.get("replicas", replicas))
        if not 1 <= replicas <= MOST_REPLICAS:
            yield f"the run {name!r} has {replicas} replicas; expected 1 to {MOST_REPLICAS}."
        training = {**values["training"], **chosen.get("training", {}), **run.get("training", {})}
        shape = {"loss_phases": [str], **dict.fromkeys((f"{key}?" for key in STEPS), float)}
        found = list(misfits(training, shape, where=f"the training of {name!r}"))
        yield from found
        if found:
            continue
        for key in STEPS:
            if not 0 <= training.get(key, 0) <= MOST_STEPS:
                yield f"`{key}` of the training of {name!r} is {training[key]!r:.60}; expected a number of steps."
        try:
            parse_phases(training["loss_phases"])
        except ValueError as error:
            yield f"the training of {name!r}: " + str(error).replace("\n- ", " ")
    for call in values["calls"]:
        sizes = chosen.get("drivers", preset)
        yield from misfits(call.get(sizes, []), [str], where=f"{sizes!r} of {call['driver']!r}")


def named_systems(systems: list[str]) -> dict[str, str]:
    """Row of the table -> run, from items `ROW=RUN`, or `RUN` alone where the row has its name."""
    pairs = [item.rpartition("=") for item in systems]
    return {row or run: run for row, _, run in pairs}


def folder_name(name: str) -> str:
    """A name as a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


__all__ = ["ADAPTER", "BASE", "STEPS", "complaints_about", "folder_name", "named_systems"]
