"""One table of the report: what was measured here beside what the paper prints, never mixed in a cell.

What the two have in common is compared in a second table: the difference, and how far each is from its own base.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from examples.evaluate.records import Record
from examples.evaluate.reporting.cells import (
    Cells,
    Value,
    list_counts,
    list_differences,
    list_settings,
    same_weights,
    settings_warnings,
)
from examples.evaluate.reporting.paper_values import Column, PaperRow, PaperTable

MEASURED, QUOTED = "measured here", "quoted from the paper"
PROMPTED = ("unidirectional", "zero-shot", "five-shot")  # the base, asked by prompts
# The systems of the study; what else was measured is a peer.
OURS = (
    *("base", "base, causal", "base, bidirectional", "MNTP", "MTP", "SSCL", "MNTP + MSG", "SSCL + MSG", "MAGNET"),
    *("LLM2Vec recipe", "MAGNET, mixture", "MAGNET, adapter off"),
    *PROMPTED,
)
SIZES = (
    "The paper's models and those measured here may differ in size. The figures themselves are then not to be "
    "compared; the differences BETWEEN systems are."
)


@dataclass(frozen=True)
class Row:
    """One row."""

    name: str
    origin: str
    is_peer: bool
    model: str
    values: dict[Column, Value | float]
    missing: dict[Column, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """One figure of the paper and ours; the gains are improvements over the base of the same table.

    They are in the unit of the table, or in percent of the base where the table says so.
    """

    theirs: str
    ours: str
    column: Column
    paper: float
    value: Value
    paper_gain: float | None
    gain: float | None

    @property
    def difference(self) -> float:
        """Ours less the paper's."""
        return self.value.mean - self.paper


@dataclass(frozen=True)
class Table:
    """A table with all that a reader needs to judge it."""

    name: str
    title: str
    unit: str
    higher_is_better: bool | None
    digits: int
    columns: list[Column]
    rows: list[Row]
    comparisons: list[Comparison]
    notes: list[str]
    warnings: list[str]
    settings: list[str]
    differences: list[str]
    counts: list[str]


def build_table(cells: Cells, name: str, paper: PaperTable | None) -> Table:
    """Put together what the records and the paper say of a table."""
    columns = list(paper.columns) if paper else []
    means = paper.means if paper else {}
    if paper is None or all(column.table == name for column in columns):
        found = [Column(unit, metric, name) for unit in cells.units(name) for metric in cells.metrics(name, unit)]
        silent = [Column(unit, "", name) for unit in cells.units(name) if not cells.metrics(name, unit)]
        columns += [column for column in found if column not in columns]
        columns += [column for column in silent if column.unit not in {one.unit for one in columns}]
    measured = [row for row in _measured_rows(cells, columns, means, paper) if row.values or row.missing]
    quoted = [_quoted_row(row) for row in paper.rows] if paper else []
    records = [
        record
        for table in dict.fromkeys(column.table for column in columns)
        for row in [one.name for one in measured]
        for unit in dict.fromkeys(u for c in columns if c.table == table for u in means.get(c.unit, (c.unit,)))
        for record in cells.final(table, row, unit)
    ]
    answered = [record for record in records if record.unavailable is None]
    return Table(
        name=name,
        title=f"{paper.title} ({paper.number})" if paper else name,
        unit=paper.unit if paper else "as the records name it",
        higher_is_better=paper.higher_is_better if paper else None,
        digits=max(2, paper.digits) if paper else 4,
        columns=columns,
        rows=measured + quoted,
        comparisons=_compare(cells, paper, measured) if paper else [],
        notes=_notes(records, paper),
        warnings=settings_warnings(answered, cells.row_of) + same_weights(answered),
        settings=list_settings(answered),
        differences=list_differences(answered, cells.row_of),
        counts=list_counts(answered),
    )


def measure(cells: Cells, row: str, column: Column, means: dict[str, tuple[str, ...]]) -> Value | None:
    """Return the figure of a cell, which may be a mean over units."""
    if column.unit in means and column.unit not in cells.units(column.table):
        return cells.mean(column.table, row, means[column.unit], column.metric)
    return cells.value(column.table, row, column.unit, column.metric)


