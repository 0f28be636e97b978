"""Judge the paper's four claims from the records by a stated rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from examples.evaluate.reporting.cells import Cells, Value, settings_warnings
from examples.evaluate.reporting.paper_values import PaperValues

Outcome = Literal["for", "against", "within the spread", "not measured"]
ONE_RUN = "one training run each"
TRIAL = "preset smoke: sizes of a trial"
NO_STEPS = "no records over training steps"
ERRORS = 2.0
# Systems whose weights nobody trained here; their replicas have no spread.
UNTRAINED = ("base", "Echo")


@dataclass(frozen=True)
class Finding:
    """One comparison."""

    what: str
    outcome: Outcome
    numbers: str
    warnings: tuple[str, ...] = ()
    trend: tuple[str, ...] = ()
    figures: tuple[float, ...] = ()


@dataclass(frozen=True)
class Term:
    """A figure of a sum: its row by the names it may have, and its weight; several units are averaged."""

    names: tuple[str, ...]
    weight: float


def judge(
    cells: Cells,
    what: str,
    table: str,
    units: Sequence[str],
    metric: str,
    terms: Sequence[Term],
    *,
    offset: float = 0.0,
    interval: bool = False,
) -> Finding:
    """Compare a weighted sum of figures with zero."""
    rows = [cells.find(table, term.names) for term in terms]
    values = [cells.mean(table, row, units, metric) if row and units else None for row in rows]
    measured: list[tuple[Term, str, Value]] = []
    for term, row, value in zip(terms, rows, values, strict=True):
        if row is not None and value is not None:
            measured.append((term, row, value))
    numbers = "; ".join(f"{row} {_told(value)}" for _, row, value in measured)
    if measured and len(units) > 1:
        numbers = f"mean over {', '.join(units)}: {numbers}"
    if len(measured) < len(terms):
        absent = [
            f"{row or term.names[0]}{_reason(cells, table, row, units)}"
            for term, row, value in zip(terms, rows, values, strict=True)
            if value is None
        ]
        return Finding(what, "not measured", "; ".join(filter(None, [numbers, f"not measured: {', '.join(absent)}"])))
    total = offset + sum(term.weight * value.mean for term, _, value in measured)
    single = any(value.run_error is None and not _is_untrained(row) for _, row, value in measured)
    errors = [_error(cells, table, row, units, term, value) for term, row, value in measured]
    error = math.sqrt(sum(one**2 for one in errors))
    outcome: Outcome = "for" if total > 0 else "against"
    if total == 0 or abs(total) <= ERRORS * error:
        outcome = "within the spread"
    numbers += f"; less the threshold {total:+.4g}"
    numbers += f", two standard errors {ERRORS * error:.4g}" if error else ""
    if interval and error:
        difference = total - offset
        low, high = difference - 1.96 * error, difference + 1.96 * error
        numbers += f"; difference {difference:.2f}, 95 % interval {low:.2f} to {high:.2f}"
    warnings = [ONE_RUN] if single else []
    records = [record for _, row, _ in measured for unit in units for record in cells.final(table, row, unit)]
    answered = [record for record in records if record.unavailable is None]
    warnings += [TRIAL] if any(record.settings.get("preset") == "smoke" for record in answered) else []
    warnings += settings_warnings(answered, cells.row_of)
    trend = () if outcome == "for" else _trend(cells, table, [row for _, row, _ in measured], units, metric)
    figures = tuple(value.mean for _, _, value in measured)
    return Finding(what, outcome, numbers, tuple(warnings), trend, figures)


def growth(cells: Cells, what: str, table: str, unit: str, metric: str, systems: Sequence[tuple[str, ...]]) -> Finding:
    """Judge whether the first of these systems grows over training steps; the others are told beside it."""
    from scipy.stats import linregress  # of the extra `eval`

    told: list[str] = []
    outcome: Outcome = "not measured"
    rows = [cells.find(table, names) for names in systems]
    row = rows[0]
    for name, names in zip(rows, systems, strict=True):
        points = cells.points(table, name, unit, metric) if name else []
        if len({step for step, _ in points}) < 3:
            told.append(f"{name or names[0]}: fewer than three steps on record")
            continue
        line = linregress([step for step, _ in points], [value for _, value in points])
        told.append(f"{name}: {1000 * line.slope:+.4g} in 1,000 steps, standard error {1000 * line.stderr:.4g}")
        if name == row:
            outcome = "against" if line.slope > ERRORS * line.stderr else "for"
    if outcome == "not measured":
        return Finding(what, "not measured", "; ".join(told))
    trend = () if outcome == "for" or row is None else _trend(cells, table, [row], [unit], metric)
    return Finding(what, outcome, "; ".join(told), (), trend)


def _error(cells: Cells, table: str, row: str, units: Sequence[str], term: Term, value: Value) -> float:
    """Return the standard error of a term: of its trainings, and of its measurement where that is on record."""
    trained = 0.0 if _is_untrained(row) else value.run_error or 0.0
    return abs(term.weight) * math.hypot(trained, measurement_error(cells, table, row, units))


def measurement_error(cells: Cells, table: str, row: str, units: Sequence[str]) -> float:
    """Return the standard error of the measurement itself, such as that of MMLU's questions."""
    found = [cells.value(table, row, unit, "stderr") for unit in units]
    return math.sqrt(sum(value.mean**2 for value in found if value)) / max(len(units), 1)


