"""A fixed set of hostile inputs for each target, and proof that the judge finds what it is there for.

`nightly.py` draws as many as wanted.
"""

import faulthandler
import json
import logging
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_magnet.masking_magnet import check_mode
from modeling_magnet.spans_magnet import split_at_marks, split_at_ranges
from tests.fuzz import inputs, nightly
from tests.fuzz.judging import FINDING, REFUSED, RIGHT, Target, check, judge, naming, no_bars
from tests.fuzz.pool import draw_of, run
from tests.fuzz.targets import TARGETS, shares
from trainer.whole_files import json_bytes, parse_json

derandomised = settings(derandomize=True, max_examples=200, deadline=None, database=None)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with no_bars():
        yield


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs_give_right_results_or_clear_errors(name):
    target = TARGETS[name]
    verdicts = {seed: judge(target, draw_of(target, seed)) for seed in range(target.seeds)}
    found = {f"{name}:{seed}": one.told for seed, one in verdicts.items() if one.outcome == FINDING}
    assert not found, f"show one by: python tests/fuzz/nightly.py --input {next(iter(found))}"
    assert any(one.outcome == RIGHT for one in verdicts.values()), "nothing of this was ever right"


# ---- Structured inputs, shrunk where they fail ----


@derandomised
@given(st.lists(st.text(alphabet="a\\[blank] \u0301"), min_size=2, max_size=4))
def test_escaped_pieces_are_the_pieces_again(pieces):
    """Every text can be written in front of a mark: its own marks escaped, its backslashes in front of one doubled."""

    def doubled(text):
        return text + "\\" * (len(text) - len(text.rstrip("\\")))

    def escaped(text):
        *parts, last = text.split("[blank]")
        return "\\[blank]".join([*map(doubled, parts), last])

    written = "[blank]".join([*(doubled(escaped(piece)) for piece in pieces[:-1]), escaped(pieces[-1])])
    assert split_at_marks(written, "[blank]", name="text") == pieces


@derandomised
@given(st.text(alphabet="abc "), st.lists(st.integers(0, 12), max_size=6))
def test_ranges_and_pieces_make_the_text(text, places):
    places = sorted(min(place, len(text)) for place in places)
    ranges = list(zip(places[::2], places[1::2], strict=False))
    if not ranges:
        with pytest.raises(ValueError, match="expected a list of"):
            split_at_ranges(text, ranges, name="text")
        return
    pieces = split_at_ranges(text, ranges, name="text")
    taken = [text[start:end] for start, end in ranges]
    assert "".join(piece + gap for piece, gap in zip(pieces, [*taken, ""], strict=True)) == text


@derandomised
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.just("\ud800"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    )
)
def test_json_is_read_as_it_was_written(value):
    assert parse_json(json_bytes(value)) == value
    assert json.loads(json_bytes(value, indent=2)) == value


# ---- The judge ----


def run_of(action, **changes):
    return Target(name="made", run=lambda draw, folder: action(), **changes)


def verdict_of(action, *, seconds=10.0, **changes):
    return judge(run_of(action, **changes), draw_of(run_of(action), 0), seconds=seconds)


def test_an_operator_that_fails_is_a_finding():
    verdict = verdict_of(lambda: "text" + 1)
    assert (verdict.outcome, verdict.told.split(":")[0]) == (FINDING, "TypeError")
    assert "test_fuzz.py" in verdict.told


def test_an_error_of_a_package_below_is_a_finding_and_ours_is_clear():
    assert verdict_of(lambda: json.loads("{")).outcome == FINDING
    assert verdict_of(lambda: json.loads("{"), allowed=("json/decoder.py",)).outcome == REFUSED
    assert verdict_of(lambda: check_mode("sideways")).outcome == REFUSED
    assert verdict_of(lambda: split_at_marks("a", 3, name="text")).outcome == REFUSED
    assert verdict_of(lambda: split_at_marks(3, "[blank]", name="text")).outcome == FINDING, "a TypeError of `re`"


