"""Disturb a job at random moments until it ends, and let it go on each time.

A job is a function that runs in a process of its own, and goes on with what it finds in its folder.
"""

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.trainer.processes import CONTEXT

# How many seeds a fault is tried with; a nightly run sets more.
SEEDS = range(int(os.environ.get("MAGNET_FAULT_SEEDS", "1")))
LIMIT_SECONDS = 120


@dataclass
class Outcome:
    """What it took to end a job."""

    attempts: int
    disturbed: int  # attempts that ended early
    seconds: float  # of work in the last attempt


def run_until_done(
    job: Callable[[Path], None],
    folder: Path,
    *,
    disturb: Callable[[Any, random.Random], None],
    seed: int,
    most: int = 4,
) -> Outcome:
    """Run a job, disturbed at most so many times; the last attempt is left alone.

    Args:
        job (`Callable`): Of a module, so that another process finds it; it touches `started` in its folder once its
            work begins.
        folder (`Path`): The job's.
        disturb (`Callable`): Is given the running process and a source of moments.
        seed (`int`): Of the moments.
        most (`int`, defaults to 4): Disturbed attempts.
    """
    moments, disturbed = random.Random(seed), 0
    for attempt in range(most + 1):
        (folder / "started").unlink(missing_ok=True)
        process = CONTEXT.Process(target=job, args=(folder,))
        process.start()
        deadline = time.monotonic() + LIMIT_SECONDS
        while not (folder / "started").exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        began = time.monotonic()
        if attempt < most:
            disturb(process, moments)
        process.join(timeout=LIMIT_SECONDS)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"The job hung in attempt {attempt + 1}.")
        if process.exitcode == 0:
            return Outcome(attempt + 1, disturbed, time.monotonic() - began)
        disturbed += 1
    raise AssertionError(f"The job failed without being disturbed (exit {process.exitcode}).")


def sent(number: signal.Signals, *, within: float) -> Callable[[Any, random.Random], None]:
    """A signal at a moment within so many seconds."""

    def disturb(process: Any, moments: random.Random) -> None:
        process.join(timeout=moments.uniform(0, within))
        if process.is_alive():
            os.kill(process.pid, number)

    return disturb


def limited(kind: int, amounts: tuple[int, int], *, within: float) -> Callable[[Any, random.Random], None]:
    """A limit of the system that is reached at a moment within so many seconds: `RLIMIT_FSIZE` fills the disk."""

    def disturb(process: Any, moments: random.Random) -> None:
        process.join(timeout=moments.uniform(0, within))
        if process.is_alive():
            amount = moments.randint(*amounts)
            resource.prlimit(process.pid, kind, (amount, resource.RLIM_INFINITY))

    return disturb
