"""The top of the report: what was studied, the four verdicts with a sentence of figures each, and what is missing."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from examples.evaluate.records import Record
from examples.reporting.blocks import Block, Bullets, Grid, Text
from examples.reporting.cells import Results
from examples.reporting.claims import Claim
from examples.reporting.findings import UNTRAINED
from examples.reporting.paper_values import PaperValues
from examples.reporting.tables import MEASURED, OURS, PROMPTED, SIZES, Table

ABSENT = "–"


def opening_blocks(
    results: Results, paper: PaperValues, claims: Sequence[Claim], tables: Mapping[str, Table], *, name: str
) -> Iterator[Block]:
    """What a reader has to know before the first table.

    Args:
        results (`Results`): The records.
        paper (`PaperValues`): What they are set beside.
        claims (`Sequence[Claim]`): Their verdicts.
        tables (`Mapping[str, Table]`): Those that the paper has, by name.
        name (`str`): Of the model that was studied.
    """
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
    """How many trainings the records are of: those that have curves, or weights of their own, whichever are more."""
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
    """What the base was called where it was measured; `None` where nobody did, or of several."""
    names = {str(record.model.get("name")) for record in records if record.system.split(",")[0] == "base"}
    return names.pop() if len(names) == 1 else None


def _warnings(claim: Claim) -> str:
    """What weakens the verdict."""
    told = dict.fromkeys(w for one in claim.findings if one.outcome != "not measured" for w in one.warnings)
    left_out = sum(one.outcome == "not measured" for one in claim.findings)
    absent = [f"{left_out} of {len(claim.findings)} comparisons not measured"] if left_out else []
    return "; ".join([*told, *absent]) or ABSENT


def _presets(records: Sequence[Record]) -> Iterator[Block]:
    """Where the sizes are not those of the paper."""
    presets: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if "preset" in record.settings:  # curves are of trainings, which have none
            presets[str(record.settings["preset"])].add(record.table)
    if set(presets) - {"paper"}:
        told = "; ".join(f"{preset}: {', '.join(sorted(tables))}" for preset, tables in sorted(presets.items()))
        mixed = "Mixed presets" if len(presets) > 1 else "Preset"
        yield Text(f"{mixed} ({told}). Only figures of the preset paper have the paper's sizes.", is_warning=True)


def _missing(paper: PaperValues, claims: Sequence[Claim], tables: Mapping[str, Table]) -> Iterator[str]:
    """Columns of the paper without a figure of ours, and comparisons without an outcome."""
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


__all__ = ["base_name", "count_trainings", "opening_blocks"]
