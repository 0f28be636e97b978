"""What becomes of one hostile input: a right result, a clear error, or a finding.

A clear error is a `ValueError`, or an `OSError` about a file, that this library raises in so many words: whatever
comes out of a package below it, or out of an operator, was meant for somebody else.
"""

import atexit
import functools
import linecache
import logging
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging as transformers_logging

REPOSITORY = Path(__file__).resolve().parents[2]
OWN = tuple(str(REPOSITORY / folder) + os.sep for folder in ("modeling_magnet", "trainer", "examples"))
LIMIT_SECONDS = 10.0
# Above what the process has when an input begins: address space, and memory that is really used.
LIMIT_SPACE, LIMIT_MEMORY = 4 << 30, 512 << 20

RIGHT, REFUSED, FINDING = "right", "refused", "finding"
_PAGE = resource.getpagesize()


class Broken(Exception):
    """A result that is not right, or an error that does not say enough."""


class Hung(BaseException):
    """Time is up; no `except Exception` in the library may hold it."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that takes hostile inputs.

    Args:
        name (`str`): By which an input is named, as `name:seed`.
        run (`Callable`): Draws an input from a `random.Random`, may write into a folder of its own, calls the library
            and checks what comes of it.
        weight (`float`): Its share of a nightly run's inputs.
        seeds (`int`): How many it gets in CI.
        allowed (`tuple[str, ...]`): Files of packages whose own `ValueError` will do, because it names the argument.
    """

    name: str
    run: Callable[[random.Random, Path], Any]
    weight: float = 1.0
    seeds: int = 50
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What became of an input."""

    outcome: str
    seconds: float
    told: str = ""  # of a finding, how to see it


@contextmanager
def silent_logs() -> Iterator[None]:
    """A block in which no library warns of what it is given."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def no_bars() -> Iterator[None]:
    """A block in which no library draws a bar of progress, which a thousand inputs would each begin."""
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
        datasets.enable_progress_bars()


def check(is_right: Any, told: str) -> None:
    """Refuse a result that is not right."""
    if not is_right:
        raise Broken(told)


@contextmanager
def naming(*names: str) -> Iterator[None]:
    """A block whose errors have to name what was given: a file, a column, an argument."""
    try:
        yield
    except ValueError as error:
        missing = [name for name in names if name not in str(error)]
        if missing:
            raise Broken(f"the message does not name {missing}: {error}") from error
        raise


@contextmanager
def refused(told: str) -> Iterator[None]:
    """A block that has to end in a clear error, which is passed on."""
    yield
    raise Broken(f"this should have been refused: {told}")


def is_clear(error: BaseException, *, allowed: tuple[str, ...] = ()) -> bool:
    """Whether an error was raised on purpose, by this library or by a file that may speak for it."""
    if not isinstance(error, (ValueError, OSError)) or len(str(error)) < 15:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    last = frames[-1]
    if last.filename.startswith(OWN):
        return linecache.getline(last.filename, last.lineno or 0).lstrip().startswith("raise ")
    return any(part in last.filename for part in allowed)


def judge(target: Target, draw: random.Random, *, seconds: float = LIMIT_SECONDS) -> Verdict:
    """Give a target one input.

    Args:
        target (`Target`): The target.
        draw (`random.Random`): What the input is drawn from.
        seconds (`float`): After so many it hangs.
    """
    before, began = _resident(), time.perf_counter()
    outcome, told = RIGHT, ""
    try:
        with _folder() as folder, warnings.catch_warnings(), _limits(seconds):
            warnings.simplefilter("ignore")
            target.run(draw, folder)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        outcome = REFUSED
        if not is_clear(error, allowed=target.allowed):
            outcome, told = FINDING, _where(error)
    growth = max(_resident() - before, 0)
    if outcome != FINDING and growth > LIMIT_MEMORY:
        outcome, told = FINDING, f"it left {growth >> 20} MiB more in memory than there were"
    return Verdict(outcome, time.perf_counter() - began, told)


@contextmanager
def _folder() -> Iterator[Path]:
    """An empty folder; making one for each input would take longer than most inputs do."""
    folder = _folder_of(os.getpid())
    try:
        yield folder
    finally:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


@functools.cache
def _folder_of(process: int) -> Path:
    """Removed when that process ends."""
    made = tempfile.TemporaryDirectory(prefix="magnet-fuzz-")
    atexit.register(made.cleanup)
    return Path(made.name)


@contextmanager
def _limits(seconds: float) -> Iterator[None]:
    """Bounded time, for Python code at least, and bounded address space."""

    def stop(*_: Any) -> None:
        raise Hung(f"no end after {seconds:g} seconds")

    handler = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_space() + LIMIT_SPACE, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _statm() -> list[int]:
    with open("/proc/self/statm", "rb") as file:
        return [int(number) * _PAGE for number in file.read().split()[:2]]


def _space() -> int:
    return _statm()[0]


def _resident() -> int:
    return _statm()[1]


def _where(error: BaseException) -> str:
    """Type, message and the last places in this repository."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(str(REPOSITORY))][-3:]
    last = frames[-1:] if frames and frames[-1] not in own else []
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in [*own, *last])
    return f"{type(error).__name__}: {str(error)[:300]} [{places}]"


__all__ = [
    "FINDING",
    "REFUSED",
    "RIGHT",
    "Broken",
    "Hung",
    "Target",
    "Verdict",
    "check",
    "is_clear",
    "judge",
    "naming",
    "refused",
]
