"""Test cells and tables of the report: means and spreads by hand, quoted values kept apart, differences reported."""

import math

import pytest

from examples.evaluate.reporting.cells import Cells, Value, read_results
from examples.evaluate.reporting.paper_values import Column, read_paper_values
from examples.evaluate.reporting.tables import MEASURED, QUOTED, build_table

from .report_records import make_record, whole_study, write

PAPER = read_paper_values()


def table(records, name):
    return build_table(Cells(records), name, PAPER.tables.get(name))


def row(built, name, origin=MEASURED):
    return next(row for row in built.rows if (row.name, row.origin) == (name, origin))


def test_mean_spread_and_error_use_the_right_replicas():
    records = [
        make_record("words", "MAGNET", "ner", metrics={"accuracy": value}, replica=replica, seed=seed)
        for replica, seed, value in ((0, 0, 90.0), (0, 1, 92.0), (1, 0, 94.0), (1, 1, 96.0))
    ]
    value = Cells(records).value("words", "MAGNET", "ner", "accuracy")
    assert (value.mean, value.n, value.runs) == (93.0, 4, (91.0, 95.0))
    assert value.spread == pytest.approx(math.sqrt((9 + 1 + 1 + 9) / 3))
    assert value.run_error == pytest.approx(math.sqrt(8) / math.sqrt(2))


def test_newest_record_wins_and_readings_are_separate_rows(tmp_path):
    old, new = (make_record("infilling", "base", "WikiText", metrics={"perplexity": p}) for p in (9.0, 8.0))
    left, both = (
        make_record("infilling", "MAGNET", "WikiText", metrics={"perplexity": p}, settings={"reading": reading})
        for p, reading in ((5.0, "left"), (4.0, "infill"))
    )
    cell, settings = ("infilling", "MAGNET", "WikiText"), {"reading": "infill", "suffix": "other"}
    control = make_record(*cell, metrics={"perplexity": 6.0}, settings=settings)
    results = read_results(write(tmp_path, [old, left, new, both, control]))
    assert len(results.records) == 4
    cells = Cells(results.records)
    found = {name: cells.value("infilling", name, "WikiText", "perplexity").mean for name in cells.rows("infilling")}
    assert found == {"base": 8.0, "MAGNET, left": 5.0, "MAGNET, infill": 4.0, "MAGNET, other suffix": 6.0}
    assert cells.find("infilling", ["nobody", "MAGNET, left"]) == "MAGNET, left"
    assert cells.find("infilling", ["nobody", "MAGNET"]) == "MAGNET, infill"
    assert cells.find("infilling", ["nobody"]) is None


def test_row_prefers_records_without_a_step_then_the_last_step():
    steps = [make_record("repetition", "A", "WikiText", metrics={"rep_4": s / 1000}, step=s) for s in (100, 300, 200)]
    plain = make_record("repetition", "B", "WikiText", metrics={"rep_4": 0.9})
    other = make_record("repetition", "B", "WikiText", metrics={"rep_4": 0.1}, step=900)
    cells = Cells([*steps, plain, other])
    assert cells.value("repetition", "A", "WikiText", "rep_4").mean == 0.3
    assert cells.value("repetition", "B", "WikiText", "rep_4").mean == 0.9
    assert [*cells.curve("repetition", "A", "WikiText", "rep_4")] == [100, 200, 300]
    assert any("A (step 300)" in note for note in table([*steps, plain], "repetition").notes)


def test_quoted_and_measured_values_never_share_a_row():
    built = table(whole_study(), "words")
    for one in built.rows:
        kinds = {type(value) for value in one.values.values()}
        assert kinds <= ({Value} if one.origin == MEASURED else {float})
    ner = Column("ner", "accuracy", "words")
    assert row(built, "MAGNET").values[ner].mean == 75.0
    assert row(built, "MAGNET", QUOTED).values[ner] == 98.31
    assert row(built, "tiny-bert").missing[ner] == "no CoNLL-2003 <here>"


def test_differences_and_gains_match_manual_calculation():
    built = table(whole_study(), "words")
    (one,) = (c for c in built.comparisons if (c.ours, c.column.unit) == ("LLM2Vec recipe", "pos"))
    assert one.theirs == "LLM2Vec"
    assert one.paper_gain == pytest.approx(90.53 - 91.53)
    assert one.gain == pytest.approx(82.0 - 80.0)
    assert {c.ours for c in built.comparisons} == {"base, causal", "LLM2Vec recipe", "MNTP", "MAGNET"}
    # Where lower is better a gain is a fall, of a perplexity in percent of the base; the paper says 29.9 %.
    (fill,) = (
        c for c in table(whole_study(), "infilling").comparisons if (c.ours, c.column[0]) == ("MAGNET", "WikiText")
    )
    assert fill.paper_gain == pytest.approx(100 * (22.0399 - 15.4573) / 22.0399)
    assert fill.paper_gain == pytest.approx(29.9, abs=0.05) and fill.gain == pytest.approx(100 * 9.5 / 40)


def test_average_requires_all_parts_of_the_same_replica():
    records = [record for record in whole_study() if record.table == "sts"]
    average = Column("average", "spearman", "sts")
    assert row(table(records, "sts"), "MAGNET").values[average].mean == pytest.approx(38.0 + 3.0 + 0.25)
    fewer = [record for record in records if (record.replica, record.unit) != (1, "SICK-R")]
    assert row(table(fewer, "sts"), "MAGNET").values[average].n == 1
    none = [record for record in records if record.unit != "SICK-R"]
    assert average not in row(table(none, "sts"), "MAGNET").values


def test_settings_that_differ_are_reported_except_readings():
    units = [("MAGNET", {"prompt": "a", "reading": "magnet"}), ("Echo", {"prompt": "b", "reading": "echo"})]
    records = [make_record("sts", s, "STS12", metrics={"spearman": 1.0}, settings=settings) for s, settings in units]
    built = table(records, "sts")
    assert built.warnings == ["The rows have different settings: prompt (a: MAGNET; b: Echo)."]
    assert "prompt: a (MAGNET on STS12); b (Echo on STS12)" in built.settings and "preset: paper" in built.settings
    assert table(records[:1], "sts").warnings == []
    smoke = make_record("sts", "Echo", "STS13", metrics={"spearman": 1.0}, settings={"prompt": "b"})
    assert table([records[0], smoke], "sts").warnings == []  # of another unit
    logs = [make_record("curves", s, "training", metrics={"loss": 1.0}, settings={"log": s}) for s in "AB"]
    assert table(logs, "curves").warnings == []
