"""Build the page from records and the paper's numbers: claims first, then folded tables, notes and conditions."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from examples.evaluate.parts.records import Record
from examples.evaluate.reporting.blocks import Block, Bullets, Card, Details, Grid, Notes, Page, Picture, Text
from examples.evaluate.reporting.cells import Cells, Results, Value, differing_settings, list_counts
from examples.evaluate.reporting.charts import Group, draw_bars, draw_curves
from examples.evaluate.reporting.claims import BASE, CAUSAL, CONTROL, FILLED, RECIPE, RULE, Claim, judge_claims
from examples.evaluate.reporting.names import column_name, digits_of, row_name, show, show_ratio, table_name, unit_name
from examples.evaluate.reporting.paper_values import Column, PaperValues
from examples.evaluate.reporting.tables import QUOTED, RATIO, REFERENCES, Row, Table, build_table

TITLE = "MAGNET: the paper's tables, measured anew"
ABSENT = "–"
SAMPLES, CLOZE = "side_by_side", "story_cloze"
VERDICTS = ("does not hold", "holds in part", "holds", "not measured")
RIVALS = ("LLM2Vec recipe", "causal control", "Echo", "MiniLM")
# The metrics that are drawn as bars of all rows, and over training steps.
BARS = {"words": "accuracy", "sts": "spearman", "clustering": "v_measure", "infilling": RATIO}
CURVES = {
    **{table: (metric,) for table, metric in BARS.items()},
    "infilling": ("perplexity",),
    "repetition": ("rep_4", "rep_4_tokens"),
    "curves": ("causal_perplexity", "infilling_perplexity", "masked_accuracy", "loss_mntp"),
}


def build_page(
    results: Results,
    paper: PaperValues,
    *,
    title: str = TITLE,
    notes: str | None = None,
    name: str | None = None,
    compared: Mapping[str, Results] | None = None,
    is_short: bool = False,
) -> Page:
    """Return all blocks in order.

    Args:
        compared (`dict[str, Results]`, *optional*): Records of the same study on other base models.
        is_short (`bool`): Leave out the tables.
    """
    cells, records = Cells(results.records), results.records
    bases = {str(record.model.get("name")) for record in records if record.system.split(",")[0] == "base"}
    name = name or (bases.pop() if len(bases) == 1 else "this model")
    judged = {name: judge_claims(cells, paper)}
    judged |= {other: judge_claims(Cells(study.records), paper) for other, study in (compared or {}).items()}
    # A page that shows a failure below successes misleads.
    claims = sorted(judged[name], key=lambda claim: VERDICTS.index(claim.verdict))
    blocks: list[Block] = [*_opening(records, paper, claims, name=name), *map(_card, claims)]
    if compared:
        sizes = [
            [each[0].name, *(f"{claim.verdict}. {claim.in_short}" for claim in each)]
            for each in zip(*judged.values(), strict=True)
        ]
        blocks += [Text("The claims by model size", is_heading=True), Grid(["Claim", *judged], sizes)]
    if notes:
        blocks.append(Details("Notes of the authors", "what the figures mean", [Notes(notes)]))
    tables = [build_table(cells, table, values) for table, values in paper.tables.items()]
    if not is_short:
        others = sorted({record.table for record in records} - {*paper.tables, SAMPLES, CLOZE})
        blocks += [_section(cells, table) for table in tables]
        blocks += [_section(cells, build_table(cells, other, None)) for other in others]
        blocks += [*_samples(cells, records)]
    return Page(title, [*blocks, _rule(judged), _missing(tables), _conditions(results, paper)])


def _opening(records: Sequence[Record], paper: PaperValues, claims: Sequence[Claim], *, name: str) -> Iterator[Block]:
    """Yield what was studied, what came out, and how to read the cards."""
    logs = [record for record in records if record.table == "curves"]
    trainings = len({(record.system, record.replica) for record in logs})
    steps = max((record.step or 0 for record in logs), default=0)
    tokens = max((record.counts.get("tokens", 0) for record in logs), default=0)
    length = f"{show(tokens / 1e6, 2)} million tokens" if tokens else f"{steps:,} steps"
    adapted = f", adapted in {trainings} trainings of at most {length}" if trainings else ""
    rivals = ", ".join(row_name(rival) for rival in RIVALS if any(record.system == rival for record in records))
    yield Text(
        f"Studied: {name}{adapted}; MAGNET is compared with its base, {f'{rivals}, ' if rivals else ''}"
        f"and with the paper's figures for {paper.model}, which are quoted."
    )
    parts = []
    for verdict in VERDICTS:
        named = [claim.name for claim in claims if claim.verdict == verdict]
        verb = verdict if len(named) == 1 else verdict.replace("holds", "hold").replace("does", "do")
        parts += [f"{len(named)} {verb} ({', '.join(named)})"] if named else []
    yield Text(f"Result: of the paper's {len(claims)} claims, {'; '.join(parts)}.")
    yield Text("How to read: bars are means, dots single trainings (seeds), the dashed line is the base.")


def _card(claim: Claim) -> Card:
    """Return a claim with its chart."""
    caption = claim.words("caption")
    svg = draw_bars(claim.groups, caption=caption, is_shared=claim.is_shared)
    picture = Picture(f"claim_{claim.name}", f"{caption}.", svg) if any(g.bars for g in claim.groups) else None
    return Card(claim.words("statement"), claim.verdict, claim.in_short, f"{claim.tally}.", picture)


def _section(cells: Cells, table: Table) -> Details:
    """Return a table under its name and finding, with what a reader needs to judge it."""
    paper = table.paper
    blocks: list[Block] = []
    if paper:
        direction = "higher" if paper.higher_is_better else "lower"
        blocks.append(Text(f"{paper.title}; {paper.unit}, {direction} is better. {paper.note}".strip()))
    blocks += [*_table(table), *_comparisons(table)]
    blocks += [*_cloze(cells)] if table.name == "infilling" else []
    blocks += [*_bars(table), *_curves(cells, table)]
    differing = differing_settings(table.records, cells.row_of)
    lists = {
        "Rows differ in:": [f"{key}: {text}" for key, text in differing.items()],
        "Measured on:": list_counts(table.records),
    }
    folded = [Bullets(text, items) for text, items in lists.items() if items]
    if folded:
        warning = f"rows differ in {', '.join(differing)}" if differing else "the same for all rows"
        blocks.append(Details("Settings and counts", warning, folded))
    head = table_name(table.name) + (f" ({paper.number})" if paper else "")
    return Details(head, _finding(cells, table), blocks)


def _finding(cells: Cells, table: Table) -> str:
    """Return the figures of MAGNET, the recipe and the base: of the mean column, or averaged over all columns."""
    if not any(row.values for row in table.measured):
        return "nothing was measured here"
    metric = RATIO if table.name in REFERENCES else "rep_4" if table.name == "repetition" else table.columns[0].metric
    wanted = [cells.find(table.columns[0].table, names) for names in (FILLED, RECIPE, CONTROL, CAUSAL)]
    rows = [row for name in wanted for row in table.measured if row.name == name and row.values]
    columns = [c for c in table.columns if c.metric == metric and all(c in row.values for row in rows)]
    columns = [column for column in columns if column.unit == "average"] or columns
    if not rows or not columns or table.paper is None:
        return f"systems: {len(table.measured)}"
    parts = []
    for row in rows:
        mean = sum(row.values[column].mean for column in columns) / len(columns)
        parts.append(f"{row_name(row.name)} {show_ratio(mean) if metric == RATIO else show(mean, digits_of(metric))}")
    what = column_name(columns[0].unit, metric) if len(columns) == 1 else f"mean of {len(columns)} columns"
    return f"{', '.join(parts)} ({what})"


def _table(table: Table) -> Iterator[Block]:
    """Yield the rows, and the reasons for missing figures."""
    every = [*table.measured, *table.quoted]
    if table.paper:
        heads = ["System", "Origin", *(column_name(column.unit, column.metric) for column in table.columns)]
        rows = [[row_name(row.name), row.origin, *(_cell(row, column) for column in table.columns)] for row in every]
    else:  # a row for each system and unit
        metrics = list(dict.fromkeys(column.metric for column in table.columns))
        heads = ["System", "Origin", "Measured on", *(column_name("", metric) for metric in metrics)]
        rows = [
            [row_name(row.name), row.origin, unit_name(unit)]
            + [_cell(row, Column(unit, metric, table.name)) for metric in metrics]
            for row in every
            for unit in dict.fromkeys(column.unit for column in (*row.values, *row.missing))
        ]
    yield Grid(heads, rows, [row[1] == QUOTED for row in rows])
    if table.measured:
        yield Text("± standard deviation over trainings; of multiples of the base: standard error.")
    for reason in dict.fromkeys(reason for row in every for reason in row.missing.values()):
        yield Text(f"n/a: not available here: {reason}")


def _cell(row: Row, column: Column) -> str:
    """Format a figure, or say that it is missing."""
    value = row.values.get(column)
    return _shown(value, column.metric) if value else "n/a" if column in row.missing else ABSENT


def _shown(value: Value, metric: str) -> str:
    """Format a figure: ratios with their error, others with their spread."""
    if metric == RATIO:
        return show_ratio(value.mean, value.error)
    return show(value.mean, digits_of(metric), spread=value.spread)


def _comparisons(table: Table) -> Iterator[Block]:
    """Yield the figures that the paper and we have, and the gain of each over its own base."""
    base = table.paper.base if table.paper else None
    quoted = {row.name: row for row in table.quoted}
    rows = []
    for name, ours in table.answers.items():
        for column in quoted[name].values if name != base else ():
            # The perplexities themselves are of other tokens.
            if column in ours.values and (table.name not in REFERENCES or column.metric == RATIO):
                pairs = ((quoted[name], quoted.get(str(base))), (ours, table.answers.get(str(base))))
                names = [name, row_name(ours.name), column_name(column.unit, column.metric)]
                figures = [_cell(row, column) for row, _ in pairs]
                rows.append([*names, *figures, *(_gain(table, row, level, column) for row, level in pairs)])
    if rows:
        text = "Models differ in size: compare the gains over the base of the same table, positive where better."
        grid = Grid(["Row of the paper", "Our row", "Figure", "Paper", "Ours", "Gain, paper", "Gain, ours"], rows)
        yield Details("Compared with the paper", f"{len(rows)} figures that both have", [Text(text), grid])


def _gain(table: Table, row: Row, base: Row | None, column: Column) -> str:
    """Return the improvement over a base in the unit of the table."""
    if base is None or table.paper is None or column not in base.values:
        return ABSENT
    gain = row.values[column].mean - base.values[column].mean
    return show(gain if table.paper.higher_is_better else -gain, 2, sign="+")


def _cloze(cells: Cells) -> Iterator[Block]:
    """Yield Story Cloze, each cell compared story by story with MAGNET's infilling of the same task."""
    from scipy.stats import binomtest  # needs the extra `eval`

    rows, magnet = [], str(cells.find(CLOZE, FILLED))
    for unit in cells.units(CLOZE):
        for row in cells.rows(CLOZE):
            value = cells.value(CLOZE, row, unit, "accuracy")
            places = ((row, unit), (magnet, f"{unit.split(', ')[0]}, infilling"))
            found = [[r.samples[0].get("hits", "") for r in cells.final(CLOZE, *p) if r.samples] for p in places]
            hits, others = (str(one[0]) if one else "" for one in found)
            test = ABSENT
            if hits and len(hits) == len(others) and places[0] != places[1]:
                pairs = Counter(zip(others, hits, strict=True))
                wins, losses = pairs["1", "0"], pairs["0", "1"]
                p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
                test = f"{wins} to {losses}, p = {p:.2g}"
            rows += [[unit, row_name(row), _shown(value, "accuracy"), test]] if value else []
    if rows:
        yield Text("Story Cloze: which sentence belongs to the story", is_heading=True)
        yield Grid(
            ["Task, reading", "System", "Right choices, %", "Only MAGNET's infilling right, or only this"], rows
        )
        yield Text("p: McNemar's exact test on the same stories, of the first training.")


