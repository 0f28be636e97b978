"""The plan of a study as a JSON file: which models are trained from which, and which tables are made of them.

A plan names a base model, training arguments that all runs share, the runs, and the calls of the drivers. What a
preset changes is in the plan, too. `read_plan` checks the whole of it before anything runs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.objectives import MOST_STEPS, parse_phases
from trainer.whole_files import parse_json

# Under this name of a shape stand all that it does not name; a question mark marks those that may be missing.
OTHERS = "*"
_NAMES = {dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number"}


def misfits(value: Any, shape: Any, *, where: str) -> Iterator[str]:
    """Yield what in a value is of another shape, as complaints.

    Example:

        >>> list(misfits({"a": [1, "x"]}, {"a": [int], "b": str, "c?": str}, where="plan"))
        ["plan has no 'b'.", "plan.a[1] is 'x'; expected a whole number."]
    """
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    kinds: Any = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or isinstance(value, bool):
        yield f"{where} is {value!r:.60}; expected {_NAMES[kind]}."
    elif isinstance(shape, list):
        for place, one in enumerate(value):
            yield from misfits(one, shape[0], where=f"{where}[{place}]")
    elif isinstance(shape, dict):
        inner = {key.rstrip("?"): of_key for key, of_key in shape.items()}
        for key in shape:
            if not key.endswith("?") and key != OTHERS and key not in value:
                yield f"{where} has no {key!r}."
        for name, one in value.items():
            if name in inner or OTHERS in inner:
                yield from misfits(one, inner.get(name, inner.get(OTHERS)), where=f"{where}.{name}")


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
    """Yield what is wrong with a plan."""
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
            yield f"the run {name!r} starts from {run['base']!r}, which is not a run before it."
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
            yield f"{call['driver']!r} is asked about {system!r}, which is not a run."


def _complaints_about_training(values: dict[str, Any], *, preset: str) -> Iterator[str]:
    """Yield what is wrong with the numbers of the runs under a preset."""
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
    """Return the run of each row of the table, from items `ROW=RUN`, or `RUN` where the row has its name."""
    pairs = [item.rpartition("=") for item in systems]
    return {row or run: run for row, _, run in pairs}


def folder_name(name: str) -> str:
    """Return a name as a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@dataclass(frozen=True)
class Run:
    """A training."""

    name: str
    base: str
    replica: int
    arguments: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Call:
    """A driver and what it is asked about some systems."""

    driver: str
    data: str | None
    systems: dict[str, str]
    arguments: list[str] = field(default_factory=list)
    over_steps: int = 0
    replicas: int | None = None


@dataclass(frozen=True)
class Corpus:
    """A mixture of texts that runs train on, see `mixture.py`."""

    file: Path
    texts: list[str]
    characters: int


@dataclass(frozen=True)
class Plan:
    """What `read_plan` returns; `runs` are in an order in which each comes after its base."""

    title: str
    base: str
    data: Path
    corpora: tuple[Corpus, ...]
    runs: tuple[Run, ...]
    calls: tuple[Call, ...]

    def replicas(self, system: str) -> list[Run]:
        """Return the trainings of a system; none of the base."""
        return [run for run in self.runs if run.name == system]

    def narrowed(self, names: Sequence[str]) -> "Plan":
        """Return the plan with only some runs and those they start from."""
        unknown = sorted(set(names) - {run.name for run in self.runs})
        if unknown:
            raise ValueError(f"The plan has no run {unknown}; choose from {sorted({run.name for run in self.runs})}.")
        kept = set(names)
        for run in reversed(self.runs):
            kept |= {run.base} if run.name in kept else set()
        runs = tuple(run for run in self.runs if run.name in kept)
        calls = []
        for call in self.calls:
            systems = {row: run for row, run in call.systems.items() if run.removesuffix(ADAPTER) in {BASE, *kept}}
            calls += [replace(call, systems=systems)] if systems else []
        corpora = [one for one in self.corpora if any(str(one.file) in run.arguments["train_texts"] for run in runs)]
        return replace(self, runs=runs, calls=tuple(calls), corpora=tuple(corpora))


def read_plan(path: Path, *, preset: str, output: Path) -> Plan:
    """Read a plan and say all that is wrong with it at once."""
    try:
        values = parse_json(path.read_text(encoding="utf-8").replace("{output}", str(output)))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a plan ({error}).") from error
    complaints = list(complaints_about(values, preset=preset))
    if complaints:
        raise ValueError("\n- ".join([f"{str(path)!r} cannot be used:", *complaints]))
    chosen = values["presets"][preset]
    factor, sizes = float(chosen.get("steps", 1)), chosen.get("drivers", preset)
    shared = {**values["training"], **chosen.get("training", {})}
    runs = [
        Run(
            name=name,
            base=run.get("base", BASE),
            replica=replica,
            arguments=_scaled({**shared, **run.get("training", {}), "seed": replica}, factor=factor),
            folder=output / "runs" / f"{folder_name(name)}-{replica}",
        )
        for name, run in values["runs"].items()
        for replica in range(min(run.get("replicas", 1), chosen.get("replicas", run.get("replicas", 1))))
    ]
    calls = [
        Call(
            driver=call["driver"],
            data=call.get("data"),
            systems=named_systems(call["systems"]),
            arguments=[*call.get("arguments", []), *call.get(sizes, []), "--preset", sizes],
            over_steps=call.get("over_steps", 0),
            replicas=call.get("replicas"),
        )
        for call in values["calls"]
    ]
    corpora = [Corpus(output / name, one["texts"], one["characters"]) for name, one in values["corpora"].items()]
    runs.sort(key=lambda run: run.replica)  # one training of every system before the second of any
    return Plan(values["title"], values["base"], Path(values["data"]), tuple(corpora), tuple(runs), tuple(calls))


def _scaled(arguments: dict[str, Any], *, factor: float) -> dict[str, Any]:
    """Multiply all numbers of steps by a factor, rounded to at least one."""

    def scale(steps: float) -> int:
        return max(1, round(float(steps) * factor))

    phases = [phase.split(":", 1) for phase in arguments["loss_phases"]]
    scaled: dict[str, Any] = {"loss_phases": [f"{scale(int(steps))}:{weights}" for steps, weights in phases]}
    scaled |= {key: scale(arguments[key]) for key in STEPS if key in arguments}
    return {**arguments, **scaled}


__all__ = ["ADAPTER", "BASE", "Call", "Plan", "Run", "read_plan"]
