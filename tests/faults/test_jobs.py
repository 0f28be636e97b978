"""Disturb each long job at random moments, restart it, and compare with the bytes of an undisturbed run."""

import functools
import os
import re

import pytest

from tests.faults.disturbing import FAULTS, attempt, disturb
from tests.faults.jobs import JOBS

SEEDS = range(int(os.environ.get("MAGNET_FAULT_SEEDS", "1")))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return what leaves a job alone once: its inputs, its results, and the seconds that it takes."""

    @functools.cache
    def leave_alone(job):
        inputs, folder = (tmp_path_factory.mktemp("undisturbed") / name for name in ("inputs", "job"))
        inputs.mkdir()
        folder.mkdir()
        JOBS[job].prepare(inputs)
        exit_code, seconds, error = attempt(job, "SIGKILL", inputs, folder)
        assert exit_code == 0, error
        return inputs, JOBS[job].made(folder), seconds

    return leave_alone


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.long
def test_disturbed_job_ends_like_an_undisturbed_one(tmp_path, undisturbed, job, fault, seed):
    inputs, expected, seconds = undisturbed(job)
    made, errors = disturb(job, fault, inputs, seconds=seconds, seed=seed, base=tmp_path)
    assert [name for name in {**made, **expected} if made.get(name) != expected.get(name)] == []
    for error in errors:
        assert re.search(FAULTS[fault].message, error), f"an unclear end: {error}"
