"""The report from records and the paper's numbers: verdicts, tables with their figures, samples, conditions."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from examples.reporting.blocks import Answer, Block, Bullets, Details, Grid, Heading, Link, Notes, Page, Text
from examples.reporting.cells import Cells, Results, Value
from examples.reporting.claims import RULE, Claim, judge_claims
from examples.reporting.findings import NO_STEPS
from examples.reporting.model_sizes import SECTION, Model, size_blocks
from examples.reporting.opening import ABSENT, opening_blocks
from examples.reporting.paper_values import Column, PaperTable, PaperValues
from examples.reporting.plots import draw_bars, draw_infilling, draw_objectives, draw_repetition
from examples.reporting.samples import TABLE as SAMPLES
from examples.reporting.samples import sample_blocks
from examples.reporting.tables import MEASURED, SIZES, Row, Table, build_table

TITLE = "MAGNET: the paper's tables, measured anew"
THIS_MODEL = "this model"
# Tables of records that the paper has no table of; any other is told as unknown.
WITHOUT_PAPER = {
    "long_fills": "Long gaps: at once or in chunks",
    "curves": "Training, as the runs evaluated themselves",
}
WITH_BARS = ("words", "sts", "infilling")
# All figures that a page may have; what is not among them is not the report's.
PICTURES = (*(f"{name}_bars" for name in WITH_BARS), "infilling_steps", "repetition_steps", "mntp_mtp_steps")
BASE = ("base, left", "base", "base, causal")


def build_page(
    results: Results,
    paper: PaperValues,
    *,
    title: str = TITLE,
    notes: str | None = None,
    name: str = THIS_MODEL,
    compared: Mapping[str, Results] | None = None,
) -> Page:
    """All blocks in their order.

    Args:
        results (`Results`): The records.
        paper (`PaperValues`): What they are set beside.
        title (`str`): Of the page.
        notes (`str`, *optional*): Markdown of those who ran it, behind the claims.
        name (`str`): Of the model that was studied.
        compared (`Mapping[str, Results]`, *optional*): The same study on other models, by their names; no figure of
            theirs enters a table.
    """
    cells = Cells(results.records)
    claims = judge_claims(cells, paper)
    tables = {table: build_table(cells, table, values) for table, values in paper.tables.items()}
    models = [
        Model(other, found, judge_claims(Cells(found.records), paper)) for other, found in (compared or {}).items()
    ]
    blocks = [*opening_blocks(results, paper, claims, tables, name=name), *_claims(claims)]
    blocks += size_blocks([Model(name, results, claims), *models])
    if notes:
        blocks += [Heading(2, "Notes"), Notes(notes)]
    for table, values in paper.tables.items():
        blocks += _section(cells, tables[table], values)
    measured = {record.table for record in results.records}
    for table, heading in WITHOUT_PAPER.items():
        if table in measured:
            blocks += _generic(cells, table, heading)
    samples = sample_blocks(cells, results.records)
    blocks += [Heading(2, "Side by side"), *samples] if samples else []
    unknown = sorted(measured - set(paper.tables) - set(WITHOUT_PAPER) - {SAMPLES})
    for table in unknown:
        blocks += _generic(cells, table, f"Unknown table: {table}")
    blocks += _conditions(results, unknown)
    return Page(title, blocks)


def _claims(claims: Sequence[Claim]) -> Iterator[Block]:
    """The rule, then each claim with its numbers."""
    yield Heading(2, "The four claims")
    yield Text(RULE)
    for claim in claims:
        yield Heading(3, f"Claim: {claim.name}")
        yield Answer(claim.question, claim.verdict)
        yield Text(f"Threshold: {claim.threshold}")
        rows = [[f.what, f.outcome, f.numbers, "; ".join(f.warnings) or ABSENT] for f in claim.findings]
        yield Grid(["Comparison", "Counts", "Figures", "Warnings"], rows)
        yield from _trends(claim)


def _trends(claim: Claim) -> Iterator[Block]:
    """Over steps and over sizes, where a comparison does not count for the claim."""
    others = [finding for finding in claim.findings if finding.outcome != "for"]
    # Several comparisons are of the same curve.
    curves = [line for line in dict.fromkeys(line for one in others for line in one.trend) if line != NO_STEPS]
    without = [finding.what for finding in others if NO_STEPS in finding.trend]
    if curves:
        yield Bullets("Over training steps, where a comparison does not count for the claim:", curves)
    if without:
        yield Text(f"Without records over training steps: {'; '.join(without)}.")
    if others:
        yield Link("These comparisons on models of other sizes", SECTION)


def _section(cells: Cells, table: Table, paper: PaperTable) -> Iterator[Block]:
    """A table of the paper."""
    name = table.name
    yield Heading(2, table.title)
    yield Text(f"Unit: {table.unit}; {'higher' if table.higher_is_better else 'lower'} is better.")
    if not any(row.values for row in table.rows if row.origin == MEASURED):
        nobody = "No people were asked." if name == "people" else "Nothing of this table was measured here."
        yield Text(nobody, is_warning=True)
    yield from _table(table)
    yield from _comparisons(table, paper)
    pictures = [draw_bars(table) if name in WITH_BARS else None]
    if name == "repetition":
        pictures += [draw_repetition(cells, cells.find(name, BASE)), draw_objectives(cells)]
    if name == "infilling":
        pictures.append(draw_infilling(cells, cells.find(name, BASE)))
    yield from (picture for picture in pictures if picture is not None)


def _generic(cells: Cells, name: str, heading: str) -> Iterator[Block]:
    """A table that the paper does not have; with several units it has a row for each, or it would be too wide."""
    yield Heading(2, heading)
    table = build_table(cells, name, None)
    yield from _table(table, is_long=len({column.unit for column in table.columns}) > 1)


def _table(table: Table, *, is_long: bool = False) -> Iterator[Block]:
    """Rows, then what is missing, then under what conditions.

    Args:
        table (`Table`): All of it.
        is_long (`bool`): A row for each system and unit, a column for each metric.
    """
    reasons = list(dict.fromkeys(reason for row in table.rows for reason in row.missing.values()))
    quoted = [v for row in table.rows for v in row.values.values() if isinstance(v, float)]
    digits = max((len(repr(value).partition(".")[2]) for value in quoted), default=0)

    def cell(row: Row, column: Column) -> str:
        value = row.values.get(column)
        if isinstance(value, Value):
            return _told(value, table.digits)
        if value is not None:
            return f"{value:.{digits}f}"
        reason = row.missing.get(column)
        return f"n/a ({reasons.index(reason) + 1})" if reason is not None else ABSENT

    yield _grid(table, cell, is_long=is_long)
    for number, reason in enumerate(reasons, start=1):
        yield Text(f"n/a ({number}): not available here: {reason}")
    yield from (Text(warning, is_warning=True) for warning in table.warnings)
    yield from (Text(note) for note in table.notes)
    lists = {
        "Where rows differ:": table.differences,
        "Settings of what was measured here:": table.settings,
        "Measured on:": table.counts,
    }
    folded = [Bullets(head, items) for head, items in lists.items() if items]
    if folded:
        yield Details("Settings and counts", folded)


def _grid(table: Table, cell: Callable[[Row, Column], str], *, is_long: bool) -> Grid:
    """The rows of a table, each in one line or in one for each unit."""
    heads = [column.title for column in table.columns]
    lines: list[tuple[list[str], list[Column]]] = [([], table.columns)]
    if is_long:
        metrics = list(dict.fromkeys(column.metric for column in table.columns))
        units = list(dict.fromkeys(column.unit for column in table.columns))
        heads = ["Measured on", *metrics]
        lines = [([unit], [Column(unit, metric, table.name) for metric in metrics]) for unit in units]
    rows, kinds = [], []
    for row in table.rows:
        origin = f"{row.origin}, peer" if row.is_peer else row.origin
        for label, columns in lines:
            if is_long and not any(one in row.values or one in row.missing for one in columns):
                continue
            rows.append([row.name, origin, row.model, *label, *(cell(row, one) for one in columns)])
            kinds.append("measured" if row.origin == MEASURED else "quoted")
    return Grid(["System", "Origin", "Model", *heads], rows, kinds)


def _comparisons(table: Table, paper: PaperTable) -> Iterator[Block]:
    """Paper and ours, their difference, and the gain of each over its own base."""
    if not table.comparisons:
        return
    yield Heading(3, f"{table.title}: ours against the paper")
    base = f"the base is the paper's {paper.base} and our row that answers to it" if paper.base else "there is no base"
    unit = "in percent of that base" if paper.gain_is_share else "in the unit of the table"
    yield Text(
        f"Gains are improvements over the base of the same table, {unit}, positive where better; {base}. {SIZES}"
    )
    heads = ["Row of the paper", "Our row", "Figure", "Paper", "Ours", "Ours - paper", "Gain, paper", "Gain, ours"]
    rows = []
    for one in table.comparisons:
        gains = [
            ABSENT if gain is None else f"{gain:+.1f} %" if paper.gain_is_share else f"{gain:+.{table.digits}f}"
            for gain in (one.paper_gain, one.gain)
        ]
        numbers = [f"{one.paper:g}", _told(one.value, table.digits), f"{one.difference:+.{table.digits}f}"]
        rows.append([one.theirs, one.ours, one.column.title, *numbers, *gains])
    yield Grid(heads, rows)


def _conditions(results: Results, unknown: Sequence[str]) -> Iterator[Block]:
    """Hardware, versions, time, and what was skipped."""
    records = results.records
    yield Heading(2, "Conditions")
    seconds = sum(record.seconds for record in records)
    yield Text(f"The cells shown took {seconds:,.0f} seconds in all ({seconds / 3600:.1f} hours).")
    yield Bullets("Hardware (cells):", _tally([r.hardware for r in records]))
    versions = Bullets("Cells in brackets:", _tally([{k: v} for r in records for k, v in r.versions.items()]))
    yield Details("Versions", [versions])
    names = {
        (r.system, str(r.model.get("name")), str(r.model.get("weights") or r.model.get("revision") or ABSENT))
        for r in records
    }
    yield Details("Models", [Grid(["System", "Model", "Weights or revision"], sorted(names))])
    if results.read > len(records):
        yield Text(f"{results.read - len(records)} older records of the same cells are not shown.")
    if unknown:
        counts = [
            f"{name}: {sum(r.table == name for r in records)} cells, shown above as they are" for name in unknown
        ]
        yield Bullets("Tables that this report does not know:", counts)
    if results.problems:
        yield Bullets("Skipped or odd in the files of records:", results.problems)


def _tally(found: Sequence[dict[str, object]]) -> list[str]:
    """Each combination with how often it is there."""
    counts: dict[str, int] = defaultdict(int)
    for one in found:
        counts[", ".join(f"{key} {value}" for key, value in sorted(one.items())) or "not on record"] += 1
    return [f"{told} ({count})" for told, count in sorted(counts.items())]


def _told(value: Value, digits: int) -> str:
    """A figure measured here."""
    spread = "" if value.spread is None else f" ± {value.spread:.{digits}f} (n = {value.n})"
    return f"{value.mean:.{digits}f}{spread}"


__all__ = ["PICTURES", "THIS_MODEL", "TITLE", "build_page"]
