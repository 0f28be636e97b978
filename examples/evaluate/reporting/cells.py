"""Aggregate records to cells of tables: means and spreads over replicas and seeds, curves, differing settings."""

import json
import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.evaluate.parts.records import Record, newest, read_records

# The reading of a model makes a row of its own, not a difference in settings.
READINGS = ("reading", "mode")
# Digests of a training's log differ between rows.
NOT_COMPARED = (*READINGS, "suffix", "log")
# The reading that a system's bare name denotes if it was measured in several readings.
USUAL = ("bidirectional", "magnet", "infill", "causal")


@dataclass(frozen=True)
class Value:
    """A measured figure: mean, standard deviation over `n` measurements, and the mean of each training."""

    mean: float
    spread: float | None
    n: int
    runs: tuple[float, ...]

    @property
    def run_error(self) -> float | None:
        """Return the standard error of the mean over trainings; `None` for a single training."""
        return None if len(self.runs) < 2 else statistics.stdev(self.runs) / math.sqrt(len(self.runs))


@dataclass(frozen=True)
class Results:
    """The newest record of each cell of a folder, and the problems of its files."""

    records: list[Record]
    problems: list[str] = field(default_factory=list)


def read_results(folder: Path, option: str = "--results") -> Results:
    """Read all tables of a folder."""
    records: list[Record] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*.jsonl")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lines = list(read_records(path))
        problems += [str(warning.message).replace(str(path), path.name) for warning in caught]
        for record in lines:
            problems += [
                f"{path.name}, {record.system}, {record.unit}: {metric} is {value!r}, not a finite number; left out."
                for metric, value in record.metrics.items()
                if not _is_figure(value)
            ]
        records += lines
    if not records:
        raise ValueError(f"`{option}` {str(folder)!r} has no records (*.jsonl). Run the drivers of the tables first.")
    # A system that is measured in several readings has a cell for each.
    readings = dict.fromkeys(reading_of(record) for record in records)
    kept = [record for reading in readings for record in newest([r for r in records if reading_of(r) == reading])]
    return Results(kept, list(dict.fromkeys(problems)))


def reading_of(record: Record) -> str | None:
    """Return the reading of a record, such as `"left"`; `None` if it has none."""
    # A control with another text's end is not a second measurement of the same cell.
    if record.settings.get("suffix") == "other":
        return "other suffix"
    return next((str(record.settings[key]) for key in READINGS if record.settings.get(key)), None)


class Cells:
    """Look up the figures of all tables by row, unit and metric."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._readings: dict[tuple[str, str], set[str | None]] = defaultdict(set)
        for record in records:
            self._readings[record.table, record.system].add(reading_of(record))
        self._all: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
        for record in sorted(records, key=lambda r: (r.step or 0, r.replica, r.seed)):
            self._all[record.table, self.row_of(record), record.unit].append(record)

    def row_of(self, record: Record) -> str:
        """Return the row's name: the system, with its reading if it was measured in several."""
        has_several = len(self._readings[record.table, record.system]) > 1
        return f"{record.system}, {reading_of(record) or 'as it is'}" if has_several else record.system

    def rows(self, table: str) -> list[str]:
        """Return the row names of a table."""
        return sorted({row for name, row, _ in self._all if name == table})

    def units(self, table: str) -> list[str]:
        """Return the unit names of a table."""
        return sorted({unit for name, _, unit in self._all if name == table})

    def metrics(self, table: str, unit: str) -> list[str]:
        """Return the metrics that occur in some row."""
        records = [record for row in self.rows(table) for record in self.final(table, row, unit)]
        return sorted({metric for record in records for metric in record.metrics})

    def find(self, table: str, names: Iterable[str]) -> str | None:
        """Return the first of these rows that has records, by its name or by its system and reading."""
        known = {row: row for row in self.rows(table)}
        for (name, row, _), records in self._all.items():
            if name == table:
                known.setdefault(f"{records[0].system}, {reading_of(records[0])}", row)
        spelled = [other for name in names for other in (name, *(f"{name}, {reading}" for reading in USUAL))]
        return next((known[name] for name in spelled if name in known), None)

    def final(self, table: str, row: str, unit: str) -> list[Record]:
        """Return the records of a cell: those without a step, else those of its last step."""
        records = self._all.get((table, row, unit), [])
        plain = [record for record in records if record.step is None]
        last = max((record.step or 0 for record in records), default=0)
        return plain or [record for record in records if record.step == last]

    def value(self, table: str, row: str, unit: str, metric: str) -> Value | None:
        """Return the figure of a cell, or `None` if it was not measured."""
        return self.mean(table, row, [unit], metric)

    def mean(self, table: str, row: str, units: Sequence[str], metric: str) -> Value | None:
        """Return the mean over several units of the same replica and seed, only if all of them were measured."""
        by_run: dict[tuple[int, int], list[Record]] = defaultdict(list)
        for unit in units:
            for record in self.final(table, row, unit):
                if _is_figure(record.metrics.get(metric)):
                    by_run[record.replica, record.seed].append(record)
        whole = [run for run in by_run.values() if len(run) == len(units)]
        return _value([(run[0], statistics.fmean(record.metrics[metric] for record in run)) for run in whole])

    def points(self, table: str, row: str, unit: str, metric: str) -> list[tuple[Record, float]]:
        """Return single measurements over training steps, of all replicas and seeds."""
        records = self._all.get((table, row, unit), [])
        return [
            (record, record.metrics[metric])
            for record in records
            if record.step is not None and _is_figure(record.metrics.get(metric))
        ]

    def curve(self, table: str, row: str, unit: str, metric: str) -> dict[int, Value]:
        """Return the figure by training step."""
        points = self.points(table, row, unit, metric)
        steps = sorted({record.step or 0 for record, _ in points})
        values = {step: _value([point for point in points if point[0].step == step]) for step in steps}
        return {step: value for step, value in values.items() if value is not None}


