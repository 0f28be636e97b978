"""Test cells and tables of the report: means and spreads by hand, quoted values kept apart, differences reported."""

import math

import pytest

from examples.evaluate.reporting.cells import Cells, differing_settings, list_counts, read_results
from examples.evaluate.reporting.paper_values import Column, read_paper_values
from examples.evaluate.reporting.tables import build_table

from .report_records import make_record, whole_study, write

PAPER = read_paper_values()


def test_mean_spread_and_error_use_the_right_replicas():
    records = [
        make_record("words", "MAGNET", "ner", metrics={"accuracy": value}, replica=replica, seed=seed)
        for replica, seed, value in ((0, 0, 90.0), (0, 1, 92.0), (1, 0, 94.0), (1, 1, 96.0))
    ]
    value = Cells(records).value("words", "MAGNET", "ner", "accuracy")
    assert (value.mean, value.runs) == (93.0, (91.0, 95.0))
    assert value.spread == pytest.approx(math.sqrt(8)) and value.error == pytest.approx(math.sqrt(8) / math.sqrt(2))


def test_ratio_takes_the_error_of_paired_texts(tmp_path):
    def infilling(system, losses, replica=0):
        by_text = [(loss, 10) for loss in losses]
        metrics = {"perplexity": math.exp(sum(losses) / 10 / len(losses))}
        return make_record("infilling", system, "WikiText", metrics=metrics, by_text=by_text, replica=replica)

    base = infilling("base, left", [30.0, 50.0])
    one, other = infilling("MAGNET", [28.0, 47.0]), infilling("MAGNET", [27.0, 46.0], replica=1)
    cells = Cells(read_results(write(tmp_path, [base, one, other])).records)
    value = cells.ratio("infilling", "MAGNET", "base, left", "WikiText")
    # By hand: the mean differences are -0.25 and -0.35 a token; the differences of texts -2 and -3, -3 and -4.
    runs = [math.exp(-0.25), math.exp(-0.35)]
    assert value.runs == pytest.approx(runs) and value.mean == pytest.approx(sum(runs) / 2)
    paired = [run * math.sqrt(2 * 0.5) / 20 for run in runs]
    assert value.error == pytest.approx(math.hypot((runs[0] - runs[1]) / 2, sum(paired) / 2))
    mixed = Cells([base, make_record("infilling", "MAGNET", "WikiText", metrics={"perplexity": 50.0})])
    assert mixed.ratio("infilling", "MAGNET", "base, left", "WikiText").mean == pytest.approx(50.0 / math.exp(4.0))


def test_newest_record_wins_and_readings_are_separate_rows(tmp_path):
    cell = ("infilling", "MAGNET", "WikiText")
    old, new = (make_record("infilling", "base", "WikiText", metrics={"perplexity": p}) for p in (9.0, 8.0))
    settings = [{"reading": "left"}, {"reading": "infill"}, {"reading": "infill", "suffix": "other"}]
    values = zip((5.0, 4.0, 6.0), settings, strict=True)
    left, both, control = (make_record(*cell, metrics={"perplexity": p}, settings=own) for p, own in values)
    results = read_results(write(tmp_path, [old, left, new, both, control]))
    assert len(results.records) == 4
    cells = Cells(results.records)
    found = {name: cells.value("infilling", name, "WikiText", "perplexity").mean for name in cells.rows("infilling")}
    assert found == {"base": 8.0, "MAGNET, left": 5.0, "MAGNET, infill": 4.0, "MAGNET, other suffix": 6.0}
    names = (["nobody", "MAGNET, left"], ["nobody", "MAGNET"], ["nobody"])
    assert [cells.find("infilling", each) for each in names] == ["MAGNET, left", "MAGNET, infill", None]


def test_row_prefers_records_without_a_step_and_a_curve_ends_at_its_figure():
    def measured(system, step, value, weights):
        return make_record("sts", system, "STS12", metrics={"spearman": value}, step=step, weights=weights)

    whole = [measured("A", 100, 1.0, "a"), measured("A", 300, 2.0, "b"), measured("A", None, 3.0, "b")]
    stage = [measured("B", 100, 1.0, "c"), measured("B", 200, 2.0, "d"), measured("B", None, 3.0, "e")]
    cells = Cells([*whole, *stage, measured("C", 200, 4.0, "f"), measured("C", 100, 5.0, "g")])
    means = [{k: v.mean for k, v in cells.curve("sts", row, "STS12", "spearman").items()} for row in "ABC"]
    assert means == [{100: 1.0, 300: 3.0}, {100: 1.0, 200: 2.0, 300: 3.0}, {100: 5.0, 200: 4.0}]
    assert [cells.value("sts", row, "STS12", "spearman").mean for row in "ABC"] == [3.0, 3.0, 4.0]


def test_average_requires_all_parts_of_the_same_replica():
    def magnet(records):
        built = build_table(Cells(records), "sts", PAPER.tables["sts"])
        return next(row for row in built.measured if row.name == "MAGNET").values[Column("average", "spearman", "sts")]

    records = whole_study()
    assert magnet(records).mean == pytest.approx(38.0 + 3.0 + 0.25) and len(magnet(records).runs) == 2
    assert len(magnet([r for r in records if (r.replica, r.unit) != (1, "SICK-R")]).runs) == 1


def test_settings_that_differ_are_reported_except_readings():
    units = [("MAGNET", {"prompt": "a", "reading": "magnet"}), ("Echo", {"prompt": "b", "reading": "echo"})]
    records = [make_record("sts", s, "STS12", metrics={"spearman": 1.0}, settings=settings) for s, settings in units]
    assert differing_settings(records, lambda r: r.system) == {"prompt": "a (MAGNET); b (Echo)"}
    smoke = make_record("sts", "Echo", "STS13", metrics={"spearman": 1.0}, settings={"prompt": "b"})
    assert differing_settings([records[0], smoke], lambda r: r.system) == {}  # of another unit
    counted = [make_record("sts", "A", "STS12", counts={"pairs": n, "questions, law": 1}) for n in (9, 1200)]
    assert list_counts(counted) == ["STS12: 9 or 1,200 pairs"]