def _bars(table: Table) -> Iterator[Picture]:
    """Yield a chart of all measured rows for each column that was measured."""
    level, most = (("base, left", 1.0), 2.0) if table.name in REFERENCES else (None, math.inf)
    for number, column in enumerate(table.columns):
        bars = {row.name: row.values[column] for row in table.measured if column in row.values}
        if bars and column.metric == BARS.get(table.name):
            group = Group(column_name(column.unit, column.metric), bars, level, most=most)
            svg = draw_bars([group], caption=f"{table_name(table.name)}: {group.title}")
            yield Picture(f"{table.name}_{number}", "", svg)


def _curves(cells: Cells, table: Table) -> Iterator[Picture]:
    """Yield charts over training steps, which end at the figures of the table."""
    base = cells.find(table.name, REFERENCES.get(table.name, CAUSAL))
    for number, unit in enumerate(cells.units(table.name)):
        for metric in CURVES.get(table.name, ()):
            curves = {row: cells.curve(table.name, row, unit, metric) for row in cells.rows(table.name)}
            curves = {row: curve for row, curve in curves.items() if len(curve) > 1 and row not in BASE}
            level = cells.value(table.name, base, unit, metric) if base else None
            if curves:
                name = f"{column_name('' if unit == 'training' else unit, metric)} over training steps"
                line = (str(base), level.mean) if level else None
                svg = draw_curves(name, curves, level=line, caption=f"{table_name(table.name)}: {name}")
                yield Picture(f"{table.name}_{number}_{metric}_steps", "", svg)


