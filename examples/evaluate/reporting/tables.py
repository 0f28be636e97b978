"""Build one table of the page: measured and quoted figures, never mixed in a row."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from examples.evaluate.parts.records import Record
from examples.evaluate.reporting.cells import Cells, Value, is_untrained
from examples.evaluate.reporting.paper_values import Column, PaperRow, PaperTable

QUOTED = "quoted"
# The order of the study's systems; other systems follow by name.
OURS = ("base", "causal control", "MNTP", "MTP", "SSCL", "MNTP + MSG", "SSCL + MSG", "MAGNET", "LLM2Vec recipe")
RATIO = "ratio"
# Tables of perplexities are read as multiples of these rows of theirs.
REFERENCES = {"infilling": ("base, left", "base, causal"), "perplexity": ("base", "base, causal")}


@dataclass(frozen=True)
class Row:
    """One row, measured here or quoted; `missing` gives the reasons for figures that are not available."""

    name: str
    origin: str
    values: dict[Column, Value]
    missing: dict[Column, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table with the records that it shows; `answers` are our rows by the name of the paper's."""

    name: str
    columns: list[Column]
    measured: list[Row]
    quoted: list[Row]
    answers: dict[str, Row]
    records: list[Record]
    paper: PaperTable | None = None

    @property
    def absent(self) -> list[Column]:
        """Return the columns of the paper without a figure of ours."""
        columns = self.paper.columns if self.paper else ()
        return [column for column in columns if not any(column in row.values for row in self.measured)]


def build_table(cells: Cells, name: str, paper: PaperTable | None) -> Table:
    """Combine the records and the paper's values of a table."""
    columns = list(paper.columns) if paper else []
    if paper is None or all(column.table == name for column in columns):
        for unit in cells.units(name):
            metrics = [metric for metric in cells.metrics(name, unit) if not metric.endswith(("stderr", "_std"))]
            # A unit that could not be measured in any row is not shown, unless the paper has it.
            columns += [Column(unit, metric, name) for metric in metrics if Column(unit, metric, name) not in columns]
    if name in REFERENCES:
        columns = [Column(unit, RATIO, name) for unit, _, _ in columns] + columns
    measured = [row for row in _measured_rows(cells, columns, paper) if row.values or row.missing]
    records = [
        record
        for table, unit in dict.fromkeys((column.table, unit) for column in columns for unit in _units(column, paper))
        for row in measured
        for record in cells.final(table, row.name, unit)
        if record.unavailable is None
    ]
    quoted = [Row(row.name, QUOTED, _quoted_values(paper, row)) for row in paper.rows] if paper else []
    ours = {row.name: row for row in measured}
    answers = {}
    for row in paper.rows if paper else ():
        found = [cells.find(table, row.answers) for table in dict.fromkeys(column.table for column in row.values)]
        answers[row.name] = next((ours[answer] for answer in found if answer in ours), None)
    return Table(name, columns, measured, quoted, {k: v for k, v in answers.items() if v}, records, paper)


def _units(column: Column, paper: PaperTable | None) -> Sequence[str]:
    """Return the units of a column, which may be a mean over several."""
    return paper.means.get(column.unit, (column.unit,)) if paper else (column.unit,)


def _quoted_values(paper: PaperTable, row: PaperRow) -> dict[Column, Value]:
    """Return the figures of a row of the paper, perplexities also as multiples of those of the paper's base."""
    values = dict(row.values)
    if paper.name in REFERENCES and paper.base:
        base = paper.row(paper.base).values
        values |= {column._replace(metric=RATIO): value / base[column] for column, value in row.values.items()}
    return {column: Value(value, (value,), is_trained=False) for column, value in values.items()}


def _measured_rows(cells: Cells, columns: Sequence[Column], paper: PaperTable | None) -> list[Row]:
    """Return the study's systems in order, then the others by name."""
    names = sorted({row for column in columns for row in cells.rows(column.table)})
    if paper and any(column.table != paper.name for column in columns):  # repeats rows of other tables
        asked = {cells.find(column.table, row.answers) for row in paper.rows for column in row.values}
        names = [name for name in names if name in asked]
    order = {name: place for place, name in enumerate(OURS)}
    rows = []
    for name in sorted(names, key=lambda name: order.get(name.split(",")[0], len(order))):
        values: dict[Column, Value] = {}
        missing: dict[Column, str] = {}
        for column in columns:
            units = (column.unit,) if column.unit in cells.units(column.table) else _units(column, paper)
            if column.metric == RATIO:
                reference = cells.find(column.table, REFERENCES[column.table])
                value = cells.ratio(column.table, name, reference, column.unit)
            else:
                value = cells.mean(column.table, name, units, column.metric)
            records = [record for unit in units for record in cells.final(column.table, name, unit)]
            reasons = dict.fromkeys(record.unavailable for record in records if record.unavailable is not None)
            if value is not None:
                values[column] = value
            elif reasons:
                missing[column] = "; ".join(map(str, reasons))
        number = max((len(value.runs) for value in values.values()), default=0)
        origin = "untrained" if is_untrained(name) else f"{number} training{'s' if number != 1 else ''}"
        rows.append(Row(name, origin, values, missing))
    return rows
