"""One comparison of a claim: a sum of figures with weights, which is above zero where it speaks for the claim.

Its error is made of the trainings' spread and, where the records have one, the standard error of the measurement. It
counts where it is more than two errors from zero; where a trained system has one training only, its sign counts, with
a warning.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from examples.reporting.cells import Cells, Value
from examples.reporting.conditions import settings_warnings

Outcome = Literal["for", "against", "within the spread", "not measured"]
ONE_RUN = "one training run each"
TRIAL = "preset smoke: sizes of a trial"
NO_STEPS = "no records over training steps"
ERRORS = 2.0
# Systems whose weights nobody trained here; their replicas have no spread.
UNTRAINED = ("base", "Echo")


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Args:
        what (`str`): What was compared.
        outcome (`str`): How it counts.
        numbers (`str`): The figures.
        warnings (`tuple[str, ...]`): What weakens it.
        trend (`tuple[str, ...]`): Over training steps, where it does not count for the claim.
        figures (`tuple[float, ...]`): The means that were compared, in the order of the terms; empty where one of
            them is not there.
    """

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
    """Compare a weighted sum of figures with zero.

    Args:
        cells (`Cells`): All records.
        what (`str`): The comparison in words.
        table, units, metric: The figure; over several units their mean.
        terms (`Sequence[Term]`): The sum.
        offset (`float`, defaults to 0): Added to it: what may be lost.
        interval (`bool`, defaults to `False`): Tell the 95 % interval of the sum without the offset.
    """
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
    """Does the first of these systems grow over training steps? The slopes of the others are told beside it.

    Args:
        cells (`Cells`): All records.
        what (`str`): The comparison in words.
        table, unit, metric (`str`): The figure; lower is better.
        systems (`Sequence[tuple[str, ...]]`): Names that each may have.
    """
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
    """Standard error of a term: of its trainings, and of its measurement where that is on record."""
    trained = 0.0 if _is_untrained(row) else value.run_error or 0.0
    return abs(term.weight) * math.hypot(trained, measurement_error(cells, table, row, units))


def measurement_error(cells: Cells, table: str, row: str, units: Sequence[str]) -> float:
    """Standard error of the measurement itself, such as that of MMLU's questions; the same in every training."""
    found = [cells.value(table, row, unit, "stderr") for unit in units]
    return math.sqrt(sum(value.mean**2 for value in found if value)) / max(len(units), 1)


def _is_untrained(row: str) -> bool:
    """Whether the row is of weights that nobody trained here."""
    return row.split(",")[0] in UNTRAINED


def _trend(cells: Cells, table: str, rows: Sequence[str], units: Sequence[str], metric: str) -> tuple[str, ...]:
    """The curve of each row over training steps."""
    told = []
    for row in dict.fromkeys(rows):
        for unit in units:
            curve = cells.curve(table, row, unit, metric)
            if len(curve) > 1:
                points = ", ".join(f"step {step}: {value.mean:.4f}" for step, value in curve.items())
                told.append(f"{row}, {unit}, {metric}: {points}")
    return tuple(told) or (NO_STEPS,)


def _reason(cells: Cells, table: str, row: str | None, units: Sequence[str]) -> str:
    """Why a figure is not there, as far as the records say."""
    found = [r.unavailable for unit in units for r in (cells.final(table, row, unit) if row else []) if r.unavailable]
    return f" ({'; '.join(dict.fromkeys(found))})" if found else ""


def _told(value: Value) -> str:
    """A figure with its spread."""
    spread = f" ± {value.spread:.4f}" if value.spread is not None else ""
    return f"{value.mean:.4f}{spread} (n = {value.n})"


__all__ = [
    "ERRORS",
    "Finding",
    "NO_STEPS",
    "ONE_RUN",
    "TRIAL",
    "UNTRAINED",
    "Outcome",
    "Term",
    "growth",
    "judge",
    "measurement_error",
]
