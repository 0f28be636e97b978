"""The report from records and the paper's numbers: verdicts, tables with their figures, samples, conditions."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from examples.evaluate.records import Record
from examples.evaluate.reporting.blocks import (
    Answer,
    Block,
    Bullets,
    Details,
    Grid,
    Heading,
    Link,
    Notes,
    Page,
    Story,
    Text,
)
from examples.evaluate.reporting.cells import NOT_SAID, ROW_SETTINGS, Cells, Results, Value, reading_of, setting_told
from examples.evaluate.reporting.claims import NO_STEPS, RULE, UNTRAINED, Claim, judge_claims
from examples.evaluate.reporting.paper_values import Column, PaperTable, PaperValues
from examples.evaluate.reporting.plots import draw_bars, draw_infilling, draw_objectives, draw_repetition
from examples.evaluate.reporting.tables import MEASURED, OURS, PROMPTED, SIZES, Row, Table, build_table

ABSENT = "–"


def opening_blocks(
    results: Results, paper: PaperValues, claims: Sequence[Claim], tables: Mapping[str, Table], *, name: str
) -> Iterator[Block]:
    """Yield what a reader has to know before the first table."""
    records = results.records
    trainings = count_trainings(records)
    latest = max(record.time for record in records)
    yield Text(
        f"Studied: {name}. {trainings} training{'' if trainings == 1 else 's'}, {len(records)} cells on record, the "
        f"latest of {latest or 'an unknown time'}; beside them the paper ({paper.source}; {paper.model})."
    )
    yield Grid(
        ["Claim", "Verdict", "In figures", "Warnings"],
        [[claim.question, claim.verdict, claim.in_short, _warnings(claim)] for claim in claims],
    )
    yield from _presets(records)
    missing = list(_missing(paper, claims, tables))
    if missing:
        yield Bullets("Missing:", missing)
    yield Text(
        f"Rows are either {MEASURED} or quoted from the paper; no cell and no mean holds both. Of figures measured "
        f"here: mean ± standard deviation over replicas (trainings) and seeds, n of them. {SIZES}"
    )


def count_trainings(records: Sequence[Record]) -> int:
    """Count the trainings: those that have curves, or weights of their own, whichever are more."""
    curves = {(record.system, record.replica) for record in records if record.table == "curves"}
    trained = {name.split(",")[0] for name in OURS} - {*UNTRAINED, *PROMPTED}
    weights = {
        record.model.get("weights")
        for record in records
        # A checkpoint is part of a training, and so are the weights below an adapter.
        if record.step is None and record.system.split(",")[0] in trained and "adapter off" not in record.system
    }
    return max(len(curves), len(weights - {None}))


def base_name(records: Sequence[Record]) -> str | None:
    """Return what the base was called where it was measured; `None` where nobody did, or of several."""
    names = {str(record.model.get("name")) for record in records if record.system.split(",")[0] == "base"}
    return names.pop() if len(names) == 1 else None


def _warnings(claim: Claim) -> str:
    """Return what weakens the verdict."""
    told = dict.fromkeys(w for one in claim.findings if one.outcome != "not measured" for w in one.warnings)
    left_out = sum(one.outcome == "not measured" for one in claim.findings)
    absent = [f"{left_out} of {len(claim.findings)} comparisons not measured"] if left_out else []
    return "; ".join([*told, *absent]) or ABSENT


def _presets(records: Sequence[Record]) -> Iterator[Block]:
    """Yield where the sizes are not those of the paper."""
    presets: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if "preset" in record.settings:  # curves are of trainings, which have none
            presets[str(record.settings["preset"])].add(record.table)
    if set(presets) - {"paper"}:
        told = "; ".join(f"{preset}: {', '.join(sorted(tables))}" for preset, tables in sorted(presets.items()))
        mixed = "Mixed presets" if len(presets) > 1 else "Preset"
        yield Text(f"{mixed} ({told}). Only figures of the preset paper have the paper's sizes.", is_warning=True)


def _missing(paper: PaperValues, claims: Sequence[Claim], tables: Mapping[str, Table]) -> Iterator[str]:
    """Yield columns of the paper without a figure of ours, and comparisons without an outcome."""
    for name, table in paper.tables.items():
        measured = {column for row in tables[name].rows if row.origin == MEASURED for column in row.values}
        absent = [column.title for column in table.columns if column not in measured]
        if absent:
            whole = len(absent) == len(table.columns)
            yield f"{table.number}, {name}: " + ("nothing was measured" if whole else f"no {', '.join(absent)}")
    for claim in claims:
        absent = [one.what for one in claim.findings if one.outcome == "not measured"]
        if absent:
            whole = len(absent) == len(claim.findings)
            told = "no comparison was measured" if whole else f"not measured: {'; '.join(absent)}"
            yield f"Claim {claim.name}: {told}"


SECTION = "Model size"
# Tables that claims are answered from.
TABLES = ("words", "sts", "clustering", "infilling", "repetition", "mmlu", "perplexity")
NOT_ASKED = "–"


@dataclass(frozen=True)
class Model:
    """A study of one base model."""

    name: str
    results: Results
    claims: list[Claim]


def size_blocks(models: Sequence[Model]) -> Iterator[Block]:
    """Yield the section: verdicts by model, then every comparison by model."""
    yield Heading(2, SECTION)
    if len(models) == 1:
        yield Text(
            f"One size was measured: {models[0].name}. Name the records of other base models with `--compare` to set "
            "them beside it."
        )
        return
    names = [model.name for model in models]
    yield Text(
        f"The same comparisons on {', '.join(names)}, each judged by the same rule from its own records; no figure of "
        "one is part of another's."
    )
    yield Grid(
        ["Claim", *names], [[claims[0].question, *(claim.verdict for claim in claims)] for claims in _by_claim(models)]
    )
    differing = _differing_settings(models)
    if differing:
        keys = ", ".join(dict.fromkeys(key for key, _ in differing))
        yield Text(f"The models were not measured alike; settings that differ: {keys}.", is_warning=True)
        yield Details(
            "Settings that differ between the models", [Bullets("By table:", [told for _, told in differing])]
        )
    for claims in _by_claim(models):
        yield Heading(3, f"{SECTION}: {claims[0].name}")
        yield _compared_sizes(names, claims)
    problems = [f"{model.name}: {problem}" for model in models[1:] for problem in model.results.problems]
    if problems:
        yield Bullets("Skipped or odd in the files of the other models' records:", problems)


def _by_claim(models: Sequence[Model]) -> list[tuple[Claim, ...]]:
    """Return each claim on all models."""
    return list(zip(*(model.claims for model in models), strict=True))


def _compared_sizes(names: Sequence[str], claims: Sequence[Claim]) -> Grid:
    """Return each comparison of a claim: how it counts on every model, then with what figures."""
    found = [{finding.what: finding for finding in claim.findings} for claim in claims]
    rows = []
    for what in dict.fromkeys(what for one in found for what in one):
        findings = [one.get(what) for one in found]
        outcomes = [finding.outcome if finding else NOT_ASKED for finding in findings]
        figures = ["; ".join([finding.numbers, *finding.warnings]) if finding else NOT_ASKED for finding in findings]
        rows.append([what, *outcomes, *figures])
    return Grid(["Comparison", *names, *(f"{name}, figures" for name in names)], rows)


def _differing_settings(models: Sequence[Model]) -> list[tuple[str, str]]:
    """Return settings of the same cell that differ between models: the key, and the key with its values."""
    by_model = {model.name: _settings(model) for model in models}
    found: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for cell in dict.fromkeys(cell for cells in by_model.values() for cell in cells):
        present = {name: cells[cell] for name, cells in by_model.items() if cell in cells}
        for key in dict.fromkeys(key for settings in present.values() for key in settings):
            values = {name: settings.get(key, {NOT_SAID}) for name, settings in present.items()}
            if len({frozenset(value) for value in values.values()}) > 1:
                for name, value in values.items():
                    found[cell[0], key][name] |= value
    told = []
    for (table, key), values in sorted(found.items()):
        parts = [f"{name}: {' and '.join(sorted(value))}" for name, value in values.items()]
        told.append((key, f"{table}, {key} ({'; '.join(parts)})"))
    return told


def _settings(model: Model) -> dict[tuple[str, str, str], dict[str, set[str]]]:
    """Return the values of every setting, for each cell that claims are answered from."""
    cells = Cells(model.results.records)
    found: dict[tuple[str, str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in model.results.records:
        if record.table in TABLES and record.unavailable is None:
            for key in sorted(record.settings.keys() - set(ROW_SETTINGS)):
                found[record.table, cells.row_of(record), record.unit][key].add(setting_told(record.settings[key]))
    return found


SAMPLES = "side_by_side"
TITLES = {"infilling": "Gaps filled", "continuation": "Beginnings continued"}
WRITTEN = ("fill", "continuation")


def sample_blocks(cells: Cells, records: Sequence[Record]) -> list[Heading | Text | Bullets | Story]:
    """Return the section of samples; nothing where there are none."""
    records = [record for record in records if record.table == SAMPLES]
    blocks: list[Heading | Text | Bullets | Story] = []
    for unit in sorted({record.unit for record in records}, key=lambda name: (name not in TITLES, name)):
        found = [record for record in records if record.unit == unit]
        blocks.append(Heading(3, TITLES.get(unit, unit)))
        blocks += _stories(cells, found)
        missing = [f"{r.system}: not available here: {r.unavailable}" for r in found if r.unavailable is not None]
        counts = {record.system: sum(_written(one) is None for one in record.samples) for record in found}
        odd = [f"{system}: {count} samples without a text" for system, count in counts.items() if count]
        if missing or odd:
            blocks.append(Bullets("Not shown:", sorted(missing + odd)))
    return blocks


def _stories(cells: Cells, records: Sequence[Record]) -> list[Story]:
    """Group samples of the same beginning and end, in the order of their first appearance."""
    writings: dict[tuple[str, str], list[tuple[str, str]]] = {}
    titles: dict[tuple[str, str], str] = {}
    truths: dict[tuple[str, str], str] = {}
    for record in sorted(records, key=lambda one: (one.system, one.replica, one.seed, one.step or 0)):
        alike = [one for one in records if one.system == record.system]
        # Another unit may have been read in another way; only what differs within this one needs to be told.
        name = cells.row_of(record) if len({reading_of(one) for one in alike}) > 1 else record.system
        for key in ("replica", "seed", "step"):
            if len({getattr(one, key) for one in alike}) > 1:
                name += f", {key} {getattr(record, key)}"
        for sample in record.samples:
            text = _written(sample)
            if text is None:
                continue
            place = str(sample.get("prefix", "")), str(sample.get("suffix", ""))
            writings.setdefault(place, []).append((name, text))
            titles.setdefault(place, str(sample.get("title", f"Text {len(titles) + 1}")))
            if sample.get("truth"):
                truths[place] = str(sample["truth"])
    stories = []
    for place, found in writings.items():
        truth = [("what stood there", truths[place])] if place in truths else []
        stories.append(Story(titles[place], *place, [*truth, *found]))
    return stories


def _written(sample: object) -> str | None:
    """Return what a system wrote, if the sample says so."""
    if not isinstance(sample, dict):
        return None
    return next((str(sample[key]) for key in WRITTEN if isinstance(sample.get(key), str)), None)


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
    """Return all blocks in their order."""
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
    """Yield the rule, then each claim with its numbers."""
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
    """Yield curves over steps and the link to other sizes, where a comparison does not count for the claim."""
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
    """Yield a table of the paper."""
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
    """Yield a table that the paper does not have; with several units it has a row for each."""
    yield Heading(2, heading)
    table = build_table(cells, name, None)
    yield from _table(table, is_long=len({column.unit for column in table.columns}) > 1)


def _table(table: Table, *, is_long: bool = False) -> Iterator[Block]:
    """Yield rows, then what is missing, then under what conditions."""
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
    """Return the rows of a table, each in one line or in one for each unit."""
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
    """Yield the paper's figures and ours, their difference, and the gain of each over its own base."""
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
    """Yield hardware, versions, time, and what was skipped."""
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
    """Return each combination with how often it is there."""
    counts: dict[str, int] = defaultdict(int)
    for one in found:
        counts[", ".join(f"{key} {value}" for key, value in sorted(one.items())) or "not on record"] += 1
    return [f"{told} ({count})" for told, count in sorted(counts.items())]


def _told(value: Value, digits: int) -> str:
    """Return a figure measured here."""
    spread = "" if value.spread is None else f" ± {value.spread:.{digits}f} (n = {value.n})"
    return f"{value.mean:.{digits}f}{spread}"


__all__ = ["PICTURES", "THIS_MODEL", "TITLE", "base_name", "build_page"]