def _samples(cells: Cells, records: Sequence[Record]) -> Iterator[Block]:
    """Yield what the systems wrote, text by text, if there are samples."""
    blocks: list[Block] = []
    records = sorted((r for r in records if r.table == SAMPLES), key=lambda r: (r.unit, r.system, r.replica, r.seed))
    for unit in dict.fromkeys(record.unit for record in records):
        chosen = [record for record in records if record.unit == unit]
        texts: dict[str, list[str]] = defaultdict(list)
        for record in chosen:
            name = row_name(cells.row_of(record))
            for sample in record.samples:
                place = f"{sample.get('title', 'Text')}: {sample.get('prefix', '')} […] {sample.get('suffix', '')}"
                texts[place.strip()].append(f"{name}: {sample.get('fill', sample.get('continuation', ABSENT))}")
        blocks += [Bullets(place, written) for place, written in texts.items()]
        missing = [f"{row_name(r.system)}: not available here: {r.unavailable}" for r in chosen if r.unavailable]
        blocks += [Bullets("Not shown:", missing)] if missing else []
    if blocks:
        yield Details(table_name(SAMPLES), "what the systems wrote in the same places", blocks)


def _rule(judged: Mapping[str, Sequence[Claim]]) -> Details:
    """Return the rule of the verdicts, and each comparison with its figures, on every model."""
    blocks: list[Block] = [Text(RULE)]
    for model, claims in judged.items():
        for claim in claims:
            blocks.append(Text(f"{claim.name}, {model}: {claim.verdict}", is_heading=True))
            blocks.append(Text(f"{claim.words('statement')} Threshold: {claim.words('threshold')}"))
            rows = [[f.what, f.outcome, f.numbers, f.warning or ABSENT] for f in claim.findings]
            blocks.append(Grid(["Comparison", "Counts", "Figures", "Warning"], rows))
    return Details("How the claims are judged", "the rule, and every comparison with its figures", blocks)


