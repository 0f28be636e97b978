"""Processes that judge inputs, and may crash or hang: then the input is a finding, and the next one follows."""

import contextlib
import faulthandler
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from tests.fuzz.judging import FINDING, LIMIT_SECONDS, REFUSED, RIGHT, Target, judge

# Of one errand of a process: then it tells what it found, and gets the next.
ERRAND_SECONDS = 2.0
# What native code does not hear of is ended from outside, so many seconds after the limit.
GRACE_SECONDS = 5.0
CONTEXT: Any = multiprocessing.get_context("fork")  # what was imported is there; nothing was computed before


@dataclass
class Tally:
    """What became of a target's inputs."""

    inputs: int = 0
    right: int = 0
    refused: int = 0
    findings: list[tuple[str, str]] = field(default_factory=list)  # `name:seed`, what was seen
    seconds: float = 0.0
    slowest: tuple[float, str] = (0.0, "")
    memory: int = 0  # most resident bytes of a process that worked on it

    def add(self, other: "Tally") -> None:
        """Count the other's inputs, too."""
        self.inputs += other.inputs
        self.right += other.right
        self.refused += other.refused
        self.findings += other.findings
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.memory = max(self.memory, other.memory)


def draw_of(target: Target, seed: int) -> random.Random:
    """What an input is drawn from, the same whenever it is asked for."""
    return random.Random(f"{target.name}:{seed}")


def judge_some(target: Target, seeds: range, *, limit: float, note: Callable[[int], None]) -> tuple[int, Tally]:
    """Judge the inputs of some seeds until they or the errand's seconds are over; returns the next seed.

    Args:
        target (`Target`): The target.
        seeds (`range`): Their seeds.
        limit (`float`): Seconds for one input.
        note (`Callable`): Told of each seed before it is judged.
    """
    tally, began = Tally(), time.monotonic()
    for seed in seeds:
        note(seed)
        verdict = judge(target, draw_of(target, seed), seconds=limit)
        name = f"{target.name}:{seed}"
        tally.inputs += 1
        tally.right += verdict.outcome == RIGHT
        tally.refused += verdict.outcome == REFUSED
        tally.findings += [(name, verdict.told)] if verdict.outcome == FINDING else []
        tally.seconds += verdict.seconds
        tally.slowest = max(tally.slowest, (verdict.seconds, name))
        if time.monotonic() - began > ERRAND_SECONDS:
            break
    tally.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return seed + 1, tally


class Worker:
    """A process with one errand at a time."""

    def __init__(self, targets: dict[str, Target], *, limit: float) -> None:
        self.targets, self.limit = targets, limit
        self.errand: tuple[str, range] | None = None
        self.place = CONTEXT.Array("d", 2, lock=False)  # the seed under judgement, and since when
        self.log = tempfile.TemporaryFile()  # what it says, and where it was when it crashed
        self._start()

    def _start(self) -> None:
        self.near, far = CONTEXT.Pipe()
        self.process = CONTEXT.Process(
            target=_serve, args=(far, self.place, self.log, self.targets, self.limit), daemon=True
        )
        self.process.start()
        far.close()

    def send(self, name: str, seeds: range) -> None:
        """Hand it an errand."""
        self.errand = (name, seeds)
        self.place[:] = [seeds.start, time.monotonic()]
        self.near.send(self.errand)

    def take(self) -> tuple[str, list[range], Tally]:
        """What it found, and the seeds that are left; where it crashed, that is a finding, and another takes over.

        What it had judged before it crashed is judged again, for its tally went with it.
        """
        assert self.errand is not None
        name, seeds = self.errand
        self.errand = None
        try:
            following, tally = self.near.recv()
            left = [range(following, seeds.stop)]
        except (EOFError, ConnectionError):
            self.process.join()
            seed = int(self.place[0])
            self.log.seek(0)
            _, fatal, told = self.log.read().decode("utf-8", "replace").rpartition("Fatal Python error")
            lines = [fatal, *(line.strip() for line in told.splitlines() if "File" in line)][:5]
            found = (f"{name}:{seed}", f"the process ended with {self.process.exitcode}: {' '.join(lines)}")
            tally, left = Tally(inputs=1, findings=[found]), [range(seed + 1, seeds.stop), range(seeds.start, seed)]
            self.log.truncate(0)
            self._start()
        return name, [part for part in left if part], tally

    def end_if_hanging(self) -> None:
        """Abort it where an input takes far too long in code that hears of no alarm; it says where it was."""
        if self.errand and time.monotonic() - self.place[1] > self.limit + GRACE_SECONDS and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGABRT)

    def stop(self) -> None:
        """End it."""
        with contextlib.suppress(ConnectionError):
            self.near.send(None)  # closing the pipe says nothing: other workers have its end, too
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(far: Connection, place: Any, log: Any, targets: dict[str, Target], limit: float) -> None:
    """A worker's life: errands until there is none. What libraries say goes into the log."""
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    faulthandler.enable(log)

    def note(seed: int) -> None:
        place[:] = [seed, time.monotonic()]

    with contextlib.suppress(EOFError, ConnectionError):
        while errand := far.recv():
            name, seeds = errand
            found = judge_some(targets[name], seeds, limit=limit, note=note)
            os.lseek(log.fileno(), 0, os.SEEK_SET)
            os.ftruncate(log.fileno(), 0)
            far.send(found)


def run(
    targets: dict[str, Target],
    amounts: dict[str, int],
    *,
    processes: int = 1,
    first: int = 0,
    limit: float = LIMIT_SECONDS,
) -> Iterator[tuple[str, Tally]]:
    """Judge so many inputs of each target; what an errand found comes as it is told.

    Args:
        targets (`dict[str, Target]`): By name.
        amounts (`dict[str, int]`): Inputs of each.
        processes (`int`, defaults to 1): Workers.
        first (`int`, defaults to 0): The first seed of each target.
        limit (`float`): Seconds for one input.
    """
    todo = [(name, range(first, first + amount)) for name, amount in amounts.items() if amount]
    workers = [Worker(targets, limit=limit) for _ in range(processes)]
    try:
        while todo or any(worker.errand for worker in workers):
            for worker in workers:
                if worker.errand is None and todo:
                    worker.send(*todo.pop())
            busy = {worker.near: worker for worker in workers if worker.errand}
            for near in wait(list(busy), timeout=1.0):
                name, left, tally = busy[near].take()  # type: ignore[index]
                todo += [(name, part) for part in left]
                yield name, tally
            for worker in workers:
                worker.end_if_hanging()
    finally:
        for worker in workers:
            worker.stop()


__all__ = ["Tally", "draw_of", "judge_some", "run"]
