"""Load the numbers of the paper's tables from `paper_values.json`, each row with our corresponding row."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_suffix(".json")


class Column(NamedTuple):
    """Locate one figure of a table: its records and their metric."""

    unit: str
    metric: str
    table: str


@dataclass(frozen=True)
class PaperRow:
    """One row as printed."""

    name: str
    answers: tuple[str, ...]
    values: dict[Column, float]


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper."""

    name: str
    number: str
    title: str
    unit: str
    higher_is_better: bool
    columns: tuple[Column, ...]
    rows: tuple[PaperRow, ...]
    base: str | None = None
    means: dict[str, list[str]] = field(default_factory=dict)
    note: str = ""

    def row(self, name: str) -> PaperRow:
        """Return the row of a name."""
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True)
class PaperValues:
    """All tables and their source."""

    source: str
    model: str
    tables: dict[str, PaperTable]


def read_paper_values() -> PaperValues:
    """Read the paper's numbers."""
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    tables = [_table(entry) for entry in content["tables"]]
    return PaperValues(content["source"], content["model"], {table.name: table for table in tables})


def _table(entry: dict[str, Any]) -> PaperTable:
    """Parse one table of the file."""
    name, better = entry.pop("table"), entry.pop("better")
    columns = tuple(Column(unit, metric, *(table or [name])) for unit, metric, *table in entry.pop("columns"))
    rows = tuple(
        PaperRow(name=row["name"], answers=tuple(row["answers"]), values=_values(columns, row["values"]))
        for row in entry.pop("rows")
    )
    return PaperTable(name=name, higher_is_better=better == "higher", columns=columns, rows=rows, **entry)


def _values(columns: Sequence[Column], values: Sequence[float | None]) -> dict[Column, float]:
    return {column: float(value) for column, value in zip(columns, values, strict=True) if value is not None}
