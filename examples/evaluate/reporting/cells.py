"""Records as cells of tables: means and spreads over replicas and seeds, curves, differing conditions."""

import json
import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """A figure measured here."""

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
    """What a folder of records holds."""

    records: list[Record]
    problems: list[str] = field(default_factory=list)
    read: int = 0


def read_results(folder: Path, option: str = "--results") -> Results:
    """Return all tables of a folder."""
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
    """Return how the model was read, such as `"left"`; `None` where the record does not say."""
    reading = next((str(record.settings[key]) for key in READINGS if record.settings.get(key)), None)
    # A control that shows the end of another text is no second measurement of the same cell.
    return "other suffix" if record.settings.get("suffix") == "other" else reading


class Cells:
    """The figures of all tables."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._readings: dict[tuple[str, str], set[str | None]] = defaultdict(set)
        for record in records:
            self._readings[record.table, record.system].add(reading_of(record))
        self._all: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
        for record in sorted(records, key=lambda one: (one.step or 0, one.replica, one.seed)):
            self._all[record.table, self.row_of(record), record.unit].append(record)

    def row_of(self, record: Record) -> str:
        """Return the system; with how it was read where it was read in several ways."""
        several = len(self._readings[record.table, record.system]) > 1
        return f"{record.system}, {reading_of(record) or 'as it is'}" if several else record.system

    def rows(self, table: str) -> list[str]:
        """Return the rows of a table, by name."""
        return sorted({row for name, row, _ in self._all if name == table})

    def units(self, table: str) -> list[str]:
        """Return the units of a table, by name."""
        return sorted({unit for name, _, unit in self._all if name == table})

    def metrics(self, table: str, unit: str) -> list[str]:
        """Return the metrics that some row has."""
        return sorted(
            {metric for row in self.rows(table) for r in self.final(table, row, unit) for metric in r.metrics}
        )

    def find(self, table: str, names: Iterable[str]) -> str | None:
        """Find the first of these rows that has records, by its name or by its system and reading."""
        known = {row: row for row in self.rows(table)}
        for (name, row, _), records in self._all.items():
            if name == table:
                known.setdefault(f"{records[0].system}, {reading_of(records[0])}", row)
        told = [other for name in names for other in (name, *(f"{name}, {reading}" for reading in USUAL))]
        return next((known[name] for name in told if name in known), None)

    def final(self, table: str, row: str, unit: str) -> list[Record]:
        """Return the records of a cell: those without a step, else those of its last step."""
        records = self._all.get((table, row, unit), [])
        step = (
            None if any(record.step is None for record in records) else max((r.step or 0 for r in records), default=0)
        )
        return [record for record in records if record.step == step]

    def value(self, table: str, row: str, unit: str, metric: str) -> Value | None:
        """Return the figure of a cell; `None` where it was not measured."""
        return _value([(record, record.metrics.get(metric)) for record in self.final(table, row, unit)])

    def mean(self, table: str, row: str, units: Sequence[str], metric: str) -> Value | None:
        """Return the mean over several units of the same replica and seed; only where all of them were measured."""
        by_run: dict[tuple[int, int], list[tuple[Record, float]]] = defaultdict(list)
        for unit in units:
            for record in self.final(table, row, unit):
                if _is_figure(record.metrics.get(metric)):
                    by_run[record.replica, record.seed].append((record, record.metrics[metric]))
        whole = [found for found in by_run.values() if len(found) == len(units)]
        return _value([(found[0][0], statistics.fmean(value for _, value in found)) for found in whole])

    def curve(self, table: str, row: str, unit: str, metric: str) -> dict[int, Value]:
        """Return the figure by training step."""
        steps: dict[int, list[tuple[Record, float | None]]] = defaultdict(list)
        for record in self._all.get((table, row, unit), []):
            if record.step is not None:
                steps[record.step].append((record, record.metrics.get(metric)))
        found = {step: _value(values) for step, values in sorted(steps.items())}
        return {step: value for step, value in found.items() if value is not None}

    def points(self, table: str, row: str, unit: str, metric: str) -> list[tuple[int, float]]:
        """Return step and figure of each single measurement, all replicas and seeds."""
        records = self._all.get((table, row, unit), [])
        return [
            (r.step, r.metrics[metric]) for r in records if r.step is not None and _is_figure(r.metrics.get(metric))
        ]


def _value(found: Sequence[tuple[Record, float | None]]) -> Value | None:
    """Return mean and spread of what was measured; trainings that gave the same weights count once."""
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
    """Return a number that can be shown and averaged."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_metrics(record: Record, path: Path) -> list[str]:
    """Return what of a record cannot be shown."""
    where = f"{path.name}, {record.system}, {record.unit}"
    if not (isinstance(record.metrics, dict) and isinstance(record.settings, dict) and isinstance(record.model, dict)):
        raise ValueError(f"{where}: `metrics`, `settings` and `model` of a record must be objects. Remove the line.")
    return [
        f"{where}: {metric} is {value!r}, which is no finite number; it is left out."
        for metric, value in record.metrics.items()
        if not _is_figure(value)
    ]


