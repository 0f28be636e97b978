"""The numbers of the paper's tables, from `paper_values.json`, with the row of ours that each row answers to."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_suffix(".json")


class Column(NamedTuple):
    """One figure of a table: where its records are and which of their metrics it is."""

    unit: str
    metric: str
    table: str

    @property
    def title(self) -> str:
        """As the head of a column."""
        return f"{self.unit} {self.metric}"


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
    digits: int = 2
    gain_is_share: bool = False
    means: dict[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""

    def row(self, name: str) -> PaperRow:
        """Return the row of a name."""
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True)
class PaperValues:
    """All tables, and what they are from."""

    source: str
    model: str
    tables: dict[str, PaperTable]


def read_paper_values(path: Path = FILE) -> PaperValues:
    """Read and check the paper's numbers."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    tables, complaints = {}, []
    for entry in content["tables"]:
        table = _table(entry)
        complaints += [f"{table.name}: {complaint}" for complaint in _complaints(entry, table)]
        if table.name in tables:
            complaints.append(f"{table.name}: is there twice.")
        tables[table.name] = table
    if complaints:
        raise ValueError("\n- ".join([f"{str(path)!r} cannot be used; correct it:", *complaints]))
    return PaperValues(source=content["source"], model=content["model"], tables=tables)


def _table(entry: dict[str, Any]) -> PaperTable:
    """Return one table of the file."""
    columns = tuple(Column(unit, metric, *(table or [entry["table"]])) for unit, metric, *table in entry["columns"])
    rows = tuple(
        PaperRow(
            name=row["name"],
            answers=tuple(row["answers"]),
            values={c: float(v) for c, v in zip(columns, row["values"], strict=False) if v is not None},
        )
        for row in entry["rows"]
    )
    return PaperTable(
        name=entry["table"],
        number=entry["number"],
        title=entry["title"],
        unit=entry["unit"],
        higher_is_better=entry["better"] == "higher",
        columns=columns,
        rows=rows,
        base=entry["base"],
        digits=entry.get("digits", 2),
        gain_is_share=entry.get("gain") == "percent of the base",
        means={unit: tuple(parts) for unit, parts in entry.get("means", {}).items()},
        note=entry.get("note", ""),
    )


def _complaints(entry: dict[str, Any], table: PaperTable) -> list[str]:
    """Return what is wrong with a table."""
    complaints = []
    names = [row.name for row in table.rows]
    for row in entry["rows"]:
        if len(row["values"]) != len(table.columns):
            complaints.append(f"{row['name']!r} has {len(row['values'])} values for {len(table.columns)} columns.")
        if not any(value is not None for value in row["values"]):
            complaints.append(f"{row['name']!r} has no values.")
    if len(set(names)) != len(names):
        complaints.append("two rows have the same name.")
    if len(set(table.columns)) != len(table.columns):
        complaints.append("two columns are the same.")
    if table.base is not None and table.base not in names:
        complaints.append(f"the base {table.base!r} is none of its rows.")
    if entry["better"] not in ("higher", "lower"):
        complaints.append(f"`better` is {entry['better']!r}; expected 'higher' or 'lower'.")
    if entry.get("gain") not in (None, "percent of the base"):
        complaints.append(f"`gain` is {entry['gain']!r}; expected 'percent of the base', or leave it out.")
    return complaints


__all__ = ["Column", "FILE", "PaperRow", "PaperTable", "PaperValues", "read_paper_values"]
