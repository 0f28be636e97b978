"""Build the page from records and the paper's numbers: verdicts, tables with their figures, samples, conditions."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from examples.evaluate.parts.records import Record
from examples.evaluate.reporting.blocks import Block, Bullets, Details, Grid, Heading, Notes, Page, Text
from examples.evaluate.reporting.cells import Cells, Results, Value, reading_of
from examples.evaluate.reporting.claims import RULE, Claim, judge_claims
from examples.evaluate.reporting.paper_values import Column, PaperValues
from examples.evaluate.reporting.plots import draw_bars, draw_infilling, draw_objectives, draw_repetition
from examples.evaluate.reporting.tables import MEASURED, QUOTED, Row, Table, build_table

TITLE = "MAGNET: the paper's tables, measured anew"
SIZES = (
    "The paper's models and those measured here may differ in size. The figures themselves are then not to be "
    "compared; the differences BETWEEN systems are."
)
ABSENT = "–"
# Tables that the paper does not have; any other recorded table is shown under its own name.
HEADINGS = {
    "story_cloze": "Story Cloze: which sentence belongs into the story",
    "long_fills": "Long fills: at once or in chunks",
    "curves": "Training, as the runs evaluated themselves",
}
SAMPLES = "side_by_side"
SAMPLE_HEADINGS = {"infilling": "Blanks filled", "continuation": "Beginnings continued"}
WITH_BARS = ("words", "sts", "infilling")
BASE = ("base, left", "base", "base, causal")


def build_page(
    results: Results,
    paper: PaperValues,
    *,
    title: str = TITLE,
    notes: str | None = None,
    name: str | None = None,
    compared: Mapping[str, Results] | None = None,
) -> Page:
    """Return all blocks in order; `compared` are records of the same study on other base models."""
    cells = Cells(results.records)
    claims = judge_claims(cells, paper)
    tables = [build_table(cells, table, values) for table, values in paper.tables.items()]
    on_record = {record.table for record in results.records}
    others = sorted(on_record - set(paper.tables) - {SAMPLES}, key=lambda table: (table not in HEADINGS, table))
    name = name or _base_name(results.records) or "this model"
    sections = [*_claims(claims)]
    if compared:
        judged = {other: judge_claims(Cells(study.records), paper) for other, study in compared.items()}
        sections += _other_models({name: claims, **judged})
    if notes:
        sections += [Heading(2, "Notes"), Notes(notes)]
    for table in tables:
        sections += _section(cells, table)
    for other in others:
        sections += [Heading(2, HEADINGS.get(other, other)), *_table(build_table(cells, other, None))]
    sections += [*_samples(cells, results.records), *_conditions(results)]
    return Page(title, [*_opening(results, paper, claims, tables, name=name)], sections)


def _base_name(records: Sequence[Record]) -> str | None:
    """Return the name of the base model, or `None` if none or several were measured."""
    names = {str(record.model.get("name")) for record in records if record.system.split(",")[0] == "base"}
    return names.pop() if len(names) == 1 else None


def _opening(
    results: Results, paper: PaperValues, claims: Sequence[Claim], tables: Sequence[Table], *, name: str
) -> Iterator[Block]:
    """Yield the facts that a reader needs before the first table."""
    records = results.records
    latest = max(record.time for record in records)
    yield Text(
        f"Studied: {name}. {len(records)} cells on record, the latest of {latest or 'an unknown time'}; beside "
        f"them the paper ({paper.source}; {paper.model})."
    )
    yield Grid(
        ["Claim", "Verdict", "In figures", "Warnings"],
        [[claim.question, claim.verdict, claim.in_short, _warnings(claim)] for claim in claims],
    )
    presets: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if "preset" in record.settings:  # curves describe trainings, which have no curves of their own
            presets[str(record.settings["preset"])].add(record.table)
    if set(presets) - {"paper"}:
        parts = "; ".join(f"{preset}: {', '.join(sorted(names))}" for preset, names in sorted(presets.items()))
        yield Text(f"Presets ({parts}). Only figures of the preset paper have the paper's sizes.", is_warning=True)
    missing = [*_missing(tables, claims)]
    if missing:
        yield Bullets("Missing:", missing)
    yield Text(
        f"Rows are either {MEASURED} or {QUOTED}; no cell and no mean holds both. Figures measured here: mean ± "
        f"standard deviation over replicas (trainings) and seeds, n of them. {SIZES}"
    )


def _warnings(claim: Claim) -> str:
    """Return the limitations of the verdict."""
    warnings = dict.fromkeys(w for f in claim.findings if f.outcome != "not measured" for w in f.warnings)
    left_out = sum(f.outcome == "not measured" for f in claim.findings)
    absent = [f"{left_out} of {len(claim.findings)} comparisons not measured"] if left_out else []
    return "; ".join([*warnings, *absent]) or ABSENT


def _missing(tables: Sequence[Table], claims: Sequence[Claim]) -> Iterator[str]:
    """Yield columns of the paper without a figure of ours, and comparisons without an outcome."""
    for table in tables:
        assert table.paper is not None
        measured = {column for row in table.rows if row.origin == MEASURED for column in row.values}
        absent = [column.title for column in table.paper.columns if column not in measured]
        if absent:
            what = f"no {', '.join(absent)}" if len(absent) < len(table.paper.columns) else "nothing was measured"
            yield f"{table.paper.number}, {table.name}: {what}"
    for claim in claims:
        unknown = [finding.what for finding in claim.findings if finding.outcome == "not measured"]
        if unknown:
            yield f"Claim {claim.name}: not measured: {'; '.join(unknown)}"


def _claims(claims: Sequence[Claim]) -> Iterator[Block]:
    """Yield the rule, then each claim with its numbers."""
    yield Heading(2, "The four claims")
    yield Text(RULE)
    for claim in claims:
        yield Heading(3, f"Claim: {claim.name}")
        yield Text(f"{claim.question} {claim.verdict}. Threshold: {claim.threshold}")
        rows = [[f.what, f.outcome, f.numbers, "; ".join(f.warnings) or ABSENT] for f in claim.findings]
        yield Grid(["Comparison", "Counts", "Figures", "Warnings"], rows)


def _other_models(judged: Mapping[str, Sequence[Claim]]) -> Iterator[Block]:
    """Yield the verdicts on several base models side by side, then the outcome of each comparison."""
    yield Heading(2, "Model size")
    yield Text("Each model is judged by the same rule from its own records; no figure of one is part of another's.")
    by_claim = list(zip(*judged.values(), strict=True))
    yield Grid(["Claim", *judged], [[claims[0].question, *(claim.verdict for claim in claims)] for claims in by_claim])
    rows = []
    for claims in by_claim:
        outcomes = [{finding.what: finding.outcome for finding in claim.findings} for claim in claims]
        for what in dict.fromkeys(what for outcome in outcomes for what in outcome):
            rows.append([claims[0].name, what, *(outcome.get(what, ABSENT) for outcome in outcomes)])
    yield Details("Comparisons", [Grid(["Claim", "Comparison", *judged], rows)])


def _section(cells: Cells, table: Table) -> Iterator[Block]:
    """Yield a table of the paper."""
    assert table.paper is not None
    yield Heading(2, table.title)
    yield Text(f"Unit: {table.paper.unit}; {'higher' if table.paper.higher_is_better else 'lower'} is better.")
    if not table.is_measured:
        yield Text("Nothing of this table was measured here.", is_warning=True)
    yield from _table(table)
    yield from _comparisons(table)
    pictures = [draw_bars(table) if table.name in WITH_BARS else None]
    base = cells.find(table.name, BASE)
    if table.name == "repetition":
        pictures += [draw_repetition(cells, base), draw_objectives(cells)]
    if table.name == "infilling":
        pictures.append(draw_infilling(cells, base))
    yield from (picture for picture in pictures if picture is not None)


def _table(table: Table) -> Iterator[Block]:
    """Yield rows, then missing figures, then the conditions of the measurements."""
    reasons = list(dict.fromkeys(reason for row in table.rows for reason in row.missing.values()))
    yield (
        _long_grid(table, reasons)
        if table.paper is None
        else Grid(
            ["System", "Origin", "Model", *(column.title for column in table.columns)],
            [
                [row.name, row.origin, row.model, *(_cell(table, row, column, reasons) for column in table.columns)]
                for row in table.rows
            ],
            [row.origin == QUOTED for row in table.rows],
        )
    )
    for number, reason in enumerate(reasons, start=1):
        yield Text(f"n/a ({number}): not available here: {reason}")
    yield from (Text(warning, is_warning=True) for warning in table.warnings)
    yield from (Text(note) for note in table.notes)
    lists = {"Settings of what was measured here:": table.settings, "Measured on:": table.counts}
    folded = [Bullets(head, items) for head, items in lists.items() if items]
    if folded:
        yield Details("Settings and counts", folded)


def _long_grid(table: Table, reasons: Sequence[str]) -> Grid:
    """Return a table that the paper does not have, with a row for each system and unit."""
    metrics = list(dict.fromkeys(column.metric for column in table.columns if column.metric))
    units = list(dict.fromkeys(column.unit for column in table.columns))
    rows = []
    for row in table.rows:
        for unit in units:
            columns = [Column(unit, metric, table.name) for metric in metrics or [""]]
            if any(column in row.values or column in row.missing for column in columns):
                rows.append([row.name, row.model, unit, *(_cell(table, row, column, reasons) for column in columns)])
    return Grid(["System", "Model", "Measured on", *(metrics or [""])], rows)


def _cell(table: Table, row: Row, column: Column, reasons: Sequence[str]) -> str:
    """Format a figure according to its precision, or the reason why it is missing."""
    value = row.values.get(column)
    if isinstance(value, Value):
        return _shown(value, table.digits)
    if value is not None:
        return f"{value:.{table.paper.digits if table.paper else table.digits}f}"
    reason = row.missing.get(column)
    return f"n/a ({reasons.index(reason) + 1})" if reason is not None else ABSENT


def _shown(value: Value, digits: int) -> str:
    """Format a measured figure."""
    spread = "" if value.spread is None else f" ± {value.spread:.{digits}f} (n = {value.n})"
    return f"{value.mean:.{digits}f}{spread}"


def _comparisons(table: Table) -> Iterator[Block]:
    """Yield the paper's figures and ours, and the gain of each over its own base."""
    paper = table.paper
    if paper is None or not table.comparisons:
        return
    yield Heading(3, f"{table.title}: ours against the paper")
    base = f"the base is the paper's {paper.base} and our row that answers to it" if paper.base else "there is no base"
    unit = "in percent of that base" if paper.gain_is_share else "in the unit of the table"
    yield Text(f"Gains are improvements over the base of the same table, {unit}, positive where better; {base}.")
    form = "{:+.1f} %" if paper.gain_is_share else f"{{:+.{table.digits}f}}"
    rows = [
        [
            *(item.theirs, item.ours, item.column.title, f"{item.paper:g}", _shown(item.value, table.digits)),
            *(ABSENT if gain is None else form.format(gain) for gain in (item.paper_gain, item.gain)),
        ]
        for item in table.comparisons
    ]
    yield Grid(["Row of the paper", "Our row", "Figure", "Paper", "Ours", "Gain, paper", "Gain, ours"], rows)


