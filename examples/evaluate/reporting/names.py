"""Name rows, columns and figures as a reader knows them, from `names.json`; nothing else turns keys into words."""

import json
import math
from pathlib import Path

# `metrics`: what follows the unit in the head of a column; `parts`: of a row's name; `short`: for charts.
NAMES: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SHARES = ("rep_sen", "rep_4", "rep_4_tokens", "masked_accuracy")


def table_name(table: str) -> str:
    """Return the name of a table."""
    return NAMES["tables"].get(table, table)


def unit_name(unit: str) -> str:
    """Return the name of a data set or part of one."""
    return NAMES["units"].get(unit, unit)


def column_name(unit: str, metric: str) -> str:
    """Return the head of a column.

    Example:
        >>> column_name("STSBenchmark", "spearman"), column_name("chunking", "accuracy")
        ('STS-B', 'chunking accuracy')
    """
    return f"{unit_name(unit)} {NAMES['metrics'].get(metric, metric.replace('_', ' '))}".strip()


def row_name(row: str) -> str:
    """Return the name of a row."""
    return NAMES["rows"].get(row) or ", ".join(NAMES["parts"].get(part, part) for part in row.split(", "))


def short_name(row: str) -> str:
    """Return the name of a row in a chart, without characters that fonts lack."""
    name = "".join(
        character if character.isprintable() else "?" for character in NAMES["short"].get(row) or row_name(row)
    )
    return name if len(name) <= 20 else f"{name[:19]}…"


def digits_of(metric: str) -> int:
    """Return the significant digits of a metric."""
    return 2 if metric in SHARES else 3


def show_ratio(value: float, error: float = 0.0) -> str:
    """Format a ratio, and its standard error if there is one.

    Example:
        >>> show_ratio(0.98649, 0.0042), show_ratio(1.0), show_ratio(47.2)
        ('0.986 ± 0.004', '1.000', '47.2')
    """
    return show(value, 3 + (1 <= value < 2), spread=error or None)


def show(value: float, digits: int = 3, *, sign: str = "", spread: float | None = None) -> str:
    """Format a figure with two or three significant digits, and its spread with the same decimals.

    Example:
        >>> show(18.6512), show(0.98649, spread=0.0042), show(215.38), show(5.0, 2, sign="+")
        ('18.7', '0.986 ± 0.004', '215', '+5.0')
    """
    if not math.isfinite(value):
        return str(value)
    size = math.floor(math.log10(abs(value))) if value else 0
    decimals = min(max(0, digits - 1 - size), 6) if value else 1
    text = f"{value:{sign},.{decimals}f}"
    return text if spread is None else f"{text} ± {spread:,.{decimals}f}"
