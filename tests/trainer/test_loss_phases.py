"""Phases in both spellings, and how long each lasts."""

import copy
import pickle

import pytest

from trainer.loss_phases import LossPhase, parse_phases

from .tiny import tiny_args, tiny_trainer

PAPER = ["3400: mntp=1 msg=1", "800: mntp=1 sscl=9 msg=1"]


@pytest.mark.parametrize(
    ("named", "short"),
    [
        ("3400: mntp=1 msg=1", "3400:1,0,1"),
        ("800: msg=.1 sscl=9 mntp=1", "800:1,9,.1"),
        ("5:sscl=2", " 5 : 0, 2, 0e0 "),
        ("5: mntp=1 msg=0", "5:1,0,0"),
    ],
)
def test_both_spellings_give_the_same_phase(named, short):
    assert parse_phases([named]) == parse_phases([short])


def test_a_phase_has_a_weight_for_every_objective():
    phase = parse_phases(PAPER)[0]
    assert phase == LossPhase(3400, {"mntp": 1, "msg": 1.0}) == copy.deepcopy(pickle.loads(pickle.dumps(phase)))
    assert phase.weights == {"mntp": 1.0, "msg": 1.0}
    assert phase.uses_tokens and not phase.uses_pairs


@pytest.mark.parametrize(
    "entry",
    ["", "800", "1,9,1", "800:1,9", "800:1,9,1,1", "800.5:1,9,1", "800:1;9;1", "8:1:1", 800, ["8"], "8: mntp"]
    + ["8: mntp=1 1", "8: mntp=1 mntp=2", "8: mntp=x", "8: mntp=1, msg=1", "8: mntp = 1"],
)
def test_malformed_entry_raises(entry):
    with pytest.raises(ValueError) as error:
        parse_phases([*PAPER, entry])
    assert f"phase 3, {entry!r}: write it as '800: mntp=1 sscl=9 msg=1'" in str(error.value)


def test_invalid_arguments_raise_in_one_error():
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
        ("phase 6", "'mtp' is not an objective"),
        ("phase 7", "9 steps"),
    ]
    assert len(lines) == len(expected)
    for line, parts in zip(lines, expected, strict=True):
        assert all(part in line for part in parts)


@pytest.mark.parametrize("entries", [[], "3400:1,0,1", 3400, None, {"3400": "1,0,1"}])
def test_empty_or_single_string_phases_raise(entries):
    with pytest.raises(ValueError, match="pass a list"):
        parse_phases(entries)


def test_each_phase_lasts_for_its_steps_and_the_last_does_not_end(tmp_path):
    schedule = ["2: mntp=1", "1: sscl=1", "2: msg=1", "3: mntp=1 sscl=2"]
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=schedule))
    found, pair_steps = [], []
    for trainer.state.global_step in range(10):
        found.append(trainer.phases.index(trainer._phase))
        pair_steps.append(trainer._num_pair_steps)
    assert found == [0, 0, 1, 2, 2, 3, 3, 3, 3, 3]
    assert pair_steps == [0, 0, 0, 1, 1, 1, 2, 3, 4, 5]
