"""Test the numbers of the paper: spot values as printed, and averages that agree with their parts."""

import json

import pytest

from examples.evaluate.reporting.paper_values import FILE, Column, read_paper_values

PAPER = read_paper_values()
# Rows, columns and numbers of each table.
SPOTS = [
    ("words", "MAGNET", "ner accuracy", 98.31),
    ("words", "BERT-Large", "chunking accuracy", 71.77),
    ("words", "LLM2Vec [MNTP]", "pos accuracy", 92.61),
    ("sts", "MAGNET", "average spearman", 79.36),
    ("sts", "RoBERTa-Large SimCSE", "STS15 spearman", 84.77),
    ("sts", "Echo embeddings", "SICK-R spearman", 64.39),
    ("clustering", "MAGNET", "TwentyNewsgroupsClustering v_measure", 53.31),
    ("infilling", "LLaMA-2-7B (left context only)", "WikiText perplexity", 22.0399),
    ("people", "LLaMA-2-7B, five-shot prompt", "ROCStories appropriate", 54.5),
    ("repetition", "LLM2Vec", "ROCStories rep_4", 0.5243),
    ("mmlu", "MAGNET, SlimPajama", "other accuracy", 52.8),
    ("perplexity", "MAGNET", "WikiText perplexity", 7.6),
    ("ablation", "SSCL + MSG", "STS16 spearman", 79.17),
    ("ablation", "MNTP + MSG", "pos accuracy", 93.38),
]


@pytest.mark.parametrize("table, row, title, value", SPOTS)
def test_values_equal_the_printed_numbers(table, row, title, value):
    assert {column.title: number for column, number in PAPER.tables[table].row(row).values.items()}[title] == value


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
        assert entry.get("gain") in (None, "percent of the base")
