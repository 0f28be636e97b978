"""Judge the paper's four claims from the records by a stated rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from examples.evaluate.reporting.cells import Cells, Value, settings_warnings
from examples.evaluate.reporting.paper_values import PaperValues

Outcome = Literal["for", "against", "within the spread", "not measured"]
Verdict = Literal["holds", "holds in part", "does not hold", "not measured"]
# One figure of a weighted sum: the possible names of its row, and its weight.
Term = tuple[tuple[str, ...], float]

RULE = (
    "Each comparison counts for or against the claim where it differs from its threshold by more than two standard "
    "errors of the difference: of the means over trainings, and of the questions of MMLU. Models that were not "
    "trained here have no error of training. Where a trained system has a single training, the sign of the difference "
    "counts, with a warning. A claim holds where every comparison counts for it; holds in part where some do; does "
    "not hold where some were measured and none counts for it; otherwise it was not measured."
)
ERRORS = 2.0
ONE_RUN = "one training run each"
TRIAL = "preset smoke: sizes of a trial"
# Systems that were not trained here; their replicas have no spread.
UNTRAINED = ("base", "Echo")
# Accuracy in percent on questions with four choices.
CHANCE = 25.0
MAGNET, RECIPE, BASE = ("MAGNET",), ("LLM2Vec recipe",), ("base", "base, causal")
FILLED, LEFT, BASE_FILLED = ("MAGNET, infill",), ("base, left", "base, causal"), ("base, infill",)


@dataclass(frozen=True)
class Finding:
    """One comparison; `figures` are those of its terms, empty if one is missing."""

    what: str
    outcome: Outcome
    numbers: str
    warnings: tuple[str, ...] = ()
    figures: tuple[float, ...] = ()


@dataclass(frozen=True)
class Claim:
    """One claim with its comparisons; `in_short` is one sentence with their figures."""

    name: str
    question: str
    threshold: str
    findings: list[Finding] = field(default_factory=list)
    in_short: str = ""

    @property
    def verdict(self) -> Verdict:
        """Return the verdict by `RULE`."""
        outcomes = {finding.outcome for finding in self.findings}
        if outcomes == {"for"}:
            return "holds"
        if "for" in outcomes:
            return "holds in part"
        return "does not hold" if outcomes - {"not measured"} else "not measured"


def judge_claims(cells: Cells, paper: PaperValues) -> list[Claim]:
    """Judge the four claims.

    Source: Khosla et al. 2025, section 4.
    """
    return [_representations(cells), _infilling(cells), _repetition(cells), _knowledge(cells, paper)]


def judge(
    cells: Cells,
    what: str,
    table: str,
    units: Sequence[str],
    metric: str,
    terms: Sequence[Term],
    *,
    offset: float = 0.0,
) -> Finding:
    """Compare a weighted sum of figures (each a mean over units) plus an offset with zero."""
    rows = [cells.find(table, names) for names, _ in terms]
    figures = [cells.mean(table, row, units, metric) if row and units else None for row in rows]
    numbers = [_shown(row, value) for row, value in zip(rows, figures, strict=True) if value is not None]
    numbers[:1] = [f"mean over {', '.join(units)}: {number}" if len(units) > 1 else number for number in numbers[:1]]
    absent = [
        f"{row or names[0]}{_reason(cells, table, row, units)}"
        for (names, _), row, value in zip(terms, rows, figures, strict=True)
        if value is None
    ]
    if absent:
        return Finding(what, "not measured", "; ".join([*numbers, f"not measured: {', '.join(absent)}"]))
    values = [value for value in figures if value is not None]
    total = offset + sum(weight * value.mean for (_, weight), value in zip(terms, values, strict=True))
    error = math.hypot(
        *(
            weight * math.hypot(_training_error(row, value), question_error(cells, table, row, units))
            for (_, weight), row, value in zip(terms, rows, values, strict=True)
        )
    )
    outcome: Outcome = "for" if total > 0 else "against"
    if total == 0 or abs(total) <= ERRORS * error:
        outcome = "within the spread"
    numbers.append(
        f"less the threshold {total:+.4g}" + (f", two standard errors {ERRORS * error:.4g}" if error else "")
    )
    records = [record for row in rows for unit in units for record in cells.final(table, str(row), unit)]
    records = [record for record in records if record.unavailable is None]
    is_single = any(len(value.runs) < 2 and not _is_untrained(row) for row, value in zip(rows, values, strict=True))
    is_trial = any(record.settings.get("preset") == "smoke" for record in records)
    warnings = [*([ONE_RUN] if is_single else []), *([TRIAL] if is_trial else [])]
    warnings += settings_warnings(records, cells.row_of)
    return Finding(what, outcome, "; ".join(numbers), tuple(warnings), tuple(value.mean for value in values))


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
    numbers = f"{row}: {1000 * line.slope:+.4g} in 1,000 steps, standard error {1000 * line.stderr:.4g}"
    return Finding(what, outcome, numbers)


def _training_error(row: str | None, value: Value) -> float:
    """Return the standard error of a mean over trainings."""
    return 0.0 if _is_untrained(row) else value.run_error or 0.0


def question_error(cells: Cells, table: str, row: str | None, units: Sequence[str]) -> float:
    """Return the recorded standard error of the measurement, such as that of MMLU's questions, if there is one."""
    errors = [cells.value(table, str(row), unit, "stderr") for unit in units]
    return math.hypot(*(value.mean for value in errors if value)) / max(len(units), 1)