def _is_untrained(row: str) -> bool:
    """Return whether the row is of weights that nobody trained here."""
    return row.split(",")[0] in UNTRAINED


def _trend(cells: Cells, table: str, rows: Sequence[str], units: Sequence[str], metric: str) -> tuple[str, ...]:
    """Return the curve of each row over training steps."""
    told = []
    for row in dict.fromkeys(rows):
        for unit in units:
            curve = cells.curve(table, row, unit, metric)
            if len(curve) > 1:
                points = ", ".join(f"step {step}: {value.mean:.4f}" for step, value in curve.items())
                told.append(f"{row}, {unit}, {metric}: {points}")
    return tuple(told) or (NO_STEPS,)


def _reason(cells: Cells, table: str, row: str | None, units: Sequence[str]) -> str:
    """Return why a figure is not there, as far as the records say."""
    found = [r.unavailable for unit in units for r in (cells.final(table, row, unit) if row else []) if r.unavailable]
    return f" ({'; '.join(dict.fromkeys(found))})" if found else ""


def _told(value: Value) -> str:
    """Return a figure with its spread."""
    spread = f" ± {value.spread:.4f}" if value.spread is not None else ""
    return f"{value.mean:.4f}{spread} (n = {value.n})"


Verdict = Literal["holds", "holds in part", "does not hold", "not measured"]
RULE = (
    "Each comparison counts for or against the claim where it differs from its threshold by more than two standard "
    "errors of the difference: of the means over trainings, and of the questions of MMLU. Models that were not "
    "trained here have no error of training. Where a trained system has a single training, the sign of the difference "
    "counts, with a warning. A claim holds where every comparison counts for it; holds in part where some do; does "
    "not hold where some were measured and none counts for it; otherwise it was not measured."
)
CHANCE = 25.0


@dataclass(frozen=True)
class Claim:
    """One claim with its comparisons; `in_short` is one sentence of their figures."""

    name: str
    question: str
    threshold: str
    findings: list[Finding] = field(default_factory=list)
    in_short: str = ""

    @property
    def verdict(self) -> Verdict:
        """By the rule above."""
        outcomes = {finding.outcome for finding in self.findings}
        if outcomes == {"for"}:
            return "holds"
        if "for" in outcomes:
            return "holds in part"
        return "does not hold" if outcomes - {"not measured"} else "not measured"


