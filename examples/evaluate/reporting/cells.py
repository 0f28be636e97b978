"""Aggregate records to cells of tables: means over trainings with their errors, ratios of perplexities, and curves."""

import json
import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from examples.evaluate.parts.records import Record, newest, read_records
from trainer.metrics import perplexity_ratio

# The reading of a model makes a row of its own, not a difference in settings.
READINGS = ("reading", "mode")
# Digests of a training's log differ between rows.
NOT_COMPARED = (*READINGS, "suffix", "log")
# The reading that a system's bare name denotes if it was measured in several readings.
USUAL = ("bidirectional", "magnet", "infill", "causal")
# Systems that were not trained here.
UNTRAINED = ("base", "Echo", "MiniLM", "unidirectional", "zero-shot", "two-shot", "five-shot")


@dataclass(frozen=True)
class Value:
    """A figure: mean, mean of each training, and standard error over trainings and, where known, over texts."""

    mean: float
    runs: tuple[float, ...]
    error: float = 0.0
    is_trained: bool = True

    @property
    def spread(self) -> float | None:
        """Return the standard deviation over trainings; `None` for a single one."""
        return statistics.stdev(self.runs) if len(self.runs) > 1 else None


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


def is_untrained(row: str) -> bool:
    """Return whether the weights of a row were not trained here."""
    return row.split(",")[0] in UNTRAINED


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
        value = _value([(run[0], statistics.fmean(record.metrics[metric] for record in run)) for run in whole])
        errors = [math.hypot(*(record.metrics.get("stderr", 0.0) for record in run)) / len(units) for run in whole]
        return value and replace(value, error=math.hypot(value.error, statistics.fmean(errors)))

    def ratio(self, table: str, row: str, reference: str | None, unit: str) -> Value | None:
        """Divide a perplexity by that of another row.

        Where both have recorded the losses of the same texts, the error is that of the paired differences, and of the
        trainings; elsewhere only that of the trainings.
        """
        others = self._with_perplexity(table, str(reference), unit)
        level = _value([(record, record.metrics["perplexity"]) for record in others])
        if level is None or not level.mean:
            return None
        partners = {record.replica: record for record in reversed(others)}
        ratios, errors = [], []
        for record in self._with_perplexity(table, row, unit):
            try:
                partner = partners.get(record.replica, others[0])
                ratio, error = perplexity_ratio(record.by_text, partner.by_text)
            except ValueError:  # other texts, or records without the loss of each text
                ratio = record.metrics["perplexity"] / level.mean
                error = ratio * level.error / level.mean
            ratios.append((record, ratio))
            errors.append(error)
        value = _value(ratios)
        return value and replace(value, error=math.hypot(value.error, statistics.fmean(errors)))

    def _with_perplexity(self, table: str, row: str, unit: str) -> list[Record]:
        return [record for record in self.final(table, row, unit) if _is_figure(record.metrics.get("perplexity"))]

    def points(self, table: str, row: str, unit: str, metric: str) -> list[tuple[Record, float]]:
        """Return single measurements over training steps, of all replicas and seeds."""
        records = self._all.get((table, row, unit), [])
        return [
            (record, record.metrics[metric])
            for record in records
            if record.step is not None and _is_figure(record.metrics.get(metric))
        ]

    def curve(self, table: str, row: str, unit: str, metric: str) -> dict[int, Value]:
        """Return the figure by training step; the last one is that of the table."""
        points = self.points(table, row, unit, metric)
        steps = sorted({record.step or 0 for record, _ in points})
        values = {step: _value([point for point in points if point[0].step == step]) for step in steps}
        final = [record for record in self.final(table, row, unit) if record.step is None]
        if steps and final:
            ends = {record.model.get("weights") for record, _ in points if record.step == steps[-1]}
            # A curve that stops before its last weights ends where the longest one does.
            last = max(record.step or 0 for key, group in self._all.items() if key[0] == table for record in group)
            is_whole = ends & {record.model.get("weights") for record in final}
            values[steps[-1] if is_whole else last] = self.value(table, row, unit, metric)
        return {step: value for step, value in values.items() if value is not None}


def _value(points: Sequence[tuple[Record, float]]) -> Value | None:
    """Return mean and error; measurements of the same weights count once."""
    if not points:
        return None
    is_trained = not is_untrained(points[0][0].system)
    runs: dict[object, list[float]] = defaultdict(list)
    for record, value in points:
        runs[is_trained and (record.model.get("weights") or record.replica)].append(value)
    means = tuple(map(statistics.fmean, runs.values()))
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return Value(statistics.fmean(value for _, value in points), means, error, is_trained)


def _is_figure(value: object) -> bool:
    """Return whether a value can be shown and averaged."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def differing_settings(records: Sequence[Record], name_of: Callable[[Record], str]) -> dict[str, str]:
    """Return the settings in which rows of one unit differ, except for readings, with their values and rows."""
    rows: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    units: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for record in records:
        for key in sorted(record.settings.keys() - set(NOT_COMPARED)):
            text = _written(record.settings[key])
            rows[key][text].add(name_of(record))
            units[record.table, record.unit, key].add(text)
    return {
        key: "; ".join(
            f"{text} ({', '.join(sorted(names)) if len(names) < 4 else f'{len(names)} rows'})"
            for text, names in sorted(rows[key].items())
        )
        for key in sorted({key for (_, _, key), texts in units.items() if len(texts) > 1})
    }


def list_counts(records: Sequence[Record]) -> list[str]:
    """List the counts of sentences, tokens, ... of each unit over all rows, except for those of subjects."""
    counts: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        for key, count in record.counts.items():
            if "," not in key:
                counts[record.unit][key.replace("_", " ")].add(count)
    texts = []
    for unit, keys in sorted(counts.items()):
        parts = [
            f"{' or '.join(f'{count:,}' for count in sorted(values))} {key}" for key, values in sorted(keys.items())
        ]
        texts.append(f"{unit}: {', '.join(parts)}")
    return texts


def _written(value: object) -> str:
    """Format the value of a setting."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 60 else f"{text[:59]}…"
