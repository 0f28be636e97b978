"""The paper's four claims, answered by a stated rule from the records alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from examples.reporting.cells import Cells
from examples.reporting.findings import ERRORS, Finding, Term, growth, judge, measurement_error
from examples.reporting.paper_values import PaperValues

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

    Args:
        cells (`Cells`): All records.
        paper (`PaperValues`): What counts as kept is what the paper's own model lost at most.

    Source: Khosla et al. 2025, section 4.
    """
    return [_representations(cells), _infilling(cells), _repetition(cells), _knowledge(cells, paper)]


def _representations(cells: Cells) -> Claim:
    """(a) Against LLM2Vec's recipe."""
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
    """(b) Against reading from the left, and against what the base makes of both sides."""
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
    """(c) Against the recipe, relative to the base, and over steps."""
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
    """How much MAGNET may repeat, less what it does."""
    rows = [cells.find("repetition", names) for names in (BASE, RECIPE)]
    found = [cells.value("repetition", row, unit, metric) if row else None for row in rows]
    base, recipe = (value.mean if value else 0.0 for value in found)
    share = 0.5 if recipe >= base else 0.0
    return [Term(MAGNET, -1), Term(BASE, 1 - share), Term(RECIPE, share)]


def _knowledge(cells: Cells, paper: PaperValues) -> Claim:
    """(d) MMLU and perplexity against the base, allowing for what the paper's model lost."""
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
    """One sentence of figures."""
    return f"{head}: {', '.join(told)}." if told else "Nothing was measured."


def _share(value: float, base: float) -> str:
    """How much more than the base, in percent of it."""
    return f"{100 * (value - base) / base:+.1f} %" if base else f"{value:.4g} where the base has 0"


def _higher(rival: tuple[str, ...]) -> list[Term]:
    """MAGNET above a rival."""
    return [Term(MAGNET, 1), Term(rival, -1)]


def _lower(rival: tuple[str, ...], ours: tuple[str, ...] = MAGNET) -> list[Term]:
    """MAGNET below a rival."""
    return [Term(rival, 1), Term(ours, -1)]


__all__ = ["Claim", "RULE", "judge_claims"]