MAGNET, RECIPE, BASE = ("MAGNET",), ("LLM2Vec recipe",), ("base", "base, causal")
FILLED, LEFT, BASE_FILLED = ("MAGNET, infill",), ("base, left", "base, causal"), ("base, infill",)


def judge_claims(cells: Cells, paper: PaperValues) -> list[Claim]:
    """Answer the four claims.

    Source: Khosla et al. 2025, section 4.
    """
    return [_representations(cells), _infilling(cells), _repetition(cells), _knowledge(cells, paper)]


def _representations(cells: Cells) -> Claim:
    """Judge claim (a), against LLM2Vec's recipe."""
    findings, names = [], ["chunking", "ner", "pos", "sts", "clustering"]
    for unit in names[:3]:
        findings.append(judge(cells, f"words, {unit}: accuracy", "words", [unit], "accuracy", _higher(RECIPE)))
    for table, metric in (("sts", "spearman"), ("clustering", "v_measure")):
        rows = [cells.find(table, names) for names in (MAGNET, RECIPE)]
        units = [
            unit
            for unit in cells.units(table)
            if all(row is not None and cells.value(table, row, unit, metric) for row in rows)
        ]
        told = f"{table}: mean {metric} over the sets that both have"
        findings.append(judge(cells, told, table, units, metric, _higher(RECIPE)))
    points = [
        f"{name} {one.figures[0] - one.figures[1]:+.2f}"
        for name, one in zip(names, findings, strict=True)
        if one.figures
    ]
    return Claim(
        "Representations",
        "Are MAGNET's representations better than those of LLM2Vec's recipe at equal budget?",
        "MAGNET less LLM2Vec recipe is above zero.",
        findings,
        _sentence("MAGNET less the recipe, in points", points),
    )


def _infilling(cells: Cells) -> Claim:
    """Judge claim (b), against reading from the left, and against what the base makes of both sides."""
    findings, shares = [], []
    for unit in ("ROCStories", "WikiText"):
        told = []
        for rival, names in (("the base from the left", LEFT), ("the base reading both sides", BASE_FILLED)):
            what, terms = f"{unit}: perplexity against {rival}", _lower(names, FILLED)
            one = judge(cells, what, "infilling", [unit], "perplexity", terms)
            findings.append(one)
            told.append(_share(one.figures[1], one.figures[0]) if one.figures else "not measured")
        if any(one.figures for one in findings[-2:]):
            shares.append(f"{unit} {told[0]} ({told[1]})")
    return Claim(
        "Infilling",
        "Does MAGNET fill gaps better than the base that sees the left side only?",
        "The base's perplexity of what was removed, less MAGNET's, is above zero.",
        findings,
        _sentence("MAGNET's perplexity against the base from the left (reading both sides)", shares),
    )


def _repetition(cells: Cells) -> Claim:
    """Judge claim (c), against the recipe, relative to the base, and over steps."""
    findings, shares = [], []
    for unit in ("WikiText", "ROCStories"):
        for metric in ("rep_sen", "rep_4"):
            what = f"{unit}: {metric}"
            limit = _limit(cells, unit, metric)
            near = judge(cells, f"{what} against the base", "repetition", [unit], metric, limit)
            if near.figures:
                ours, base, recipe = near.figures
                shares.append(f"{unit} {metric} {ours:.3f} ({recipe:.3f}; {base:.3f})")
            findings += [
                judge(cells, f"{what} against LLM2Vec recipe", "repetition", [unit], metric, _lower(RECIPE)),
                near,
                growth(cells, f"{what} over training steps", "repetition", unit, metric, (MAGNET, RECIPE)),
            ]
    return Claim(
        "Repetition",
        "Does open-ended generation stay free of the repetition that LLM2Vec's recipe brings?",
        "MAGNET repeats less than the recipe; less than the middle of base and recipe, as in the paper, or less than "
        "the base where the recipe repeats less than that; and its repetition does not grow over training steps (the "
        "slope of a straight line is not above zero by more than two of its standard errors; three steps at least).",
        findings,
        _sentence("Share that MAGNET repeats (recipe; base)", shares),
    )


