"""Judge the paper's four claims from the records by a stated rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from examples.evaluate.reporting.cells import Cells, Value
from examples.evaluate.reporting.charts import Group
from examples.evaluate.reporting.names import NAMES, column_name, digits_of, row_name, show, show_ratio, unit_name
from examples.evaluate.reporting.paper_values import PaperValues
from examples.evaluate.reporting.tables import REFERENCES

Outcome = Literal["for", "against", "within the error", "not measured"]
Names = tuple[str, ...]
Place = tuple[str, Sequence[str], str]  # table, units, metric
Verdict = Literal["does not hold", "holds in part", "holds", "not measured"]

RULE = (
    "Each comparison counts for or against its claim where it differs from the threshold by more than two standard "
    "errors of the difference: of the mean over trainings, of MMLU's questions, and of the paired differences over "
    "texts where the loss of each text is on record. Models that were not trained here have no error of training. "
    "Where a system has a single training, its error is unknown: the sign of the difference or the error over texts "
    "decides, with a warning. A claim holds where every comparison was measured and counts for it; holds in part "
    "where some count for it; does not hold where some were measured and none counts for it."
)
ERRORS = 2.0
ONE_RUN = "one training each"
# Accuracy in percent on questions with four choices.
CHANCE = 25.0
MAGNET, RECIPE, BASE = ("MAGNET",), ("LLM2Vec recipe",), REFERENCES["perplexity"]
CAUSAL, SAME_PAIRS = ("base, causal", "base"), ("LLM2Vec recipe, MAGNET's pairs",)
FILLED, LEFT, BASE_FILLED = ("MAGNET, infill", "MAGNET"), REFERENCES["infilling"], ("base, infill",)
CONTROL, OTHER_SUFFIX = ("causal control, left", "causal control"), ("MAGNET, other suffix",)


class Figure(NamedTuple):
    """A figure with the name of its row."""

    row: str
    value: Value | None


@dataclass(frozen=True)
class Finding:
    """One comparison with its figures, empty if one is missing."""

    what: str
    outcome: Outcome
    numbers: str
    warning: str = ""
    means: tuple[float, ...] = ()


@dataclass(frozen=True)
class Claim:
    """One claim with its comparisons, a sentence of the deciding figures, and the groups of its chart."""

    name: str
    findings: list[Finding]
    in_short: str
    groups: list[Group]
    is_shared: bool = False

    def words(self, kind: str) -> str:
        """Return the statement, the threshold or the caption of the chart."""
        return NAMES[f"claim {kind}"][self.name]

    @property
    def verdict(self) -> Verdict:
        """Return the verdict by `RULE`."""
        outcomes = {finding.outcome for finding in self.findings}
        if outcomes == {"for"}:
            return "holds"
        if "for" in outcomes:
            return "holds in part"
        return "does not hold" if outcomes - {"not measured"} else "not measured"

    @property
    def tally(self) -> str:
        """Return how many comparisons count for the claim, and what limits them."""
        measured = [finding for finding in self.findings if finding.outcome != "not measured"]
        counted = sum(finding.outcome == "for" for finding in measured)
        absent = len(self.findings) - len(measured)
        warnings = dict.fromkeys(finding.warning for finding in measured if finding.warning)
        parts = [f"{counted} of {len(measured)} comparisons count for it", *warnings]
        return "; ".join([*parts, *([f"{absent} not measured"] if absent else [])])


def judge_claims(cells: Cells, paper: PaperValues) -> list[Claim]:
    """Judge the four claims.

    Source: Khosla et al. 2025, section 4.
    """
    return [_infilling(cells), _representations(cells), _repetition(cells), _knowledge(cells, paper)]


def figure(cells: Cells, table: str, names: Sequence[str], units: Sequence[str], metric: str) -> Figure:
    """Look up the mean of a row over units."""
    row = cells.find(table, names)
    return Figure(row or names[0], cells.mean(table, row, units, metric) if row and units else None)


def judge(what: str, terms: Sequence[tuple[float, Figure]], *, offset: float = 0.0, digits: int = 3) -> Finding:
    """Compare a weighted sum of figures plus an offset with zero."""
    shown = [
        f"{row_name(row)} {show(value.mean, digits, spread=value.error or None) if value else 'not measured'}"
        for _, (row, value) in terms
    ]
    values = [(weight, found.value) for weight, found in terms if found.value]
    if len(values) < len(terms):
        return Finding(what, "not measured", "; ".join(shown))
    total = offset + sum(weight * value.mean for weight, value in values)
    error = math.hypot(*(weight * value.error for weight, value in values))
    outcome: Outcome = "for" if total > 0 else "against"
    if total == 0 or abs(total) <= ERRORS * error:
        outcome = "within the error"
    shown.append(f"{show(total, 2, sign='+')} from the threshold, two standard errors {show(ERRORS * error, 2)}")
    warning = ONE_RUN if any(value.is_trained and len(value.runs) < 2 for _, value in values) else ""
    return Finding(what, outcome, "; ".join(shown), warning, tuple(value.mean for _, value in values))


def growth(cells: Cells, what: str, table: str, unit: str, metric: str, system: tuple[str, ...]) -> Finding:
    """Judge whether the figure of a system grows over training steps."""
    from scipy.stats import linregress  # needs the extra `eval`

    row = cells.find(table, system)
    points = cells.points(table, row, unit, metric) if row else []
    steps = [record.step for record, _ in points]
    if len(set(steps)) < 3:
        return Finding(what, "not measured", f"{row or system[0]}: fewer than three steps on record")
    line = linregress(steps, [value for _, value in points])
    outcome: Outcome = "against" if line.slope > ERRORS * line.stderr else "for"
    numbers = f"{1000 * line.slope:+.2g} in 1,000 steps, standard error {1000 * line.stderr:.2g}"
    return Finding(what, outcome, numbers)


def _infilling(cells: Cells) -> Claim:
    """Judge infilling against the base from the left, reading both sides, and trained causally."""
    findings, groups, shares = [], [], []
    systems: list[Names] = [FILLED, LEFT, CONTROL, OTHER_SUFFIX, BASE_FILLED]
    rows = {names: str(cells.find("infilling", names) or names[0]) for names in systems}
    rivals: dict[Names, str] = {LEFT: "the base from the left", BASE_FILLED: "the base reading both sides"}
    rivals |= {CONTROL: "the base trained causally"} if rows[CONTROL] in cells.rows("infilling") else {}
    for unit in cells.units("infilling") or ["ROCStories", "WikiText"]:
        for names, rival in rivals.items():
            value = cells.ratio("infilling", rows[FILLED], rows[names], unit)
            findings.append(judge(f"{unit_name(unit)}, to {rival}", [(-1, Figure("MAGNET", value))], offset=1.0))
            if names == LEFT and value:
                shares.append(f"{show_ratio(value.mean, value.error)} ({unit_name(unit)})")
        shown = {row: cells.ratio("infilling", row, rows[LEFT], unit) for row in rows.values()}
        bars = {row: value for row, value in shown.items() if value and row != rows[LEFT]}
        groups.append(Group(unit_name(unit), bars, ("base, left", 1.0), most=2.0))
    in_short = f"MAGNET's perplexity is {', '.join(shares)} times that of the base from the left." if shares else ""
    return Claim("infilling", findings, in_short, groups, is_shared=True)


def _representations(cells: Cells) -> Claim:
    """Judge word probes, STS and clustering against LLM2Vec's recipe."""
    columns: list[tuple[str, list[str], str, str]] = [
        ("words", [unit], "accuracy", column_name(unit, "accuracy")) for unit in ("chunking", "ner", "pos")
    ]
    for table, metric, name in (("sts", "spearman", "STS"), ("clustering", "v_measure", "clustering")):
        rows = [str(cells.find(table, names)) for names in (MAGNET, RECIPE)]
        units = [unit for unit in cells.units(table) if all(cells.value(table, row, unit, metric) for row in rows)]
        columns.append((table, units, metric, f"{name}, mean of {len(units)} sets"))
    findings, groups = [], []
    for table, units, metric, name in columns:
        ours, rival = (figure(cells, table, names, units, metric) for names in (MAGNET, RECIPE))
        findings.append(judge(name, [(1, ours), (-1, rival)]))
        others = (SAME_PAIRS, ("Echo",), ("MiniLM",)) if table == "sts" else ()
        groups.append(_group(cells, name, (table, units, metric), MAGNET, RECIPE, *others, CAUSAL))
    pairs = [(name, found.means) for (_, _, _, name), found in zip(columns, findings, strict=True) if found.means]
    parts = [f"{show(ours)} against {show(rival)} ({name.split(',')[0]})" for name, (ours, rival) in pairs[-3:]]
    in_short = f"MAGNET has {', '.join(parts)}." if parts else ""
    return Claim("representations", findings, in_short, groups)


