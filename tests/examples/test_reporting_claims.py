"""Test verdicts on constructed cases against the rule that the page states."""

import pytest

from examples.evaluate.reporting.cells import Cells
from examples.evaluate.reporting.claims import ONE_RUN, judge_claims
from examples.evaluate.reporting.names import show
from examples.evaluate.reporting.paper_values import read_paper_values

from .report_records import make_record, replicas, whole_study

PAPER = read_paper_values()


def claims(records):
    return {claim.name: claim for claim in judge_claims(Cells(records), PAPER)}


def finding(claim, start):
    (found,) = (one for one in claim.findings if one.what.startswith(start))
    return found


def test_claims_hold_if_all_comparisons_do():
    found = claims(whole_study())
    assert {claim.verdict for claim in found.values()} == {"holds"} and len(found) == 4
    assert not finding(found["infilling"], "WikiText-2, to the base from the left").warning
    assert found["knowledge"].tally == f"2 of 2 comparisons count for it; {ONE_RUN}"


@pytest.mark.parametrize("less, apart, outcome", [(1, 0.2, "for"), (-1, 0.2, "against"), (1, 4, "within the error")])
def test_difference_requires_two_standard_errors(less, apart, outcome):
    """Compute errors by hand: of two runs at distance `d`, the error of the mean is `d / 2`."""
    found = {"MAGNET": [80, 80 + apart], "LLM2Vec recipe": [80 - less, 80 - less + apart]}
    cells = [(s, unit, "accuracy", runs) for unit in ("chunking", "ner", "pos") for s, runs in found.items()]
    claim = claims([record for cell in cells for record in replicas("words", *cell)])["representations"]
    assert {one.outcome for one in claim.findings if one.what.endswith("accuracy")} == {outcome}
    assert (1 > 2 * 2**0.5 * apart / 2) == (outcome != "within the error")
    assert f"two standard errors {show(2 * 2**0.5 * apart / 2, 2)}" in claim.findings[0].numbers
    assert claim.verdict == ("holds in part" if outcome == "for" else "does not hold")  # sts was not measured


def test_sentence_tasks_are_compared_on_common_sets():
    records = [record for record in whole_study() if record.table == "sts"]
    records = [record for record in records if (record.system, record.unit) != ("LLM2Vec recipe", "STS16")]
    found = finding(claims(records)["representations"], "STS, mean of 6 sets")
    assert found.outcome == "for" and "MAGNET 41.1" in found.numbers  # 38.25 and the mean of 0, 1, 2, 3, 5, 6


def test_infilling_is_compared_with_the_causal_control_where_it_is_on_record():
    records = [record for record in whole_study() if record.table == "infilling"]
    records += replicas("infilling", "causal control", "WikiText", "perplexity", [25.0])
    claim = claims(records)["infilling"]
    assert finding(claim, "WikiText-2, to the base trained causally").outcome == "against"
    assert finding(claim, "ROCStories, to the base trained causally").outcome == "not measured"
    bars = {group.title: {row: value.mean for row, value in group.bars.items()} for group in claim.groups}
    assert bars["WikiText-2"] == {"MAGNET": 0.7625, "causal control": 0.625, "base, infill": 7.5}


def test_repetition_is_compared_with_recipe_base_and_steps():
    records = [record for record in whole_study() if record.table == "repetition"]
    # Less than the recipe, but closer to it than to the base, and growing.
    grown = [
        make_record("repetition", "MAGNET", unit, metrics={"rep_sen": value, "rep_4": value}, step=step)
        for unit in ("WikiText", "ROCStories")
        for step, value in ((None, 0.4), (100, 0.1), (200, 0.25), (300, 0.4))
    ]
    claim = claims([record for record in records if record.system != "MAGNET"] + grown)["repetition"]
    assert [one.outcome for one in claim.findings] == ["for", "against", "against"] * 4
    assert "+1.5 in 1,000 steps" in claim.findings[2].numbers


def test_repetition_limit_is_the_base_if_the_recipe_repeats_less():
    def judged(ours):
        found = (("base", 0.10), ("LLM2Vec recipe", 0.02), ("MAGNET", ours))
        records = [make_record("repetition", s, "WikiText", metrics={"rep_4": value}) for s, value in found]
        findings = claims(records)["repetition"].findings
        return [one.outcome for one in findings if one.what.startswith("WikiText-2 rep-4")]

    assert judged(0.09) == ["against", "for", "not measured"]  # more than the recipe, less than the base
    assert judged(0.11) == ["against", "against", "not measured"]


def test_knowledge_tolerates_the_loss_reported_in_the_paper():
    def judged(*figures, stderr=0.1):
        found = zip(("base", "MAGNET"), figures, strict=True)
        records = [make_record("mmlu", s, "average", metrics={"accuracy": v, "stderr": stderr}) for s, v in found]
        return finding(claims(records)["knowledge"], "MMLU")

    assert judged(45.0, 44.0).outcome == "for"  # 1.6 points are allowed
    assert judged(45.0, 42.0).outcome == "against"
    assert judged(45.0, 43.5).outcome == "within the error"  # 0.1 off, two errors are 0.28
    assert judged(45.0, 42.0, stderr=3.0).outcome == "within the error"
    assert "not above chance" in judged(25.1, 25.0).numbers and judged(25.1, 25.0).outcome == "not measured"
