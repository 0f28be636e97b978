"""The same claims on models of other sizes, side by side; each model is judged by its own records alone."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from examples.reporting.blocks import Block, Bullets, Details, Grid, Heading, Text
from examples.reporting.cells import ROW_SETTINGS, Cells, Results
from examples.reporting.claims import Claim
from examples.reporting.conditions import NOT_SAID, setting_told

SECTION = "Model size"
# Tables that claims are answered from.
TABLES = ("words", "sts", "clustering", "infilling", "repetition", "mmlu", "perplexity")
NOT_ASKED = "–"


@dataclass(frozen=True)
class Model:
    """A study of one base model.

    Args:
        name (`str`): As the reader knows it.
        results (`Results`): Its records.
        claims (`list[Claim]`): Judged by them.
    """

    name: str
    results: Results
    claims: list[Claim]


def size_blocks(models: Sequence[Model]) -> Iterator[Block]:
    """The section: verdicts by model, then every comparison by model.

    Args:
        models (`Sequence[Model]`): The one of this page first.
    """
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
        ["Claim", *names],
        [[claims[0].question, *(claim.verdict for claim in claims)] for claims in _by_claim(models)],
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
        yield _comparisons(names, claims)
    problems = [f"{model.name}: {problem}" for model in models[1:] for problem in model.results.problems]
    if problems:
        yield Bullets("Skipped or odd in the files of the other models' records:", problems)


def _by_claim(models: Sequence[Model]) -> list[tuple[Claim, ...]]:
    """Each claim on all models."""
    return list(zip(*(model.claims for model in models), strict=True))


def _comparisons(names: Sequence[str], claims: Sequence[Claim]) -> Grid:
    """Each comparison of a claim: how it counts on every model, then with what figures."""
    found = [{finding.what: finding for finding in claim.findings} for claim in claims]
    rows = []
    for what in dict.fromkeys(what for one in found for what in one):
        findings = [one.get(what) for one in found]
        outcomes = [finding.outcome if finding else NOT_ASKED for finding in findings]
        figures = ["; ".join([finding.numbers, *finding.warnings]) if finding else NOT_ASKED for finding in findings]
        rows.append([what, *outcomes, *figures])
    return Grid(["Comparison", *names, *(f"{name}, figures" for name in names)], rows)


def _differing_settings(models: Sequence[Model]) -> list[tuple[str, str]]:
    """Settings of the same cell that are not the same on all models that have it: the key, and it with its values."""
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
    """Of each cell that claims are answered from the values of every setting."""
    cells = Cells(model.results.records)
    found: dict[tuple[str, str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in model.results.records:
        if record.table in TABLES and record.unavailable is None:
            for key in sorted(record.settings.keys() - set(ROW_SETTINGS)):
                found[record.table, cells.row_of(record), record.unit][key].add(setting_told(record.settings[key]))
    return found


__all__ = ["SECTION", "Model", "size_blocks"]