def _repetition(cells: Cells) -> Claim:
    """Judge repetition against the recipe, relative to the base, and over steps."""
    findings, groups, parts = [], [], []
    for unit in ("WikiText", "ROCStories"):
        for metric in ("rep_sen", "rep_4"):
            name = column_name(unit, metric)
            ours, rival, base = (
                figure(cells, "repetition", names, [unit], metric) for names in (MAGNET, RECIPE, BASE)
            )
            recipe, level = (found.value.mean if found.value else 0.0 for found in (rival, base))
            share = 0.5 if recipe >= level else 0.0
            near = judge(f"{name}, against the base", [(-1, ours), (1 - share, base), (share, rival)], digits=2)
            findings += [
                judge(f"{name}, against LLM2Vec's recipe", [(1, rival), (-1, ours)], digits=2),
                near,
                growth(cells, f"{name}, over training steps", "repetition", unit, metric, MAGNET),
            ]
            groups.append(_group(cells, name, ("repetition", [unit], metric), MAGNET, RECIPE, BASE))
            if near.means and metric == "rep_4":
                figures = [show(mean, 2) for mean in near.means]
                parts.append(f"{figures[0]} on {unit_name(unit)} (recipe {figures[2]}, base {figures[1]})")
    in_short = f"MAGNET repeats this share of its 4-grams: {', '.join(parts)}." if parts else ""
    return Claim("repetition", findings, in_short, groups)