def test_an_error_that_names_nothing_is_a_finding():
    def unnamed():
        with naming("`segment_ids`"):
            check_mode("sideways")

    verdict = verdict_of(unnamed)
    assert verdict.outcome == FINDING and "does not name ['`segment_ids`']" in verdict.told


def test_a_wrong_result_is_a_finding():
    assert verdict_of(lambda: check(1 + 1 == 3, "a sum")).told.startswith("Broken: a sum")


def test_what_does_not_end_is_a_finding():
    def endless():
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    verdict = verdict_of(endless, seconds=0.2)
    assert verdict.outcome == FINDING and "no end after 0.2 seconds" in verdict.told and verdict.seconds < 2


def test_what_takes_all_memory_is_a_finding():
    assert "MemoryError" in verdict_of(lambda: bytearray(1 << 50)).told
    kept = []
    verdict = verdict_of(lambda: kept.append(b"x" * (600 << 20)))
    assert verdict.outcome == FINDING and "more in memory" in verdict.told


def test_files_of_an_input_are_gone_before_the_next():
    def write(draw, folder):
        check(not list(folder.iterdir()), "the folder is not empty")
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        raise TypeError

    target = Target(name="made", run=write)
    assert [judge(target, draw_of(target, seed)).told.split(":")[0] for seed in range(2)] == ["TypeError"] * 2


# ---- The nightly run ----


def crash(draw, folder):
    """Every fourth input ends the process."""
    if draw.random() < 0.25:
        faulthandler._sigsegv()


def hang(draw, folder):
    """Every fourth input stays in C, where no alarm is heard."""
    if draw.random() < 0.25:
        sum(range(10**12))


@pytest.mark.parametrize(
    ("action", "told"), [(crash, "ended with -11"), (hang, "ended with -6")], ids=["crash", "hang"]
)
def test_a_process_that_ends_is_a_finding_and_not_the_end(monkeypatch, action, told):
    monkeypatch.setattr("tests.fuzz.pool.GRACE_SECONDS", 0.2)
    target = Target(name="made", run=action)
    ending = [f"made:{seed}" for seed in range(5) if draw_of(target, seed).random() < 0.25]
    found, inputs_judged = [], 0
    for _, tally in run({"made": target}, {"made": 5}, limit=0.3):
        found += tally.findings
        inputs_judged += tally.inputs
    assert [name for name, _ in found] == ending and ending
    assert inputs_judged == 5 and all(told in what and "test_fuzz.py" in what for _, what in found)


def test_a_run_ends_with_a_table_and_the_findings(monkeypatch, tmp_path, capsys):
    bad = Target(name="bad", run=lambda draw, folder: [][draw.choice((0, 0))], weight=1)
    good = Target(name="good", run=lambda draw, folder: None, weight=3)
    monkeypatch.setattr(nightly, "TARGETS", {"bad": bad, "good": good})
    arguments = ["--inputs", "8", "--processes", "2", "--seed", "5", "--report", str(tmp_path / "report.md")]
    assert nightly.main([*arguments, "--target", "bad", "good"]) == 1
    report = (tmp_path / "report.md").read_text()
    assert "| good | 6 | 6 | 0 | 0 |" in report and "| bad | 2 | 0 | 0 | 2 |" in report and "| all | 8 |" in report
    assert "- `bad:5`: IndexError: list index out of range" in report
    assert nightly.main(["--inputs", "3", "--target", "good"]) == 0
    with pytest.raises(IndexError):
        nightly.main(["--input", "bad:5"])
    assert logging.root.manager.disable == logging.NOTSET, "the process keeps its logs"


def test_inputs_are_divided_by_weight_and_none_is_lost():
    parts = shares(1_000_000, list(TARGETS.values()))
    assert sum(parts.values()) == 1_000_000 and min(parts.values()) > 100
    assert parts["marks"] > 10 * parts["infilling"]


def test_an_input_is_the_same_whenever_it_is_drawn():
    target = TARGETS["marks"]
    texts = [inputs.text(draw_of(target, seed), 8) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
