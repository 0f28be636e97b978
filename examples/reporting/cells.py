"""Records as cells of tables: the newest of each cell, mean and spread over replicas and seeds, and its curve."""

import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.evaluate.records import Record, newest, read_records

# How a model was read is a row of its own, not a difference in settings.
READINGS = ("reading", "mode")
ROW_SETTINGS = (*READINGS, "suffix")
# Of a system that was read in several ways, the one that its bare name stands for, as far as a table has it.
USUAL = ("bidirectional", "magnet", "infill", "causal")


@dataclass(frozen=True)
class Value:
    """A figure measured here.

    Args:
        mean (`float`): Over replicas and seeds.
        spread (`float`, *optional*): Standard deviation over them; none of a single one.
        n (`int`): How many of them.
        runs (`tuple[float, ...]`): The mean over seeds of each training; those of the same weights are one.
    """

    mean: float
    spread: float | None
    n: int
    runs: tuple[float, ...]

    @property
    def run_error(self) -> float | None:
        """Standard error of the mean over trainings; none of a single one."""
        return None if len(self.runs) < 2 else statistics.stdev(self.runs) / math.sqrt(len(self.runs))


@dataclass(frozen=True)
class Results:
    """What a folder of records holds.

    Args:
        records (`list[Record]`): The newest of each cell.
        problems (`list[str]`): What was skipped, and why.
        read (`int`): Whole lines, older ones of a cell included.
    """

    records: list[Record]
    problems: list[str] = field(default_factory=list)
    read: int = 0


def read_results(folder: Path, option: str = "--results") -> Results:
    """All tables of a folder.

    Args:
        folder (`Path`): With one `.jsonl` for each table.
        option (`str`, defaults to `"--results"`): What named it, for complaints.

    Raises:
        ValueError: no such folder, no records in it, or a line that is no record.
    """
    if not folder.is_dir():
        raise ValueError(f"`{option}` {str(folder)!r} is no folder. Name the one that the drivers wrote into.")
    records: list[Record] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*.jsonl")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = list(read_records(path))
        problems += [str(one.message).replace(str(path), path.name) for one in caught]
        for record in found:
            if record.table != path.stem:
                problems.append(f"{path.name} has records of the table {record.table!r}; they count for that table.")
            problems += _check_metrics(record, path)
        records += found
    if not records:
        raise ValueError(f"`{option}` {str(folder)!r} has no records (*.jsonl). Run the drivers of the tables first.")
    # One system may be measured in several readings: a cell each.
    readings = dict.fromkeys(reading_of(record) for record in records)
    kept = [one for reading in readings for one in newest([r for r in records if reading_of(r) == reading])]
    return Results(kept, list(dict.fromkeys(problems)), len(records))


def reading_of(record: Record) -> str | None:
    """How the model was read, such as `"left"`; `None` where the record does not say."""
    reading = next((str(record.settings[key]) for key in READINGS if record.settings.get(key)), None)
    # A control that shows the end of another text is no second measurement of the same cell.
    return "other suffix" if record.settings.get("suffix") == "other" else reading


