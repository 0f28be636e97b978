"""Run a fixed set of hostile inputs for each target, and test that the judge reports findings."""

import faulthandler
import json
import logging
import time

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import logging as transformers_logging

from tests.fuzz import judge as judging
from tests.fuzz.judge import check, draw_of, judge, naming
from tests.fuzz.targets import TARGETS
from trainer import MagnetTrainingArguments
from trainer.whole_files import json_bytes, parse_json


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Silence warnings and progress bars of libraries for thousands of inputs."""
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    transformers_logging.enable_progress_bar()
    datasets.enable_progress_bars()


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs_give_right_results_or_clear_errors(name):
    target, number = TARGETS[name]
    verdicts = {f"{name}:{seed}": judge(target, draw_of(name, seed)) for seed in range(number)}
    found = {place: verdict for place, verdict in verdicts.items() if verdict not in (None, "refused")}
    assert not found, f"show one by: python tests/fuzz/judge.py --input {next(iter(found))}"
    assert None in verdicts.values(), "no input was ever right"


@settings(derandomize=True, max_examples=60, deadline=None, database=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.just("\ud800"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    )
)
def test_json_round_trips(value):
    assert parse_json(json_bytes(value)) == value
    assert json.loads(json_bytes(value, indent=2)) == value


# ---- The judge ----


def refused(draw, folder):
    MagnetTrainingArguments(output_dir="out", loss_phases=["x"])


def refused_without_a_name(draw, folder):
    with naming("`segment_ids`"):
        refused(draw, folder)


def endless(draw, folder):
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (refused, "refused"),
        (lambda draw, folder: None, "None"),
        (lambda draw, folder: "text" + 1, "TypeError"),
        (lambda draw, folder: json.loads("{"), "JSONDecodeError"),
        (refused_without_a_name, "does not name `segment_ids`"),
        (lambda draw, folder: check(1 + 1 == 3, "a sum"), "a sum"),
        (endless, "no end after 0.2 seconds"),
        (lambda draw, folder: bytearray(1 << 50), "MemoryError"),
    ],
    ids="clear right operator below unnamed wrong endless memory".split(),
)
def test_judge_separates_right_results_and_clear_errors_from_findings(target, told):
    assert told in str(judge(target, draw_of("made", 0), seconds=0.2))


def crash(draw, folder):
    if draw.random() < 0.25:
        faulthandler._sigsegv()


def hang(draw, folder):
    """Block in C code, where no signal handler runs."""
    if draw.random() < 0.25:
        sum(range(10**12))


@pytest.mark.parametrize(("target", "told"), [(crash, "ended with -11"), (hang, "ended with -9")])
def test_crashed_process_is_a_finding(target, told):
    verdicts = list(judging.judge_all(target, "made", range(5), seconds=0.2))
    ending = [draw_of("made", seed).random() < 0.25 for seed in range(5)]
    assert [told in str(verdict) for verdict in verdicts] == ending and any(ending) and not all(ending)


def test_run_prints_a_table_and_the_findings(monkeypatch, capsys):
    made = {"bad": (lambda draw, folder: [][0], 1), "good": (lambda draw, folder: None, 3)}
    monkeypatch.setattr("tests.fuzz.targets.TARGETS", made)
    assert judging.main(["--inputs", "8", "--seed", "5"]) == 1
    printed = capsys.readouterr().out
    assert "| bad | 2 | 0 | 0 | 2 |" in printed and "| good | 6 | 6 | 0 | 0 |" in printed and "`bad:5`: Ind" in printed
    assert judging.main(["--inputs", "3", "--target", "good"]) == 0
    with pytest.raises(IndexError):
        judging.main(["--input", "bad:5"])