def _is_untrained(row: str | None) -> bool:
    """Return whether the weights of a row were not trained here."""
    return str(row).split(",")[0] in UNTRAINED


def _shown(row: str | None, value: Value) -> str:
    """Format a figure with its spread."""
    spread = f" ± {value.spread:.4f}" if value.spread is not None else ""
    return f"{row} {value.mean:.4f}{spread} (n = {value.n})"


def _reason(cells: Cells, table: str, row: str | None, units: Sequence[str]) -> str:
    """Return the recorded reason why a figure is missing."""
    reasons = [r.unavailable for unit in units for r in cells.final(table, str(row), unit) if r.unavailable]
    return f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""


def _representations(cells: Cells) -> Claim:
    """Judge word probes, STS and clustering against LLM2Vec's recipe."""
    terms = _higher(RECIPE)
    findings = [
        judge(cells, f"words, {unit}: accuracy", "words", [unit], "accuracy", terms)
        for unit in ("chunking", "ner", "pos")
    ]
    for table, metric in (("sts", "spearman"), ("clustering", "v_measure")):
        rows = [str(cells.find(table, names)) for names in (MAGNET, RECIPE)]
        units = [unit for unit in cells.units(table) if all(cells.value(table, row, unit, metric) for row in rows)]
        what = f"{table}: mean {metric} over the sets that both have"
        findings.append(judge(cells, what, table, units, metric, terms))
    names = ("chunking", "ner", "pos", "sts", "clustering")
    points = [f"{n} {f.figures[0] - f.figures[1]:+.2f}" for n, f in zip(names, findings, strict=True) if f.figures]
    return Claim(
        "Representations",
        "Are MAGNET's representations better than those of LLM2Vec's recipe at equal budget?",
        "MAGNET less LLM2Vec recipe is above zero.",
        findings,
        _sentence("MAGNET less the recipe, in points", points),
    )


def _infilling(cells: Cells) -> Claim:
    """Judge infilling against the base from left to right, and against the base reading both sides."""
    findings, shares = [], []
    for unit in ("ROCStories", "WikiText"):
        parts = []
        for rival, names in (("the base from the left", LEFT), ("the base reading both sides", BASE_FILLED)):
            what, terms = f"{unit}: perplexity against {rival}", _lower(names, FILLED)
            finding = judge(cells, what, "infilling", [unit], "perplexity", terms)
            findings.append(finding)
            parts.append(_share(finding.figures[1], finding.figures[0]) if finding.figures else "not measured")
        if any(finding.figures for finding in findings[-2:]):
            shares.append(f"{unit} {parts[0]} ({parts[1]})")
    return Claim(
        "Infilling",
        "Does MAGNET fill blanks better than the base that sees the left side only?",
        "The base's perplexity of what was removed, less MAGNET's, is above zero.",
        findings,
        _sentence("MAGNET's perplexity against the base from the left (reading both sides)", shares),
    )


