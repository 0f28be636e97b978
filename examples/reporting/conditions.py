"""Under what conditions records were made: their settings and counts, and where those of one table are not alike."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from examples.evaluate.records import Record
from examples.reporting.cells import ROW_SETTINGS

# Digests of what was read; they differ from row to row by nature.
DIGESTS = ("log",)
# A note names this many rows, values and characters; the rest is in the full list.
NAMED_ROWS, NAMED_VALUES, NAMED_CHARACTERS = 2, 4, 40
NOT_SAID = "not said"
Namer = Callable[[Record], str]
Differences = Mapping[str, Mapping[str, set[str]]]


def settings_warnings(records: Sequence[Record], name_of: Namer) -> list[str]:
    """In what the rows of one unit were not measured alike, in short, presets first; how they were read aside.

    Args:
        records (`Sequence[Record]`): Those of one table, or of one comparison.
        name_of (`Callable[[Record], str]`): The row of a record.
    """
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
    """The same in full: one line for each value, with all of its rows."""
    return [
        f"{key} {_quoted(value)}: {'; '.join(sorted(rows))}"
        for key, values in _differences(records, name_of).items()
        for value, rows in sorted(values.items())
    ]


def _differences(records: Sequence[Record], name_of: Namer) -> Differences:
    """Settings that differ within a unit, with the rows of each value; presets may not differ in a whole table."""
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
    """A value that may hold spaces and colons of its own, as far as there is room for it."""
    short = value if most is None or len(value) <= most else f"{value[: most - 1]}…"
    return short if value == NOT_SAID or " " not in value else f"“{short}”"


def _count(rows: set[str]) -> str:
    """The names of a few rows, of more their number."""
    return " and ".join(sorted(rows)) if len(rows) <= NAMED_ROWS else f"{len(rows)} rows"


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


def setting_told(value: object) -> str:
    """A setting's value as text."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, sort_keys=True)


__all__ = [
    "NOT_SAID",
    "Namer",
    "list_counts",
    "list_differences",
    "list_settings",
    "same_weights",
    "setting_told",
    "settings_warnings",
]
