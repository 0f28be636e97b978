"""Build one table of the page: measured and quoted figures, never mixed in a row."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from examples.evaluate.parts.records import Record
from examples.evaluate.reporting.cells import Cells, Value, list_counts, list_settings, settings_warnings
from examples.evaluate.reporting.paper_values import Column, PaperTable

MEASURED, QUOTED = "measured here", "quoted from the paper"
# The order of the study's systems; other systems follow by name.
OURS = (
    *("base", "MNTP", "MTP", "SSCL", "MNTP + MSG", "SSCL + MSG", "MAGNET", "LLM2Vec recipe"),
    *("unidirectional", "zero-shot", "five-shot"),
)


@dataclass(frozen=True)
class Row:
    """One row, measured here or quoted; `missing` gives the reasons for missing figures."""

    name: str
    origin: str
    model: str
    values: dict[Column, Value | float]
    missing: dict[Column, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Compare one figure of the paper with ours; gains are improvements over the base of the same table."""

    theirs: str
    ours: str
    column: Column
    paper: float
    value: Value
    paper_gain: float | None
    gain: float | None


@dataclass(frozen=True)
class Table:
    """A table with all that a reader needs to judge it."""

    name: str
    columns: list[Column]
    rows: list[Row]
    comparisons: list[Comparison]
    notes: list[str]
    warnings: list[str]
    settings: list[str]
    counts: list[str]
    digits: int = 4
    paper: PaperTable | None = None

    @property
    def title(self) -> str:
        """Return the heading of its section."""
        return f"{self.paper.title} ({self.paper.number})" if self.paper else self.name

    @property
    def is_measured(self) -> bool:
        """Return whether any of its figures was measured here."""
        return any(row.values for row in self.rows if row.origin == MEASURED)


def build_table(cells: Cells, name: str, paper: PaperTable | None) -> Table:
    """Combine the records and the paper's values of a table."""
    columns = list(paper.columns) if paper else []
    if paper is None or all(column.table == name for column in columns):
        own_columns = [
            Column(unit, metric, name) for unit in cells.units(name) for metric in cells.metrics(name, unit) or [""]
        ]
        columns += [column for column in own_columns if column not in columns]
        # Drop a unit that could not be measured in any row and that the paper does not have.
        columns = [item for item in columns if item.metric or item.unit not in {c.unit for c in columns if c.metric}]
    measured = [row for row in _measured_rows(cells, columns, paper) if row.values or row.missing]
    quoted = [Row(row.name, QUOTED, row.name, dict(row.values)) for row in paper.rows] if paper else []
    records = [
        record
        for column in dict.fromkeys(Column(column.unit, "", column.table) for column in columns)
        for unit in _units(column, paper)
        for row in measured
        for record in cells.final(column.table, row.name, unit)
    ]
    answered = [record for record in records if record.unavailable is None]
    return Table(
        name=name,
        columns=columns,
        rows=measured + quoted,
        comparisons=_compare(cells, paper, measured) if paper else [],
        notes=_notes(records, paper),
        warnings=settings_warnings(answered, cells.row_of),
        settings=list_settings(answered, cells.row_of),
        counts=list_counts(answered),
        digits=max(2, paper.digits) if paper else 4,
        paper=paper,
    )


def _units(column: Column, paper: PaperTable | None) -> tuple[str, ...]:
    """Return the units of a column, which may be a mean over several."""
    return paper.means.get(column.unit, (column.unit,)) if paper else (column.unit,)


def _measured_rows(cells: Cells, columns: Sequence[Column], paper: PaperTable | None) -> list[Row]:
    """Return the study's systems in order, then the others by name."""
    names = sorted({row for column in columns for row in cells.rows(column.table)})
    if paper and any(column.table != paper.name for column in columns):  # repeats rows of other tables
        asked = {cells.find(column.table, row.answers) for row in paper.rows for column in row.values}
        names = [name for name in names if name in asked]
    order = {name: place for place, name in enumerate(OURS)}
    rows = []
    for name in sorted(names, key=lambda name: order.get(name.split(",")[0], len(order))):
        values: dict[Column, Value | float] = {}
        missing: dict[Column, str] = {}
        models: set[str] = set()
        for column in columns:
            units = (column.unit,) if column.unit in cells.units(column.table) else _units(column, paper)
            value = cells.mean(column.table, name, units, column.metric)
            records = [record for unit in units for record in cells.final(column.table, name, unit)]
            models |= {str(record.model.get("name")) for record in records}
            reasons = dict.fromkeys(record.unavailable for record in records if record.unavailable is not None)
            if value is not None:
                values[column] = value
            elif reasons:
                missing[column] = "; ".join(map(str, reasons))
        rows.append(Row(name, MEASURED, ", ".join(sorted(models)), values, missing))
    return rows


def _compare(cells: Cells, paper: PaperTable, measured: Sequence[Row]) -> list[Comparison]:
    """Return every figure that both have."""
    rows = {row.name: row for row in measured}
    answers = {row.name: _answer(cells, row.answers, row.values, rows) for row in paper.rows}
    base = paper.row(paper.base) if paper.base else None
    our_base = answers[base.name] if base else None
    comparisons = []
    for row in paper.rows:
        answer = answers[row.name]
        for column, number in row.values.items() if answer else ():
            value = answer.values.get(column) if answer else None
            if answer is None or not isinstance(value, Value):
                continue
            paper_gain = gain = None
            if base and row != base:  # a base has no gain over itself
                paper_gain = _gain(paper, number, base.values.get(column))
                gain = _gain(paper, value.mean, our_base.values.get(column) if our_base else None)
            comparisons.append(Comparison(row.name, answer.name, column, number, value, paper_gain, gain))
    return comparisons


def _answer(cells: Cells, names: Sequence[str], columns: dict[Column, float], rows: dict[str, Row]) -> Row | None:
    """Return our row that corresponds to a row of the paper."""
    names_found = [cells.find(table, names) for table in dict.fromkeys(column.table for column in columns)]
    return next((rows[name] for name in names_found if name in rows), None)


def _gain(paper: PaperTable, value: float, base: Value | float | None) -> float | None:
    """Return the improvement over the base, in the table's unit or in percent of the base."""
    level = base.mean if isinstance(base, Value) else base
    if level is None or (paper.gain_is_share and not level):
        return None
    gain = value - level if paper.higher_is_better else level - value
    return 100 * gain / level if paper.gain_is_share else gain


def _notes(records: Sequence[Record], paper: PaperTable | None) -> list[str]:
    """Return notes that a reader needs about the rows."""
    notes = [paper.note] if paper and paper.note else []
    steps = sorted({f"{record.system} (step {record.step})" for record in records if record.step is not None})
    if steps:
        notes.append(f"On record at steps only, shown at the last one: {', '.join(steps)}.")
    answered = {(r.system, r.unit) for r in records if r.unavailable is None}
    partly = {
        f"{r.system}, {r.unit}: without replica {r.replica}, seed {r.seed}: {r.unavailable}."
        for r in records
        if r.unavailable is not None and (r.system, r.unit) in answered
    }
    return notes + sorted(partly)
