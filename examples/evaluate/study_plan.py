"""The plan of a study as a JSON file: which models are trained from which, and which tables are made of them.

A plan names a base model, training arguments that all runs share, the runs, and the calls of the drivers. What a
preset changes stands in the plan, too. `read_plan` checks the whole of it before anything runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from examples.evaluate.plan_checks import ADAPTER, BASE, STEPS, complaints_about, folder_name, named_systems
from trainer.whole_files import parse_json


@dataclass(frozen=True)
class Run:
    """A training.

    Args:
        name (`str`): The system that comes of it.
        base (`str`): `"base"`, or the run it starts from.
        replica (`int`): Its training seed.
        arguments (`dict`): Of `adapt.py`, the shared ones included; without the model and the folders.
        folder (`Path`): Where it writes.
    """

    name: str
    base: str
    replica: int
    arguments: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Call:
    """A driver and what it is asked about some systems.

    Args:
        driver (`str`): Name of a script in this folder.
        data (`str`, *optional*): Sub-folder of the plan's data.
        systems (`dict[str, str]`): Row of the table -> `"base"` or a run; with `"@adapter"` behind it, its adapter.
        arguments (`list[str]`): Further options; `{base}` in them is the base model.
        over_steps (`int`): Ask about every so many of the runs' checkpoints, the last one among them; 0: about their
            result.
        replicas (`int`, *optional*): Ask about so many of a run's replicas at most; by default about all.
    """

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
    """What `read_plan` returns; `runs` are in an order in which each comes behind its base."""

    title: str
    base: str
    data: Path
    corpora: tuple[Corpus, ...]
    runs: tuple[Run, ...]
    calls: tuple[Call, ...]

    def replicas(self, system: str) -> list[Run]:
        """The trainings of a system; none of the base."""
        return [run for run in self.runs if run.name == system]

    def narrowed(self, names: Sequence[str]) -> "Plan":
        """The plan with some runs alone and those they start from; the drivers are asked about these and the base.

        Raises:
            ValueError: a name that no run has.
        """
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

    def asking(self, drivers: Sequence[str] | None, *, curves: bool) -> "Plan":
        """The plan with the calls of some drivers alone.

        Args:
            drivers (sequence of `str`, *optional*): Their names; all of them by default.
            curves (`bool`): Whether calls over training steps are among them.

        Raises:
            ValueError: a driver that the plan does not call.
        """
        called = {call.driver for call in self.calls}
        unknown = sorted(set(drivers or ()) - called)
        if unknown:
            raise ValueError(f"The plan calls no driver {unknown}; choose from {sorted(called)}.")
        wanted = called if drivers is None else set(drivers)
        calls = [call for call in self.calls if call.driver in wanted and (curves or not call.over_steps)]
        return replace(self, calls=tuple(calls))


def read_plan(path: Path, *, preset: str, output: Path) -> Plan:
    """Read a plan and say all that is wrong with it at once.

    Args:
        path (`Path`): JSON with `title`, `base`, `data`, `corpora`, `training`, `runs`, `calls` and `presets`; keys
            that begin with an underscore are comments, `{output}` is the folder of the study. The
            `systems` of a call are `RUN` or `ROW=RUN`; it may have more arguments for a preset under its name.
        preset (`str`): One of `presets`: `steps`, a factor of all steps; `replicas`, the most of a run; `training`,
            arguments that replace shared ones; `drivers`, the drivers' preset where it is not of the same name.
        output (`Path`): Folder of the study; runs write below it.

    Raises:
        ValueError: a file that cannot be read, or listing unknown keys, runs, drivers and presets.
    """
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
    """Arguments with all numbers of steps multiplied, rounded to at least one."""

    def scale(steps: float) -> int:
        return max(1, round(float(steps) * factor))

    phases = [phase.split(":", 1) for phase in arguments["loss_phases"]]
    scaled: dict[str, Any] = {"loss_phases": [f"{scale(int(steps))}:{weights}" for steps, weights in phases]}
    scaled |= {key: scale(arguments[key]) for key in STEPS if key in arguments}
    return {**arguments, **scaled}


__all__ = ["ADAPTER", "BASE", "Call", "Corpus", "Plan", "Run", "read_plan"]