def _limit(cells: Cells, unit: str, metric: str) -> list[Term]:
    """Return how much MAGNET may repeat, less what it does."""
    rows = [cells.find("repetition", names) for names in (BASE, RECIPE)]
    found = [cells.value("repetition", row, unit, metric) if row else None for row in rows]
    base, recipe = (value.mean if value else 0.0 for value in found)
    share = 0.5 if recipe >= base else 0.0
    return [Term(MAGNET, -1), Term(BASE, 1 - share), Term(RECIPE, share)]


def _knowledge(cells: Cells, paper: PaperValues) -> Claim:
    """Judge claim (d), MMLU and perplexity against the base, allowing for what the paper's model lost."""
    knowledge, texts = paper.tables["mmlu"], paper.tables["perplexity"]
    average, perplexity = knowledge.columns[-1], texts.columns[0]
    lost = knowledge.row("LLaMA-2-7B").values[average] - knowledge.row("MAGNET, WikiText").values[average]
    ratio = texts.row("MAGNET").values[perplexity] / texts.row("LLaMA-2-7B").values[perplexity]
    mmlu = judge(
        cells, "MMLU, average: accuracy", "mmlu", ["average"], "accuracy", _higher(BASE), offset=lost, interval=True
    )
    base = cells.find("mmlu", BASE)
    at_start = cells.value("mmlu", base, "average", "accuracy") if base else None
    error = measurement_error(cells, "mmlu", base, ["average"]) if base else 0.0
    if at_start is not None and mmlu.outcome != "not measured" and at_start.mean - ERRORS * error <= CHANCE:
        told = f"the base is not above chance ({CHANCE:g} %): it has no knowledge to lose, so that this says nothing"
        mmlu = replace(mmlu, outcome="not measured", warnings=(*mmlu.warnings, told), trend=())
    findings = [mmlu]
    changes = [f"MMLU's average {mmlu.figures[0] - mmlu.figures[1]:+.2f} points"] if mmlu.figures else []
    for unit in cells.units("perplexity") or ["WikiText"]:
        terms = [Term(BASE, ratio), Term(MAGNET, -1)]
        found = judge(cells, f"{unit}: text perplexity", "perplexity", [unit], "perplexity", terms)
        findings.append(found)
        changes += [f"perplexity of {unit} {_share(found.figures[1], found.figures[0])}"] if found.figures else []
    return Claim(
        "Knowledge",
        "Are knowledge and perplexity of the base kept?",
        f"No more is lost than the paper's own model lost: {lost:.1f} points of MMLU's average, and a perplexity of "
        f"{ratio:.3f} times the base's.",
        findings,
        _sentence("MAGNET against its base", changes),
    )


def _sentence(head: str, told: Sequence[str]) -> str:
    """Return one sentence of figures."""
    return f"{head}: {', '.join(told)}." if told else "Nothing was measured."


def _share(value: float, base: float) -> str:
    """Return how much more than the base, in percent of it."""
    return f"{100 * (value - base) / base:+.1f} %" if base else f"{value:.4g} where the base has 0"


def _higher(rival: tuple[str, ...]) -> list[Term]:
    """Return the sum that is positive where MAGNET is above a rival."""
    return [Term(MAGNET, 1), Term(rival, -1)]


def _lower(rival: tuple[str, ...], ours: tuple[str, ...] = MAGNET) -> list[Term]:
    """Return the sum that is positive where MAGNET is below a rival."""
    return [Term(rival, 1), Term(ours, -1)]


__all__ = ["Claim", "NO_STEPS", "ONE_RUN", "RULE", "TRIAL", "UNTRAINED", "judge_claims"]
