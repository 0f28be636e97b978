"""Disturb a job at random moments until it ends, and compare its results with those of an undisturbed run."""

import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 30
MOST_DISTURBED = 2
TRIES = 6
DISK_BYTES = 96 * 2**20
TEN_YEARS = 10 * 365 * 24 * 3600


def nothing(*_):
    """Do nothing."""


class Job(NamedTuple):
    """Describe a long job as a command that is repeated until it ends."""

    prepare: Callable  # writes its inputs to a folder, once
    run: Callable  # runs from the inputs in a folder; starts, or resumes from what it finds in the other
    made: Callable  # returns its results by name, without what depends on the attempt


class Fault(NamedTuple):
    """Describe a disturbance."""

    strike: Callable  # at a random moment
    message: str = "never"  # an error that ends the job has to match this
    place: Callable = nothing  # prepares the folder, and may return what undoes that
    inside: Callable = nothing  # in the job's process, before it starts
    heal: Callable = nothing  # before the job is started again


# ---- Faults ----


def kill(pid, folder, moments):
    """Kill the job."""
    os.kill(pid, signal.SIGKILL)


def limit_files(pid, folder, moments):
    """Limit the size of files, at a moment when some are larger and some smaller."""
    limit = moments.randint(0, moments.choice([0, 3_000, 30_000]))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def fail_on_large_files(folder):
    """Convert the signal for too large files to a write error, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def mount_small_disk(folder):
    """Put the folder on a small file system in memory."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    return lambda: subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(pid, folder, moments):
    """Fill the disk up to some kilobytes."""
    left = moments.choice([0, moments.randint(0, 4_000), moments.randint(0, 60_000)])
    with open(folder / ".filler", "wb") as file:
        while (free := shutil.disk_usage(folder).free) > left:
            with suppress(OSError):  # the job writes at the same time
                os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + free - left)


def follow_clock(folder):
    """Shift the time of day by the content of a file beside the folder."""
    clock = folder.with_name("clock")
    if not clock.exists():
        clock.write_bytes(bytes(8))
    with open(clock, "r+b") as file:
        shared = mmap.mmap(file.fileno(), 8)
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + struct.unpack("q", shared)[0]
    time.time_ns = lambda: real_ns() + struct.unpack("q", shared)[0] * 10**9


def jump(pid, folder, moments):
    """Move the clock by up to ten years, and usually kill the job afterwards."""
    with suppress(FileNotFoundError), open(folder.with_name("clock"), "r+b") as file:
        file.write(struct.pack("q", moments.randint(-TEN_YEARS, TEN_YEARS)))
    if moments.random() < 0.7:
        os.kill(pid, signal.SIGKILL)


def redate(folder, moments):
    """Set random modification times on all files."""
    for path in sorted(folder.rglob("*")):
        then = 1_700_000_000 + moments.randint(-TEN_YEARS, TEN_YEARS)
        os.utime(path, (then, then), follow_symlinks=False)


FAULTS = {
    "SIGKILL": Fault(kill),
    "no room for a file": Fault(limit_files, "File too large", inside=fail_on_large_files),
    "full disk": Fault(
        fill_disk,
        "No space left|Not enough disk space",
        place=mount_small_disk,
        heal=lambda folder, moments: (folder / ".filler").unlink(missing_ok=True),
    ),
    "clock jump": Fault(jump, inside=follow_clock, heal=redate),
}


# ---- Attempts ----


def attempt(job, fault, inputs, folder, *, meanwhile=nothing):
    """Run a job in a process, call a function with it meanwhile, and wait for its end.

    Returns:
        Its exit code, the seconds from the beginning of its work, and the last lines that it printed.
    """
    command = [sys.executable, "-m", "tests.faults.jobs", job, fault, str(inputs), str(folder)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    for line in process.stdout:
        if line == "started\n":
            break
    began = time.monotonic()
    meanwhile(process)
    try:
        text, _ = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"the job hung; it wrote:\n{process.communicate()[0][-5000:]}") from None
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return process.returncode, time.monotonic() - began, "\n".join(errors or lines[-1:])


def disturb(job, fault, inputs, *, seconds, seed, base):
    """Disturb a job, which takes some seconds if left alone, until it ends; `base` is an empty folder.

    If it ends before its fault, repeat it with an earlier one.

    Returns:
        Its results, and the errors of attempts that ended by themselves.
    """
    from tests.faults.jobs import JOBS

    moments = random.Random(seed)
    for number in range(TRIES):
        folder = base / str(number) / "job"
        folder.mkdir(parents=True)
        with ExitStack() as stack:
            stack.callback(FAULTS[fault].place(folder) or nothing)
            errors = _run_until_done(job, fault, inputs, folder, moments, within=0.7 * seconds / 2**number)
            if errors:
                return JOBS[job].made(folder), [error for error in errors if error]
    raise AssertionError(f"the job ended {TRIES} times before it could be disturbed")


def _run_until_done(job, fault, inputs, folder, moments, *, within):
    """Disturb attempts until one succeeds, the last one undisturbed, and return the errors of the others."""
    errors = []

    def strike(process):
        try:
            process.wait(moments.uniform(0, within))
        except subprocess.TimeoutExpired:
            FAULTS[fault].strike(process.pid, folder, moments)

    for number in range(MOST_DISTURBED + 3):
        alone = len(errors) >= MOST_DISTURBED or number == MOST_DISTURBED + 2
        exit_code, _, error = attempt(job, fault, inputs, folder, meanwhile=nothing if alone else strike)
        FAULTS[fault].heal(folder, moments)
        if exit_code == 0:
            break
        assert not alone, f"the job failed when it was left alone after the fault: {error}"
        errors.append(error if exit_code > 0 else "")
    return errors