def _knowledge(cells: Cells, paper: PaperValues) -> Claim:
    """Judge MMLU and perplexity against the base, allowing for what the paper's model lost."""
    knowledge, texts = paper.tables["mmlu"], paper.tables["perplexity"]
    average, column = knowledge.columns[-1], texts.columns[0]
    lost = knowledge.row("LLaMA-2-7B").values[average] - knowledge.row("MAGNET, WikiText").values[average]
    limit = texts.row("MAGNET").values[column] / texts.row("LLaMA-2-7B").values[column]
    findings, groups, parts = [], [], []
    for unit in cells.units("perplexity") or ["WikiText"]:
        rows = {names: str(cells.find("perplexity", names)) for names in (MAGNET, RECIPE, BASE)}
        ratios = {row: cells.ratio("perplexity", row, rows[BASE], unit) for row in rows.values()}
        ours = Figure(f"{row_name(rows[MAGNET])} to the base", ratios[rows[MAGNET]])
        name = f"perplexity, {unit_name(unit)}"
        findings.append(judge(name, [(-1, ours)], offset=limit))
        bars = {row: value for row, value in ratios.items() if value and row != rows[BASE]}
        groups.append(Group(name, bars, ("base", 1.0), most=2.0))
        if ours.value:
            parts.append(f"perplexity is {show_ratio(ours.value.mean)} times the base's on {unit_name(unit)}")
    ours, base = (figure(cells, "mmlu", names, ["average"], "accuracy") for names in (MAGNET, BASE))
    mmlu = judge("MMLU, mean accuracy", [(1, ours), (-1, base)], offset=lost)
    if mmlu.means:
        parts.append(f"MMLU's mean changes by {show(mmlu.means[0] - mmlu.means[1], 2, sign='+')} points")
        groups.append(_group(cells, "MMLU, %", ("mmlu", ["average"], "accuracy"), MAGNET, BASE))
    if base.value and mmlu.means and base.value.mean - ERRORS * base.value.error <= CHANCE:
        parts[-1] += ", where the base only guesses"
        reason = f"{mmlu.numbers}; the base is not above chance ({CHANCE:g} %): it has no knowledge to lose"
        mmlu = replace(mmlu, outcome="not measured", numbers=reason)
    in_short = f"With MAGNET, {', '.join(parts)}." if parts else ""
    return Claim("knowledge", [mmlu, *findings], in_short, groups)


def _group(cells: Cells, title: str, place: Place, *systems: Names) -> Group:
    """Return the bars of the systems that were measured, and the level of the last one, which is the base."""
    *found, base = (figure(cells, place[0], names, *place[1:]) for names in systems)
    level = ("base", base.value.mean) if base.value else None
    return Group(title, {row: value for row, value in found if value}, level, digits_of(place[2]))