def _repetition(cells: Cells) -> Claim:
    """Judge repetition against the recipe, relative to the base, and over steps."""
    findings, shares = [], []
    for unit in ("WikiText", "ROCStories"):
        for metric in ("rep_sen", "rep_4"):
            what = f"{unit}: {metric}"
            rows = [str(cells.find("repetition", names)) for names in (BASE, RECIPE)]
            levels = [cells.value("repetition", row, unit, metric) for row in rows]
            base, recipe = (value.mean if value else 0.0 for value in levels)
            share = 0.5 if recipe >= base else 0.0
            limit = [(MAGNET, -1), (BASE, 1 - share), (RECIPE, share)]
            near = judge(cells, f"{what} against the base", "repetition", [unit], metric, limit)
            if near.figures:
                shares.append(f"{unit} {metric} {near.figures[0]:.3f} ({recipe:.3f}; {base:.3f})")
            findings += [
                judge(cells, f"{what} against LLM2Vec recipe", "repetition", [unit], metric, _lower(RECIPE)),
                near,
                growth(cells, f"{what} over training steps", "repetition", unit, metric, MAGNET),
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


def _knowledge(cells: Cells, paper: PaperValues) -> Claim:
    """Judge MMLU and perplexity against the base, allowing for what the paper's model lost."""
    knowledge, texts = paper.tables["mmlu"], paper.tables["perplexity"]
    average, perplexity = knowledge.columns[-1], texts.columns[0]
    lost = knowledge.row("LLaMA-2-7B").values[average] - knowledge.row("MAGNET, WikiText").values[average]
    ratio = texts.row("MAGNET").values[perplexity] / texts.row("LLaMA-2-7B").values[perplexity]
    mmlu = judge(cells, "MMLU, average: accuracy", "mmlu", ["average"], "accuracy", _higher(BASE), offset=lost)
    error = question_error(cells, "mmlu", cells.find("mmlu", BASE), ["average"])
    if mmlu.figures and mmlu.figures[1] - ERRORS * error <= CHANCE:
        reason = f"the base is not above chance ({CHANCE:g} %): it has no knowledge to lose"
        mmlu = replace(mmlu, outcome="not measured", warnings=(*mmlu.warnings, reason))
    findings = [mmlu]
    changes = [f"MMLU's average {mmlu.figures[0] - mmlu.figures[1]:+.2f} points"] if mmlu.figures else []
    for unit in cells.units("perplexity") or ["WikiText"]:
        terms = [(BASE, ratio), (MAGNET, -1)]
        judged = judge(cells, f"{unit}: text perplexity", "perplexity", [unit], "perplexity", terms)
        findings.append(judged)
        changes += [f"perplexity of {unit} {_share(judged.figures[1], judged.figures[0])}"] if judged.figures else []
    return Claim(
        "Knowledge",
        "Are knowledge and perplexity of the base kept?",
        f"No more is lost than the paper's own model lost: {lost:.1f} points of MMLU's average, and a perplexity of "
        f"{ratio:.3f} times the base's.",
        findings,
        _sentence("MAGNET against its base", changes),
    )


def _sentence(head: str, parts: Sequence[str]) -> str:
    """Format figures as one sentence."""
    return f"{head}: {', '.join(parts)}." if parts else "Nothing was measured."


def _share(value: float, base: float) -> str:
    """Return the increase over the base in percent of the base."""
    return f"{100 * (value - base) / base:+.1f} %" if base else f"{value:.4g} where the base has 0"


def _higher(rival: tuple[str, ...]) -> list[Term]:
    """Return a sum that is positive if MAGNET is above a rival."""
    return [(MAGNET, 1), (rival, -1)]


def _lower(rival: tuple[str, ...], ours: tuple[str, ...] = MAGNET) -> list[Term]:
    """Return a sum that is positive if MAGNET is below a rival."""
    return [(rival, 1), (ours, -1)]
