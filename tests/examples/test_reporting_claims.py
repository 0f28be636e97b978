"""Verdicts on constructed cases: they follow the rule that the page states, and nothing else."""

import pytest

from examples.evaluate.reporting.cells import Cells
from examples.evaluate.reporting.claims import ONE_RUN, TRIAL, judge_claims
from examples.evaluate.reporting.paper_values import read_paper_values

from .report_records import make_record, replicas, whole_study

PAPER = read_paper_values()


def claims(records):
    return {claim.name: claim for claim in judge_claims(Cells(records), PAPER)}


def finding(claim, start):
    (found,) = (one for one in claim.findings if one.what.startswith(start))
    return found


def words(magnet, recipe):
    return [
        record
        for unit in ("chunking", "ner", "pos")
        for system, values in (("MAGNET", magnet), ("LLM2Vec recipe", recipe))
        for record in replicas("words", system, unit, "accuracy", values)
    ]


def test_all_claims_hold_where_all_comparisons_count_for_them():
    found = claims(whole_study())
    assert {name: claim.verdict for name, claim in found.items()} == {
        "Representations": "holds",
        "Infilling": "holds",
        "Repetition": "holds",
        "Knowledge": "holds",
    }
    assert not finding(found["Infilling"], "WikiText: perplexity against the base from the left").warnings
    assert finding(found["Knowledge"], "MMLU").warnings == (ONE_RUN,)


def test_claims_without_records_are_not_measured():
    found = claims([make_record("long_fills", "A", "at once", metrics={"rep_4": 0.1})])
    assert {claim.verdict for claim in found.values()} == {"not measured"}


@pytest.mark.parametrize(
    "magnet, recipe, outcome",
    [
        ([80.0, 80.2], [79.0, 79.2], "for"),
        ([79.0, 79.2], [80.0, 80.2], "against"),
        ([78.0, 82.0], [77.0, 81.0], "within the spread"),
    ],
)
def test_a_difference_counts_beyond_two_standard_errors(magnet, recipe, outcome):
    """Errors by hand: of two runs that are `d` apart the error of the mean is `d / 2`."""
    claim = claims(words(magnet, recipe))["Representations"]
    assert {one.outcome for one in claim.findings if one.what.startswith("words")} == {outcome}
    difference = sum(magnet) / 2 - sum(recipe) / 2
    error = (((magnet[1] - magnet[0]) / 2) ** 2 + ((recipe[1] - recipe[0]) / 2) ** 2) ** 0.5
    assert (abs(difference) > 2 * error) == (outcome != "within the spread")
    assert f"two standard errors {2 * error:.4g}" in claim.findings[0].numbers
    assert claim.verdict == ("holds in part" if outcome == "for" else "does not hold")  # sts was not measured


def test_with_a_single_training_the_sign_counts_with_a_warning():
    claim = claims(words([80.0], [79.0, 79.1]))["Representations"]
    assert claim.findings[0].outcome == "for" and ONE_RUN in claim.findings[0].warnings
    assert claims(words([78.0], [79.0]))["Representations"].verdict == "does not hold"


def test_sentences_are_compared_over_the_sets_that_both_have():
    records = [record for record in whole_study() if record.table == "sts"]
    records = [record for record in records if (record.system, record.unit) != ("LLM2Vec recipe", "STS16")]
    found = finding(claims(records)["Representations"], "sts")
    assert found.numbers.startswith("mean over SICK-R, STS12, STS13, STS14, STS15, STSBenchmark: ")
    assert found.outcome == "for" and "MAGNET 41.0833" in found.numbers  # 38.25 and the mean of 0, 1, 2, 3, 5, 6


def test_repetition_is_set_against_recipe_base_and_steps():
    records = [record for record in whole_study() if record.table == "repetition"]
    # Less than the recipe, but nearer to it than to the base, and growing.
    grown = [
        make_record("repetition", "MAGNET", unit, metrics={"rep_sen": value, "rep_4": value}, step=step)
        for unit in ("WikiText", "ROCStories")
        for step, value in ((None, 0.4), (100, 0.1), (200, 0.25), (300, 0.4))
    ]
    claim = claims([record for record in records if record.system != "MAGNET"] + grown)["Repetition"]
    outcomes = [one.outcome for one in claim.findings]
    assert outcomes == ["for", "against", "against"] * 4
    assert claim.verdict == "holds in part"
    assert "+1.5 in 1,000 steps" in claim.findings[2].numbers


def test_where_the_recipe_repeats_less_than_the_base_the_base_is_the_limit():
    def judged(ours):
        found = (("base", 0.10), ("LLM2Vec recipe", 0.02), ("MAGNET", ours))
        records = [make_record("repetition", s, "WikiText", metrics={"rep_4": value}) for s, value in found]
        return [
            one.outcome for one in claims(records)["Repetition"].findings if one.what.startswith("WikiText: rep_4")
        ]

    assert judged(0.09) == ["against", "for", "not measured"]  # more than the recipe, less than the base
    assert judged(0.11) == ["against", "against", "not measured"]


def test_the_papers_own_repetition_would_hold():
    rows = {"LLaMA-2-7B": "base", "LLM2Vec": "LLM2Vec recipe", "MAGNET": "MAGNET"}
    cells = {}
    for row in PAPER.tables["repetition"].rows:
        for column, value in row.values.items():
            cells.setdefault((rows[row.name], column.unit), {})[column.metric] = value
    records = [make_record("repetition", s, unit, metrics=metrics) for (s, unit), metrics in cells.items()]
    outcomes = {one.outcome for one in claims(records)["Repetition"].findings}
    assert outcomes == {"for", "not measured"}  # no steps on record


def mmlu(base, magnet, *, stderr=0.1):
    found = (("base", base), ("MAGNET", magnet))
    return [make_record("mmlu", s, "average", metrics={"accuracy": v, "stderr": stderr}) for s, v in found]


def test_knowledge_is_kept_within_what_the_paper_lost():
    def judged(*figures, **keywords):
        return finding(claims(mmlu(*figures, **keywords))["Knowledge"], "MMLU")

    assert judged(45.0, 44.0).outcome == "for"  # 1.6 points are allowed
    assert judged(45.0, 42.0).outcome == "against"
    assert judged(45.0, 43.5).outcome == "within the spread"  # 0.1 off, two errors are 0.28
    assert judged(45.0, 42.0, stderr=3.0).outcome == "within the spread"
    chance = judged(25.1, 25.0)
    assert chance.outcome == "not measured" and "not above chance" in chance.warnings[-1]


def test_settings_that_differ_weaken_a_comparison():
    records = words([80.0], [79.0])
    records[0].settings["preset"] = "smoke"
    claim = claims(records)["Representations"]
    assert any("preset (paper: " in warning for warning in claim.findings[0].warnings)
    assert TRIAL in claim.findings[0].warnings and TRIAL not in claim.findings[1].warnings


def test_what_could_not_be_had_is_named():
    records = [make_record("words", "MAGNET", "ner", unavailable="no data")]
    assert "MAGNET (no data)" in finding(claims(records)["Representations"], "words, ner").numbers