def _value(points: Sequence[tuple[Record, float]]) -> Value | None:
    """Return mean and spread; trainings that gave the same weights count once."""
    if not points:
        return None
    runs: dict[object, list[float]] = defaultdict(list)
    for record, value in points:
        runs[record.model.get("weights") or ("replica", record.replica)].append(value)
    values = [value for _, value in points]
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Value(statistics.fmean(values), spread, len(values), tuple(map(statistics.fmean, runs.values())))


def _is_figure(value: object) -> bool:
    """Return whether a value can be shown and averaged."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def settings_warnings(records: Sequence[Record], name_of: Callable[[Record], str]) -> list[str]:
    """Summarize how the settings of the rows of one unit differ, except for readings."""
    units: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        units[record.table, record.unit].append(record)
    settings: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for group in units.values():
        for key in sorted({key for record in group for key in record.settings} - set(NOT_COMPARED)):
            values: dict[str, set[str]] = defaultdict(set)
            for record in group:
                values[_written(record.settings.get(key, "not given"))].add(name_of(record))
            if len(values) > 1:
                for value, rows in values.items():
                    settings[key][value] |= rows
    texts = []
    for key, values in settings.items():
        parts = [
            f"{value if len(value) <= 40 else f'{value[:39]}…'}: "
            + (" and ".join(sorted(rows)) if len(rows) < 3 else f"{len(rows)} rows")
            for value, rows in sorted(values.items())
        ]
        shown = "; ".join(parts) if len(parts) <= 4 else f"{len(parts)} values"
        texts.append(f"The rows have different settings: {key} ({shown}).")
    return texts


def list_settings(records: Sequence[Record], name_of: Callable[[Record], str]) -> list[str]:
    """List every setting with its value, or with its values and their rows and units if they differ."""
    settings: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        for key, value in record.settings.items():
            settings[key][_written(value)].add(f"{name_of(record)} on {record.unit}")
    texts = []
    for key, values in sorted(settings.items()):
        parts = [f"{value} ({', '.join(sorted(places))})" for value, places in sorted(values.items())]
        texts.append(f"{key}: {'; '.join(parts) if len(values) > 1 else next(iter(values))}")
    return texts


def list_counts(records: Sequence[Record]) -> list[str]:
    """List the counts of sentences, tokens, ... of each unit over all rows."""
    counts_by_unit: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for key, count in record.counts.items():
            counts_by_unit[record.unit][key].append(count)
    texts = []
    for unit, counts in sorted(counts_by_unit.items()):
        parts = [
            f"{key} {min(values):,}" + (f" to {max(values):,}, differing by row" if len(set(values)) > 1 else "")
            for key, values in sorted(counts.items())
        ]
        texts.append(f"{unit}: {'; '.join(parts)}")
    return texts


def _written(value: object) -> str:
    """Format the value of a setting."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, sort_keys=True)