class Cells:
    """The figures of all tables.

    Args:
        records (`Sequence[Record]`): The newest of each cell.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._readings: dict[tuple[str, str], set[str | None]] = defaultdict(set)
        for record in records:
            self._readings[record.table, record.system].add(reading_of(record))
        self._all: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
        for record in sorted(records, key=lambda one: (one.step or 0, one.replica, one.seed)):
            self._all[record.table, self.row_of(record), record.unit].append(record)

    def row_of(self, record: Record) -> str:
        """The system; with how it was read where it was read in several ways."""
        several = len(self._readings[record.table, record.system]) > 1
        return f"{record.system}, {reading_of(record) or 'as it is'}" if several else record.system

    def rows(self, table: str) -> list[str]:
        """The rows of a table, by name."""
        return sorted({row for name, row, _ in self._all if name == table})

    def units(self, table: str) -> list[str]:
        """The units of a table, by name."""
        return sorted({unit for name, _, unit in self._all if name == table})

    def metrics(self, table: str, unit: str) -> list[str]:
        """The metrics that some row has."""
        return sorted(
            {metric for row in self.rows(table) for r in self.final(table, row, unit) for metric in r.metrics}
        )

    def find(self, table: str, names: Iterable[str]) -> str | None:
        """The first of these rows that has records: by its name, by its system and how it was read, or as usual."""
        known = {row: row for row in self.rows(table)}
        for (name, row, _), records in self._all.items():
            if name == table:
                known.setdefault(f"{records[0].system}, {reading_of(records[0])}", row)
        told = [other for name in names for other in (name, *(f"{name}, {reading}" for reading in USUAL))]
        return next((known[name] for name in told if name in known), None)

    def final(self, table: str, row: str, unit: str) -> list[Record]:
        """The records of a cell: those without a step; of a cell that has none of them, those of its last step."""
        records = self._all.get((table, row, unit), [])
        step = (
            None if any(record.step is None for record in records) else max((r.step or 0 for r in records), default=0)
        )
        return [record for record in records if record.step == step]

    def value(self, table: str, row: str, unit: str, metric: str) -> Value | None:
        """The figure of a cell; `None` where it was not measured."""
        return _value([(record, record.metrics.get(metric)) for record in self.final(table, row, unit)])

    def mean(self, table: str, row: str, units: Sequence[str], metric: str) -> Value | None:
        """The mean over several units of the same replica and seed; only where all of them were measured."""
        by_run: dict[tuple[int, int], list[tuple[Record, float]]] = defaultdict(list)
        for unit in units:
            for record in self.final(table, row, unit):
                if _is_figure(record.metrics.get(metric)):
                    by_run[record.replica, record.seed].append((record, record.metrics[metric]))
        whole = [found for found in by_run.values() if len(found) == len(units)]
        return _value([(found[0][0], statistics.fmean(value for _, value in found)) for found in whole])

    def curve(self, table: str, row: str, unit: str, metric: str) -> dict[int, Value]:
        """The figure by training step."""
        steps: dict[int, list[tuple[Record, float | None]]] = defaultdict(list)
        for record in self._all.get((table, row, unit), []):
            if record.step is not None:
                steps[record.step].append((record, record.metrics.get(metric)))
        found = {step: _value(values) for step, values in sorted(steps.items())}
        return {step: value for step, value in found.items() if value is not None}

    def points(self, table: str, row: str, unit: str, metric: str) -> list[tuple[int, float]]:
        """Step and figure of each single measurement, all replicas and seeds."""
        records = self._all.get((table, row, unit), [])
        return [
            (r.step, r.metrics[metric]) for r in records if r.step is not None and _is_figure(r.metrics.get(metric))
        ]


def _value(found: Sequence[tuple[Record, float | None]]) -> Value | None:
    """Mean and spread of what was measured; trainings that gave the same weights count once."""
    values: list[float] = []
    runs: dict[object, list[float]] = defaultdict(list)
    for record, value in found:
        if value is None or not _is_figure(value):
            continue
        values.append(float(value))
        runs[record.model.get("weights") or ("replica", record.replica)].append(float(value))
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    means = tuple(statistics.fmean(one) for one in runs.values())
    return Value(statistics.fmean(values), spread, len(values), means)


def _is_figure(value: object) -> bool:
    """A number that can be shown and averaged."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_metrics(record: Record, path: Path) -> list[str]:
    """What of a record cannot be shown."""
    where = f"{path.name}, {record.system}, {record.unit}"
    if not (isinstance(record.metrics, dict) and isinstance(record.settings, dict) and isinstance(record.model, dict)):
        raise ValueError(f"{where}: `metrics`, `settings` and `model` of a record must be objects. Remove the line.")
    return [
        f"{where}: {metric} is {value!r}, which is no finite number; it is left out."
        for metric, value in record.metrics.items()
        if not _is_figure(value)
    ]


__all__ = ["Cells", "READINGS", "Results", "Value", "read_results", "reading_of"]
