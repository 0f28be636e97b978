"""Under what conditions records were made: their settings and counts, and where those of one table are not alike."""

import json
from collections import defaultdict
from collections.abc import Sequence

from examples.evaluate.records import Record
from examples.reporting.cells import READINGS


def settings_warnings(records: Sequence[Record]) -> list[str]:
    """In what the rows of one unit were not measured alike, presets first; how they were read aside."""
    told = []
    for key, values in _differences(records).items():
        whose = "; ".join(f"{value}: {', '.join(sorted(systems))}" for value, systems in sorted(values.items()))
        what = "Mixed presets" if key == "preset" else f"The rows have different settings: {key}"
        told.append((key != "preset", f"{what} ({whose})."))
    return [text for _, text in sorted(told)]


def _differences(records: Sequence[Record]) -> dict[str, dict[str, set[str]]]:
    """Settings that differ within a unit, with the systems of each value; presets may not differ in a whole table."""
    found: dict[str, dict[str, set[str]]] = {}
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.table, record.unit].append(record)
    for group in [*groups.values(), list(records)]:
        keys = {"preset"} if len(group) == len(records) and len(groups) > 1 else {k for r in group for k in r.settings}
        for key in sorted(keys - set(READINGS)):
            values: dict[str, set[str]] = defaultdict(set)
            for record in group:
                values[_told(record.settings.get(key, "not said"))].add(record.system)
            if len(values) > 1:
                for value, systems in values.items():
                    found.setdefault(key, {}).setdefault(value, set()).update(systems)
    return found


def same_weights(records: Sequence[Record]) -> list[str]:
    """Replicas that are no trainings of their own."""
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
    """Every setting with its value, or with its values and where they hold."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        for key, value in record.settings.items():
            found[key][_told(value)].add(record.unit)
    told = []
    for key, values in sorted(found.items()):
        if len(values) == 1:
            told.append(f"{key}: {next(iter(values))}")
        else:
            parts = [f"{value} ({', '.join(sorted(units))})" for value, units in sorted(values.items())]
            told.append(f"{key}: {'; '.join(parts)}")
    return told


def list_counts(records: Sequence[Record]) -> list[str]:
    """On how much each unit was measured, over all rows."""
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


def _told(value: object) -> str:
    """A setting's value as text."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, sort_keys=True)


__all__ = ["list_counts", "list_settings", "same_weights", "settings_warnings"]