def _missing(tables: Sequence[Table]) -> Details:
    """Return the columns of the paper without a figure of ours."""
    items = []
    for table in tables:
        if table.paper and table.absent:
            is_whole = len(table.absent) == len(table.paper.columns)
            what = "the whole table" if is_whole else ", ".join(column_name(c.unit, c.metric) for c in table.absent)
            items.append(f"{table_name(table.name)} ({table.paper.number}): {what}")
    return Details("Not measured", f"{len(items)} tables with gaps", [Bullets("Without a figure of ours:", items)])


def _conditions(results: Results, paper: PaperValues) -> Details:
    """Return time, presets, hardware, versions, and skipped records."""
    records = results.records
    latest = max(record.time for record in records)[:10] or "an unknown day"
    hours = sum(record.seconds for record in records) / 3600
    presets = {str(record.settings["preset"]) for record in records if "preset" in record.settings}
    texts = [
        f"{len(records)} cells, the latest of {latest}; they took {show(hours, 2)} hours in all.",
        f"Quoted: {paper.source}; {paper.model}. No cell and no mean holds both measured and quoted figures.",
        f"Presets: {', '.join(sorted(presets))}. Only the preset paper has the paper's sizes.",
    ]
    counts = Counter(f"{key} {value}" for r in records for key, value in {**r.hardware, **r.versions}.items())
    blocks: list[Block] = [*map(Text, texts)]
    blocks.append(Bullets("Hardware and versions (cells):", [f"{k} ({n})" for k, n in sorted(counts.items())]))
    blocks += [Bullets("Skipped or odd in the files of records:", results.problems)] if results.problems else []
    return Details("Conditions", f"{len(records)} cells, {latest}", blocks)