# Digests of what was read; they differ from row to row by nature.
DIGESTS = ("log",)
# A note names this many rows, values and characters; the rest is in the full list.
NAMED_ROWS, NAMED_VALUES, NAMED_CHARACTERS = 2, 4, 40
NOT_SAID = "not said"
Namer = Callable[[Record], str]
Differences = Mapping[str, Mapping[str, set[str]]]


def settings_warnings(records: Sequence[Record], name_of: Namer) -> list[str]:
    """Say in short how the measurements of the rows of one unit differ, presets first, readings left out."""
    told = []
    for key, values in _differences(records, name_of).items():
        whose = "; ".join(
            f"{_quoted(value, NAMED_CHARACTERS)}: {_count(rows)}" for value, rows in sorted(values.items())
        )
        what = "Mixed presets" if key == "preset" else f"The rows have different settings: {key}"
        told.append(
            (key != "preset", f"{what} ({whose if len(values) <= NAMED_VALUES else f'{len(values)} values'}).")
        )
    return [text for _, text in sorted(told)]


def list_differences(records: Sequence[Record], name_of: Namer) -> list[str]:
    """Return the same in full: one line for each value, with all of its rows."""
    return [
        f"{key} {_quoted(value)}: {'; '.join(sorted(rows))}"
        for key, values in _differences(records, name_of).items()
        for value, rows in sorted(values.items())
    ]


def _differences(records: Sequence[Record], name_of: Namer) -> Differences:
    """Return settings that differ within a unit, with the rows of each value; presets may not differ in a table."""
    found: dict[str, dict[str, set[str]]] = {}
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.table, record.unit].append(record)
    for group in [*groups.values(), list(records)]:
        keys = {"preset"} if len(group) == len(records) and len(groups) > 1 else {k for r in group for k in r.settings}
        for key in sorted(keys - {*ROW_SETTINGS, *DIGESTS}):
            values: dict[str, set[str]] = defaultdict(set)
            for record in group:
                values[setting_told(record.settings.get(key, NOT_SAID))].add(name_of(record))
            if len(values) > 1:
                for value, rows in values.items():
                    found.setdefault(key, {}).setdefault(value, set()).update(rows)
    return found


def _quoted(value: str, most: int | None = None) -> str:
    """Return a value that may hold spaces and colons of its own, as far as there is room for it."""
    short = value if most is None or len(value) <= most else f"{value[: most - 1]}…"
    return short if value == NOT_SAID or " " not in value else f"“{short}”"


def _count(rows: set[str]) -> str:
    """Return the names of a few rows, of more their number."""
    return " and ".join(sorted(rows)) if len(rows) <= NAMED_ROWS else f"{len(rows)} rows"


def same_weights(records: Sequence[Record]) -> list[str]:
    """Report replicas that are not trainings of their own."""
    replicas: dict[tuple[str, str], set[int]] = defaultdict(set)
    for record in records:
        if record.model.get("weights"):
            replicas[record.system, str(record.model["weights"])].add(record.replica)
    return [
        f"Replicas {', '.join(map(str, sorted(found)))} of {system} have the same weights; they are one training."
        for (system, _), found in sorted(replicas.items())
        if len(found) > 1
    ]


def list_settings(records: Sequence[Record]) -> list[str]:
    """Return every setting with its value, or with its values and where they hold."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        for key, value in record.settings.items():
            found[key][setting_told(value)].add(record.unit)
    told = []
    for key, values in sorted(found.items()):
        if len(values) == 1:
            told.append(f"{key}: {next(iter(values))}")
        else:
            parts = [f"{value} ({', '.join(sorted(units))})" for value, units in sorted(values.items())]
            told.append(f"{key}: {'; '.join(parts)}")
    return told


def list_counts(records: Sequence[Record]) -> list[str]:
    """Say on how much each unit was measured, over all rows."""
    found: dict[str, dict[str, set[float]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        for key, count in record.counts.items():
            found[record.unit][key].add(count)
    told = []
    for unit, counts in sorted(found.items()):
        parts = []
        for key, values in sorted(counts.items()):
            least, most = min(values), max(values)
            parts.append(f"{key} {least:,}" if least == most else f"{key} {least:,} to {most:,}, differing by row")
        told.append(f"{unit}: {'; '.join(parts)}")
    return told


def setting_told(value: object) -> str:
    """Return a setting's value as text."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, sort_keys=True)


__all__ = [
    "Cells", "NOT_SAID", "ROW_SETTINGS", "Results", "Value", "list_counts", "list_differences",
    "list_settings", "read_results", "reading_of", "same_weights", "setting_told", "settings_warnings",
]  # fmt: skip
