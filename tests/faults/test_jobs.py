"""Disturb each long job at random moments, restart it, and compare with the bytes of an undisturbed run."""

import functools
import os

import pytest

from tests.faults.disturbing import FAULTS, NotPossibleError, disturb, leave_alone
from tests.faults.jobs import JOBS

SEEDS = range(int(os.environ.get("MAGNET_FAULT_SEEDS", "1")))


def disturbances():
    """Return every fault of every job; CI runs a kill of each job and a third of the others, the nightly run all."""
    for job_number, job in enumerate(JOBS):
        for fault_number, fault in enumerate(FAULTS):
            is_often = fault_number == 0 or (fault_number + job_number) % 3 == 0
            mark = pytest.mark.long if is_often else pytest.mark.nightly
            yield pytest.param(job, fault, marks=mark, id=f"{job}-{fault}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return undisturbed jobs by name, run on first access."""
    return functools.cache(lambda job: leave_alone(JOBS[job], tmp_path_factory.mktemp("undisturbed")))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("job", "fault"), disturbances())
def test_disturbed_job_ends_like_an_undisturbed_one(tmp_path, undisturbed, job, fault, seed):
    try:
        differing, errors = disturb(undisturbed(job), FAULTS[fault], seed=seed, base=tmp_path)
    except NotPossibleError as reason:
        pytest.skip(str(reason))
    assert differing == []
    for error in errors:
        assert any(word in error for word in FAULTS[fault].told), f"an unclear end: {error}"
