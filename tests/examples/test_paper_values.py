"""Test the numbers of the paper: spot values as printed, and averages that agree with their parts."""

import json

import pytest

from examples.evaluate.reporting.paper_values import FILE, Column, read_paper_values

PAPER = read_paper_values()


def test_averages_agree_with_their_parts():
    """A slip of a tenth in any of the 49 numbers of Table 2 would show; one average is cut, not rounded."""
    table = PAPER.tables["sts"]
    for row in table.rows:
        parts = [row.values[Column(unit, "spearman", "sts")] for unit in table.means["average"]]
        assert row.values[Column("average", "spearman", "sts")] == pytest.approx(sum(parts) / 7, abs=0.0075)


def test_rows_have_a_value_per_column_and_unique_names():
    entries = json.loads(FILE.read_text())["tables"]
    assert len(PAPER.tables) == len(entries)
    for entry in entries:
        table = PAPER.tables[entry["table"]]
        names = [row.name for row in table.rows]
        assert all(len(row["values"]) == len(table.columns) for row in entry["rows"]) and all(
            r.values for r in table.rows
        )
        assert len(set(names)) == len(names) and len(set(table.columns)) == len(table.columns)
        assert table.base in (None, *names) and entry["better"] in ("higher", "lower")
