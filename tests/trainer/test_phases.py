"""The schedule of loss weights: read in both spellings, looked up and counted."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.phases import LossPhase, contrastive_steps_before, parse_phases, phase_at

PAPER = ["3400: mntp=1 msg=1", "800: mntp=1 sscl=9 msg=1"]

phases = st.lists(
    st.builds(
        LossPhase,
        steps=st.integers(1, 6),
        mntp=st.sampled_from([0.0, 1.0]),
        sscl=st.sampled_from([0.0, 9.0]),
        msg=st.just(1.0),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize(
    ("named", "short"),
    [
        ("3400: mntp=1 msg=1", "3400:1,0,1"),
        ("800: msg=.1 sscl=9 mntp=1", "800:1,9,.1"),
        ("5:sscl=2", " 5 : 0, 2, 0e0 "),
        ("5: mntp=1 msg=0", "5:1,0,0"),
    ],
)
def test_both_spellings_read_alike(named, short):
    assert parse_phases([named]) == parse_phases([short])


def test_a_phase_has_a_weight_for_every_objective():
    phase = parse_phases(PAPER)[0]
    assert phase == LossPhase(3400, mntp=1, sscl=0, msg=1.0) == copy.deepcopy(pickle.loads(pickle.dumps(phase)))
    assert (phase.mntp, phase.sscl, phase.msg) == (1.0, 0.0, 1.0)
    assert phase.uses_tokens and not phase.uses_pairs
    with pytest.raises(AttributeError, match="'mtp'"):
        phase.mtp  # noqa: B018


@pytest.mark.parametrize(
    "entry",
    ["", "800", "1,9,1", "800:1,9", "800:1,9,1,1", "800.5:1,9,1", "800:1;9;1", "8:1:1", 800, ["8"], "8: mntp"]
    + ["8: mntp=1 1", "8: mntp=1 mntp=2", "8: mntp=x", "8: steps=1", "8: mntp=1, msg=1", "8: mntp = 1"],
)
def test_a_malformed_entry_is_shown(entry):
    with pytest.raises(ValueError) as error:
        parse_phases([*PAPER, entry])
    assert f"phase 3, {entry!r}: write it as '800: mntp=1 sscl=9 msg=1'" in str(error.value)


def test_all_complaints_come_in_one_error():
    with pytest.raises(ValueError) as error:
        parse_phases(["0:1,0,1", "oops", "10:nan,-9,inf", "10:1,0,1", "-5:0,0,0", "9: mtp=1", "9" * 400 + ":1,0,1"])
    lines = str(error.value).splitlines()[1:]
    expected = [
        ("phase 1", "0 steps"),
        ("phase 2", "'oops'"),
        ("phase 3", "mntp is nan"),
        ("phase 3", "sscl is -9.0"),
        ("phase 3", "msg is inf"),
        ("phase 5", "-5 steps"),
        ("phase 5", "all weights are 0"),
        ("phase 6", "no objective 'mtp'"),
        ("phase 7", "400 digits of steps"),
    ]
    assert len(lines) == len(expected)
    for line, parts in zip(lines, expected, strict=True):
        assert all(part in line for part in parts)


@pytest.mark.parametrize("entries", [[], "3400:1,0,1", 3400, None, {"3400": "1,0,1"}])
def test_phases_come_as_a_list_of_at_least_one(entries):
    with pytest.raises(ValueError, match="pass a list"):
        parse_phases(entries)


@pytest.mark.parametrize(("step", "number"), [(0, 0), (3399, 0), (3400, 1), (4199, 1), (4200, 1), (10_000, 1)])
def test_phase_at_the_edges(step, number):
    schedule = parse_phases(PAPER)
    assert phase_at(schedule, step) == schedule[number]


@pytest.mark.parametrize(("step", "count"), [(0, 0), (3400, 0), (3401, 1), (4200, 800), (4300, 900)])
def test_contrastive_steps_of_the_paper_s_schedule(step, count):
    assert contrastive_steps_before(parse_phases(PAPER), step) == count


@given(phases, st.integers(0, 40))
def test_contrastive_steps_are_those_whose_phase_has_the_weight(schedule, step):
    assert contrastive_steps_before(schedule, step) == sum(phase_at(schedule, past).sscl > 0 for past in range(step))


@given(phases)
def test_each_phase_is_in_force_for_its_steps(schedule):
    unrolled = [phase for phase in schedule for _ in range(phase.steps)]
    assert [phase_at(schedule, step) for step in range(len(unrolled))] == unrolled
