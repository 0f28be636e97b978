"""Disturb a job at random moments until it ends, and compare what it made with that of one that was left alone."""

import faulthandler
import multiprocessing
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.calamities import Fault

# How many seeds a fault is tried with; a nightly run sets more.
SEEDS = range(int(os.environ.get("MAGNET_FAULT_SEEDS", "1")))
LIMIT_SECONDS = 30
MOST_DISTURBED = 2
TRIES = 6


class Job(NamedTuple):
    """A long job, as a command that is given again until it ends."""

    name: str
    prepare: Callable[[Path], None]  # writes its inputs to a folder, once
    run: Callable[[Path, Path], None]  # from the inputs, in a folder; begins, or goes on with what it finds there
    artefacts: Callable[[Path], dict[str, bytes]]  # what it made, without what tells times, by name
    rows: Callable[[Path], list[str]]  # what must be there once each: rows read, lines written, cells measured


@dataclass
class Outcome:
    """What became of a job that was disturbed."""

    attempts: int = 0
    disturbed: int = 0  # attempts that ended early
    errors: list[str] = field(default_factory=list)  # told by the attempts that ended by themselves
    differing: list[str] = field(default_factory=list)  # artefacts that are not those of the undisturbed run
    lost: int = 0
    duplicated: int = 0


class Undisturbed:
    """Inputs of a job, and what it makes of them when it is left alone.

    Args:
        job (`Job`): The job.
        base (`Path`): Folder for both.
    """

    def __init__(self, job: Job, base: Path) -> None:
        self.job, self.inputs = job, base / "inputs"
        self.inputs.mkdir(parents=True)
        job.prepare(self.inputs)
        self.folder = base / "whole" / "job"
        self.folder.mkdir(parents=True)
        exit_code, self.seconds, error = attempt(
            job, Fault("none"), self.inputs, self.folder, meanwhile=lambda _: None
        )
        assert exit_code == 0, f"{job.name} failed when it was left alone: {error}"
        self.artefacts, self.rows = job.artefacts(self.folder), Counter(job.rows(self.folder))


def disturb(whole: Undisturbed, fault: Fault, *, seed: int, base: Path) -> Outcome:
    """Run a job with disturbances and compare what it made; a run that ended before any is tried again, sooner struck.

    Args:
        whole (`Undisturbed`): The same job, left alone.
        fault (`Fault`): What happens.
        seed (`int`): Of the moments.
        base (`Path`): An empty folder.

    Raises:
        NotPossibleError: where the fault cannot be made here.
        AssertionError: a job that hangs, fails once it is left alone, or never met the fault.
    """
    moments = random.Random(seed)
    for number in range(TRIES):
        folder = base / str(number) / "job"
        with fault.place(folder):
            outcome = _run_until_done(whole, fault, folder, moments=moments, within=0.7 * whole.seconds / 2**number)
            if outcome.disturbed:
                made, rows = whole.job.artefacts(folder), Counter(whole.job.rows(folder))
                names = made.keys() | whole.artefacts.keys()
                outcome.differing = sorted(name for name in names if made.get(name) != whole.artefacts.get(name))
                outcome.lost, outcome.duplicated = (whole.rows - rows).total(), (rows - whole.rows).total()
                return outcome
    raise AssertionError(f"{whole.job.name} ended {TRIES} times before {fault.name} could disturb it.")


def _run_until_done(
    whole: Undisturbed, fault: Fault, folder: Path, *, moments: random.Random, within: float
) -> Outcome:
    """Attempts, disturbed and healed, until one ends well; the last is left alone."""
    outcome = Outcome()
    while True:
        alone = outcome.disturbed >= MOST_DISTURBED or outcome.attempts >= MOST_DISTURBED + 2

        def strike(process: Any, alone: bool = alone) -> None:
            if not alone:
                process.join(timeout=moments.uniform(0, within))
                if process.is_alive():
                    fault.strike(process.pid, folder, moments)

        exit_code, _, error = attempt(whole.job, fault, whole.inputs, folder, meanwhile=strike)
        outcome.attempts += 1
        fault.heal(folder)
        if exit_code == 0:
            return outcome
        assert not alone, f"{whole.job.name} failed after {fault.name}, when it was left alone: {error}"
        outcome.disturbed += 1
        if exit_code > 0:
            outcome.errors.append(error)


def attempt(
    job: Job, fault: Fault, inputs: Path, folder: Path, *, meanwhile: Callable[[Any], None]
) -> tuple[int, float, str]:
    """Start a job in a process of its own, do something meanwhile, wait for its end.

    Returns:
        Its exit code, the seconds from the beginning of its work, and the error that it told.
    """
    started, terminal = folder.with_name("started"), folder.with_name("terminal")
    started.unlink(missing_ok=True)
    terminal.unlink(missing_ok=True)
    os.mkfifo(terminal)  # a file would be cut off by the faults themselves
    context: Any = multiprocessing.get_context(fault.start_method)
    process = context.Process(target=_work, args=(job, fault, inputs, folder, started, terminal))
    with ThreadPoolExecutor(1) as reader:
        reading = os.open(terminal, os.O_RDONLY | os.O_NONBLOCK)
        process.start()
        deadline = time.monotonic() + LIMIT_SECONDS
        while not started.exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        os.set_blocking(reading, True)
        written = reader.submit(_read_all, reading)
        began = time.monotonic()
        meanwhile(process)
        process.join(timeout=LIMIT_SECONDS)
        seconds = time.monotonic() - began
        hung = process.is_alive()
        if hung:
            process.kill()
            process.join()
        text = written.result()
    if hung and not (fault.may_hang and re.search(r'threading\.py", line \d+ in start$', text, flags=re.MULTILINE)):
        raise AssertionError(f"{job.name} hung with {fault.name}; it wrote:\n{text[-5000:]}")
    return process.exitcode, seconds, told_error(text)


def told_error(text: str) -> str:
    """The lines that name an error and its causes, else the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return "\n".join(errors or lines[-1:])


def _work(job: Job, fault: Fault, inputs: Path, folder: Path, started: Path, terminal: Path) -> None:
    """What the process does."""
    stream = os.open(terminal, os.O_WRONLY)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    faulthandler.enable(2)
    faulthandler.dump_traceback_later(0.9 * LIMIT_SECONDS, file=2)  # where it hangs
    fault.inside()
    started.touch()
    job.run(inputs, folder)


def _read_all(stream: int) -> str:
    """What comes until nobody writes any more."""
    with open(stream, "rb") as file:
        return file.read().decode(errors="replace")
