"""Read the plan of a study from JSON: the models to train, their bases, and the tables to make.

A plan names a base model, training arguments that all runs share, the runs, the calls of the drivers, and what each
preset changes. `read_plan` checks all of it before anything runs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.files import parse_json
from trainer.loss_phases import MAX_STEPS, parse_phases

DRIVERS = Path(__file__).parents[1]
KEYS = {"title", "base", "data", "training", "runs", "calls", "presets"}
BASE = "base"
# Suffix of a run that selects its last checkpoint, which is only the adapter, instead of the merged result.
ADAPTER = "@adapter"
# Bound on the replicas that a damaged plan may request; a study has a few trainings per system.
MAX_REPLICAS = 1000
STEPS = ("eval_steps", "save_steps", "warmup_steps")


@dataclass(frozen=True)
class Run:
    """Describe a training."""

    name: str
    base: str
    replica: int
    arguments: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Call:
    """Describe a call of a driver on some systems, which are runs by the name of their row."""

    driver: str
    data: str | None
    systems: dict[str, str]
    arguments: list[str] = field(default_factory=list)
    over_steps: int = 0
    replicas: int | None = None


@dataclass(frozen=True)
class Plan:
    """The result of `read_plan`; each of the `runs` comes after its base."""

    title: str
    base: str
    data: Path
    runs: tuple[Run, ...]
    calls: tuple[Call, ...]

    def replicas(self, system: str) -> list[Run]:
        """Return the trainings of a system; the base has none."""
        return [run for run in self.runs if run.name == system]


def read_plan(path: Path, *, preset: str, output: Path) -> Plan:
    """Read a plan and report all errors in it at once."""
    try:
        values = parse_json(path.read_text(encoding="utf-8").replace("{output}", str(output)))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a plan ({error}). Name a JSON file.") from error
    try:
        complaints = list(_complaints_about(values, preset=preset))
        plan = None if complaints else _make_plan(values, preset=preset, output=output)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        complaints = [f"a value in it is missing or of a wrong kind ({type(error).__name__}: {error})."]
    if complaints or plan is None:
        raise ValueError("\n- ".join([f"{str(path)!r} cannot be used:", *complaints]))
    return plan


def _complaints_about(values: dict[str, Any], *, preset: str) -> Iterator[str]:
    """Yield the errors of a plan."""
    present = {key for key in values if not key.startswith("_")}
    if present != KEYS:
        yield f"it has the keys {sorted(present)}; expected {sorted(KEYS)}."
        return
    if preset in values["presets"]:
        yield from _complaints_about_training(values, chosen=values["presets"][preset])
    else:
        yield f"it has no preset {preset!r}; choose one of {sorted(values['presets'])}."
    known = {BASE}
    folders: dict[str, str] = {}
    for name, run in values["runs"].items():
        if run.get("base", BASE) not in known:
            yield f"the run {name!r} starts from {run['base']!r}, which is not a run before it."
        if not _folder_name(name) or folders.setdefault(_folder_name(name), name) != name:
            yield f"the run {name!r} has no folder of its own ({_folder_name(name)!r}). Give it another name."
        known.add(name)
    for call in values["calls"]:
        if call["driver"] not in {file.stem for file in DRIVERS.glob("*.py")}:
            yield f"there is no driver {call['driver']!r} in {DRIVERS.name}/."
        if call.get("replicas", 1) < 1:
            yield f"{call['driver']!r} is asked about {call['replicas']} replicas; expected one at least."
        for system in sorted({run.removesuffix(ADAPTER) for run in _named_systems(call["systems"]).values()} - known):
            yield f"{call['driver']!r} is asked about {system!r}, which is not a run."


def _complaints_about_training(values: dict[str, Any], *, chosen: dict[str, Any]) -> Iterator[str]:
    """Yield the errors in the numbers of the runs under a preset."""
    if not 0 < chosen.get("steps", 1) <= MAX_STEPS:
        yield f"the preset has `steps` {chosen['steps']!r:.60}; expected a factor above 0."
    for name, run in values["runs"].items():
        if not 1 <= _number_of_replicas(run, chosen) <= MAX_REPLICAS:
            yield f"the run {name!r} has {_number_of_replicas(run, chosen)} replicas; expected 1 to {MAX_REPLICAS}."
        training = {**values["training"], **chosen.get("training", {}), **run.get("training", {})}
        for key in STEPS:
            if not 0 <= training.get(key, 0) <= MAX_STEPS:
                yield f"`{key}` of the training of {name!r} is {training[key]!r:.60}; expected a number of steps."
        try:
            parse_phases(training["loss_phases"])
        except ValueError as error:
            yield f"the training of {name!r}: " + str(error).replace("\n- ", " ")


def _make_plan(values: dict[str, Any], *, preset: str, output: Path) -> Plan:
    """Build the plan from checked values."""
    chosen = values["presets"][preset]
    factor, sizes = float(chosen.get("steps", 1)), chosen.get("drivers", preset)
    shared = {**values["training"], **chosen.get("training", {})}
    runs = [
        Run(
            name=name,
            base=run.get("base", BASE),
            replica=replica,
            arguments=_scaled({**shared, **run.get("training", {}), "seed": replica}, factor=factor),
            folder=output / "runs" / f"{_folder_name(name)}-{replica}",
        )
        for name, run in values["runs"].items()
        for replica in range(_number_of_replicas(run, chosen))
    ]
    runs.sort(key=lambda run: run.replica)  # one training of every system before the second of any system
    calls = [
        Call(
            driver=call["driver"],
            data=call.get("data"),
            systems=_named_systems(call["systems"]),
            arguments=[*call.get("arguments", []), *call.get(sizes, []), "--preset", sizes],
            over_steps=call.get("over_steps", 0),
            replicas=call.get("replicas"),
        )
        for call in values["calls"]
    ]
    return Plan(values["title"], values["base"], Path(values["data"]), tuple(runs), tuple(calls))


def _number_of_replicas(run: dict[str, Any], chosen: dict[str, Any]) -> int:
    """Return the number of trainings of a run under a preset."""
    replicas: int = run.get("replicas", 1)
    return min(replicas, chosen.get("replicas", replicas))


def _named_systems(systems: list[str]) -> dict[str, str]:
    """Return the run of each row of the table, from items `ROW=RUN`, or `RUN` if the row has its name."""
    pairs = [item.rpartition("=") for item in systems]
    return {row or run: run for row, _, run in pairs}


def _folder_name(name: str) -> str:
    """Convert a name to a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _scaled(arguments: dict[str, Any], *, factor: float) -> dict[str, Any]:
    """Multiply all numbers of steps by a factor, rounded to at least one."""

    def scale(steps: float) -> int:
        return max(1, round(float(steps) * factor))

    phases = [phase.split(":", 1) for phase in arguments["loss_phases"]]
    scaled: dict[str, Any] = {"loss_phases": [f"{scale(int(steps))}:{weights}" for steps, weights in phases]}
    scaled |= {key: scale(arguments[key]) for key in STEPS if key in arguments}
    return {**arguments, **scaled}