def _measured_rows(
    cells: Cells, columns: Sequence[Column], means: dict[str, tuple[str, ...]], paper: PaperTable | None
) -> Iterable[Row]:
    """Yield the study's systems in its order, then peers by name."""
    names = sorted({row for column in columns for row in cells.rows(column.table)})
    if paper and any(column.table != paper.name for column in columns):
        asked = {cells.find(column.table, row.answers) for row in paper.rows for column in row.values}
        names = [name for name in names if name in asked]
    ours = [name for system in OURS for name in names if name == system or name.startswith(f"{system}, ")]
    ours = list(dict.fromkeys(ours))
    for name in ours + [name for name in names if name not in ours]:
        values: dict[Column, Value | float] = {}
        missing: dict[Column, str] = {}
        models: set[str] = set()
        for column in columns:
            value = measure(cells, name, column, means)
            if value is not None:
                values[column] = value
            for unit in means.get(column.unit, (column.unit,)):
                records = cells.final(column.table, name, unit)
                models |= {str(record.model.get("name")) for record in records}
                reasons = [str(record.unavailable) for record in records if record.unavailable is not None]
                if reasons and value is None:
                    missing[column] = "; ".join(dict.fromkeys(reasons))
        yield Row(name, MEASURED, name not in ours, ", ".join(sorted(models)), values, missing)


def _quoted_row(row: PaperRow) -> Row:
    """Return a row of the paper; one that no system of the study answers to is a peer, as Echo is."""
    is_peer = not set(row.answers) - {"Echo"} and not row.name.startswith(("MAGNET", "LLaMA-2"))
    return Row(row.name, QUOTED, is_peer, row.name, dict(row.values))


def _compare(cells: Cells, paper: PaperTable, measured: Sequence[Row]) -> list[Comparison]:
    """Return every figure that both have."""
    rows = {row.name: row for row in measured}
    base = paper.row(paper.base) if paper.base else None
    answers = {row.name: _answer(cells, paper, row, rows) for row in paper.rows}
    our_base = rows.get(answers[base.name] or "") if base else None
    found = []
    for row in paper.rows:
        answer = answers[row.name]
        if answer is None:
            continue
        for column, number in row.values.items():
            value = rows[answer].values.get(column)
            if not isinstance(value, Value):
                continue
            paper_gain = _gain(paper, number, base.values[column]) if base and column in base.values else None
            own = our_base.values.get(column) if our_base else None
            gain = _gain(paper, value.mean, own.mean) if isinstance(own, Value) else None
            if row == base:  # a base gains nothing over itself
                paper_gain = gain = None
            found.append(Comparison(row.name, answer, column, number, value, paper_gain, gain))
    return found


def _gain(paper: PaperTable, value: float, base: float) -> float | None:
    """Return how much better than the base: in the table's unit, or in percent of the base; none of a base of zero."""
    gain = value - base if paper.higher_is_better else base - value
    if not paper.gain_is_share:
        return gain
    return 100 * gain / base if base else None


def _answer(cells: Cells, paper: PaperTable, row: PaperRow, rows: dict[str, Row]) -> str | None:
    """Return our row that a row of the paper is compared with."""
    tables = dict.fromkeys(column.table for column in row.values)
    found = [cells.find(table, row.answers) for table in tables]
    return next((name for name in found if name in rows), None)


def _notes(records: Sequence[Record], paper: PaperTable | None) -> list[str]:
    """Return what a reader has to know of the rows."""
    notes = [paper.note] if paper and paper.note else []
    steps = {f"{record.system} (step {record.step})" for record in records if record.step is not None}
    if steps:
        notes.append(f"On record at steps only, shown at the last one: {', '.join(sorted(steps))}.")
    partly = defaultdict(set)
    answered = {(r.table, r.system, r.unit) for r in records if r.unavailable is None}
    for record in records:
        if record.unavailable is not None and (record.table, record.system, record.unit) in answered:
            partly[record.system, record.unit].add(
                f"replica {record.replica}, seed {record.seed}: {record.unavailable}"
            )
    notes += [f"{s}, {unit}: without {'; '.join(sorted(why))}." for (s, unit), why in sorted(partly.items())]
    return notes


__all__ = ["OURS", "PROMPTED", "Row", "SIZES", "Table", "build_table"]
