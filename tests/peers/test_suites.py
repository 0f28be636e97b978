"""Test that whatever passes on a stock class passes on ours."""

import pytest

from . import suites


def test_unexpected_failure_of_ours_is_a_complaint():
    allowed = next(iter(suites.ALLOWED))
    passed = {
        ("TestLlamaStock", "test_a"): True,
        ("TestLlamaOurs", "test_a"): True,
        ("TestLlamaStock", "test_b"): True,
        ("TestLlamaOurs", "test_b"): False,
        ("TestLlamaStock", "test_c"): False,
        ("TestLlamaOurs", "test_c"): False,
        ("TestLlamaStock", "test_d"): True,
        ("TestLlamaStock", allowed): True,
        ("TestLlamaOurs", allowed): False,
    }
    stock_passed, complaints = suites.compare(passed)
    assert stock_passed == 4
    assert [complaint.split(";")[0] for complaint in complaints] == [
        "TestLlamaOurs::test_b fails",
        "TestLlamaOurs::test_d is skipped",
    ]
    assert suites.compare({}).complaints


def test_allowed_failures_are_few_and_explained():
    assert len(suites.ALLOWED) <= 10
    assert all(len(reason.split()) > 5 for reason in suites.ALLOWED.values())


def complaints(*, quick: bool) -> list[str]:
    pytest.importorskip("parameterized", reason="the suite of transformers needs it: pip install -e '.[dev]'")
    try:
        return [complaint for _, outcome in suites.run(quick=quick) for complaint in outcome.complaints]
    except OSError as error:
        pytest.skip(str(error))


@pytest.mark.long
def test_common_tests_of_transformers_pass():
    assert complaints(quick=True) == []


@pytest.mark.nightly
def test_suites_of_transformers_and_peft_pass():
    assert complaints(quick=False) == []