def _samples(cells: Cells, records: Sequence[Record]) -> Iterator[Block]:
    """Yield what the systems wrote, text by text, if there are samples."""
    records = [record for record in records if record.table == SAMPLES]
    if records:
        yield Heading(2, "Side by side")
    for unit in dict.fromkeys(sorted(record.unit for record in records)):
        yield Heading(3, SAMPLE_HEADINGS.get(unit, unit))
        chosen = [record for record in records if record.unit == unit]
        texts: dict[str, list[str]] = defaultdict(list)
        for record in sorted(chosen, key=lambda r: (r.system, r.replica, r.seed)):
            readings = {reading_of(r) for r in chosen if r.system == record.system}
            # Units may differ in their reading; only differences within this one are named.
            name = cells.row_of(record) if len(readings) > 1 else record.system
            for sample in record.samples:
                place = (
                    f"{sample.get('title', 'Text')}: {sample.get('prefix', '')} […] {sample.get('suffix', '')}".strip()
                )
                texts[place].append(f"{name}: {sample.get('fill', sample.get('continuation', ABSENT))}")
        yield from (Bullets(place, written) for place, written in texts.items())
        missing = [f"{r.system}: not available here: {r.unavailable}" for r in chosen if r.unavailable is not None]
        if missing:
            yield Bullets("Not shown:", sorted(missing))


def _conditions(results: Results) -> Iterator[Block]:
    """Yield time, hardware, versions, models, and skipped records."""
    records = results.records
    yield Heading(2, "Conditions")
    seconds = sum(record.seconds for record in records)
    yield Text(f"The cells shown took {seconds:,.0f} seconds in all ({seconds / 3600:.1f} hours).")
    lists = {
        "Hardware (cells):": (", ".join(f"{k} {v}" for k, v in sorted(record.hardware.items())) for record in records),
        "Versions (cells):": (f"{library} {version}" for r in records for library, version in r.versions.items()),
    }
    counted = [
        Bullets(head, [f"{name or 'unknown'} ({count})" for name, count in sorted(Counter(names).items())])
        for head, names in lists.items()
    ]
    models = {
        (r.system, str(r.model.get("name")), str(r.model.get("weights") or r.model.get("revision") or ABSENT))
        for r in records
    }
    grid = Grid(["System", "Model", "Weights or revision"], sorted(models))
    yield Details("Hardware, versions and models", [*counted, grid])
    if results.problems:
        yield Bullets("Skipped or odd in the files of records:", results.problems)
