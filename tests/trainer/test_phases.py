"""The schedule of loss weights: read, looked up and counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.phases import LossPhase, contrastive_steps_before, parse_phases, phase_at

PAPER = ["3400:1,0,1", "800:1,9,1"]

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


def test_the_paper_s_schedule_reads_in_the_order_mntp_sscl_msg():
    assert parse_phases(PAPER) == (LossPhase(3400, 1.0, 0.0, 1.0), LossPhase(800, 1.0, 9.0, 1.0))
    assert parse_phases(["5:0.1,0.2,0.3"])[0] == LossPhase(steps=5, mntp=0.1, sscl=0.2, msg=0.3)


def test_spaces_do_not_matter():
    assert parse_phases([" 800 : 1, 9, 1e-1 "]) == (LossPhase(800, 1.0, 9.0, 0.1),)


@pytest.mark.parametrize(
    "entry", ["", "800", "1,9,1", "800:1,9", "800:1,9,1,1", "800.5:1,9,1", "800:1;9;1", "8:1:1", 800, ["8"]]
)
def test_a_malformed_entry_is_shown_with_the_form_it_should_have(entry):
    with pytest.raises(ValueError) as error:
        parse_phases([*PAPER, entry])
    assert f"phase 3, {entry!r}: write it as 'steps:mntp,sscl,msg'" in str(error.value)


def test_all_complaints_come_in_one_error():
    with pytest.raises(ValueError) as error:
        parse_phases(["0:1,0,1", "oops", "10:1,-9,inf", "10:1,0,1", "-5:0,0,0"])
    assert str(error.value).splitlines() == [
        "The loss phases cannot be used:",
        "- phase 1, '0:1,0,1': 0 steps; give it at least one, or leave the phase out.",
        "- phase 2, 'oops': write it as 'steps:mntp,sscl,msg', such as '800:1,9,1'.",
        "- phase 3, '10:1,-9,inf': the weight of sscl is -9.0; pass a finite number, 0 or above.",
        "- phase 3, '10:1,-9,inf': the weight of msg is inf; pass a finite number, 0 or above.",
        "- phase 5, '-5:0,0,0': -5 steps; give it at least one, or leave the phase out.",
        "- phase 5, '-5:0,0,0': all weights are 0; nothing would be trained, give one objective a weight.",
    ]


def test_more_steps_than_a_run_can_have_are_refused():
    with pytest.raises(ValueError, match="400 digits of steps; give it 9007199254740992 at most"):
        parse_phases(["9" * 400 + ":1,0,1"])


def test_not_a_number_is_no_weight():
    with pytest.raises(ValueError, match="the weight of mntp is nan"):
        parse_phases(["10:nan,0,1"])


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
