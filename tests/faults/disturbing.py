"""Disturb a job at random moments until it ends, and compare its results with those of an undisturbed run."""

import ctypes
import faulthandler
import mmap
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

LIMIT_SECONDS = 30
MOST_DISTURBED = 2
TRIES = 6
DISK_BYTES = 96 * 2**20
TEN_YEARS = 10 * 365 * 24 * 3600


class NotPossibleError(Exception):
    """Signal that this machine does not support a fault."""


class Job(NamedTuple):
    """Describe a long job as a command that is repeated until it ends."""

    prepare: Callable[[Path], None]  # writes its inputs to a folder, once
    run: Callable[[Path, Path], None]  # runs from the inputs in a folder; starts, or resumes from what it finds there
    made: Callable[[Path], dict[str, bytes]]  # returns its results by name, without what depends on the attempt


class Whole(NamedTuple):
    """Hold an undisturbed job: its inputs, results and duration."""

    job: Job
    inputs: Path
    made: dict[str, bytes]
    seconds: float


# ---- Faults ----


@contextmanager
def plain_folder(folder: Path) -> Iterator[None]:
    """Create the folder of a job."""
    folder.mkdir(parents=True)
    yield


def nothing(*_: Any) -> None:
    """Do nothing."""


def kill(pid: int, folder: Path, moments: random.Random) -> None:
    """Kill the job."""
    os.kill(pid, signal.SIGKILL)


class Fault(NamedTuple):
    """Describe a disturbance; by default the job is killed."""

    strike: Callable[[int, Path, random.Random], None] = kill  # at a random moment
    # An error that ends the job has to contain one of these texts.
    told: tuple[str, ...] = ()
    place: Callable[[Path], Any] = plain_folder
    inside: Callable[[Path], None] = nothing  # in the job's process, before it starts
    heal: Callable[[Path, random.Random], None] = nothing  # before the job is started again
    # A thread without memory for its start leaves `Thread.start` waiting forever, so the job has to be killed.
    may_hang: bool = False


def take_memory(pid: int, folder: Path, moments: random.Random) -> None:
    """Limit the address space to the current size or a little more."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + moments.choice([0, 0, 2**18, 2**20, 2**22])
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def limit_files(pid: int, folder: Path, moments: random.Random) -> None:
    """Limit the size of files, at a moment when some are larger and some smaller."""
    limit = moments.randint(0, moments.choice([0, 3_000, 30_000]))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def fail_on_large_files(folder: Path) -> None:
    """Convert the signal for too large files to a write error, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Put the folder on a small file system in memory."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        raise NotPossibleError("no file system may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(pid: int, folder: Path, moments: random.Random) -> None:
    """Fill the disk up to some kilobytes."""
    left = moments.choice([0, moments.randint(0, 4_000), moments.randint(0, 60_000)])
    with open(folder / ".filler", "wb") as file:
        while (free := shutil.disk_usage(folder).free) > left:
            with suppress(OSError):  # the job writes at the same time
                os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + free - left)


def allow(folder: Path, *, files: int, folders: int) -> None:
    """Set the permissions of everything in a folder; entries that disappear are skipped."""
    for place, _, names in os.walk(folder):
        for path, mode in [(place, folders), *((os.path.join(place, name), files) for name in names)]:
            with suppress(FileNotFoundError):
                os.chmod(path, mode)


def obey_permissions(folder: Path) -> None:
    """Enforce permissions for this process even if it is root, by dropping CAP_DAC_OVERRIDE."""
    if os.getuid():
        return
    libc: Any = ctypes.CDLL(None, use_errno=True)
    header, sets = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)  # version 3, this process
    if not libc.capget(header, sets):
        words = struct.unpack("6I", sets.raw)  # effective, permitted, inheritable; then their upper halves
        if not libc.capset(header, struct.pack("6I", *(word & ~0b10 for word in words[:3]), *words[3:])):
            return
    raise OSError(ctypes.get_errno(), "capget or capset")


def follow_clock(folder: Path) -> None:
    """Shift the time of day by the content of a file beside the folder."""
    clock = folder.with_name("clock")
    if not clock.exists():
        clock.write_bytes(bytes(8))
    with open(clock, "r+b") as file:
        shared = mmap.mmap(file.fileno(), 8)
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + struct.unpack("q", shared)[0]
    time.time_ns = lambda: real_ns() + struct.unpack("q", shared)[0] * 10**9


def jump(pid: int, folder: Path, moments: random.Random) -> None:
    """Move the clock by up to ten years, and usually kill the job afterwards."""
    with suppress(FileNotFoundError), open(folder.with_name("clock"), "r+b") as file:
        file.write(struct.pack("q", moments.randint(-TEN_YEARS, TEN_YEARS)))
    if moments.random() < 0.7:
        os.kill(pid, signal.SIGKILL)


def redate(folder: Path, moments: random.Random) -> None:
    """Set random modification times on all files."""
    for path in sorted(folder.rglob("*")):
        then = 1_700_000_000 + moments.randint(-TEN_YEARS, TEN_YEARS)
        os.utime(path, (then, then), follow_symlinks=False)


NO_MEMORY = ("SystemError", "MemoryError", "memory", "alloc", "failed to map", "new thread", "Resource temporarily")
FAULTS = {
    "SIGKILL": Fault(),
    "SIGTERM": Fault(lambda pid, folder, moments: os.kill(pid, signal.SIGTERM)),
    "no memory": Fault(take_memory, told=NO_MEMORY, may_hang=True),
    "no room for a file": Fault(limit_files, told=("File too large",), inside=fail_on_large_files),
    "full disk": Fault(
        fill_disk,
        told=("No space left", "Not enough disk space"),
        place=small_disk,
        heal=lambda folder, moments: (folder / ".filler").unlink(missing_ok=True),
    ),
    "read-only folder": Fault(
        lambda pid, folder, moments: allow(folder, files=0o444, folders=0o555),
        told=("Permission denied",),
        inside=obey_permissions,
        heal=lambda folder, moments: allow(folder, files=0o644, folders=0o755),
    ),
    "clock jump": Fault(jump, inside=follow_clock, heal=redate),
}


# ---- Attempts ----


def leave_alone(job: Job, base: Path) -> Whole:
    """Prepare a job's inputs and run it undisturbed."""
    inputs, folder = base / "inputs", base / "whole" / "job"
    inputs.mkdir(parents=True)
    job.prepare(inputs)
    folder.mkdir(parents=True)
    exit_code, seconds, error = attempt(job, Fault(), inputs, folder, meanwhile=lambda process: None)
    assert exit_code == 0, f"the job failed when it was left alone: {error}"
    return Whole(job, inputs, job.made(folder), seconds)


def disturb(whole: Whole, fault: Fault, *, seed: int, base: Path) -> tuple[list[str], list[str]]:
    """Disturb a job until it ends; if a run ends before its fault, repeat it with an earlier fault.

    Args:
        whole (`Whole`): The same job, left alone.
        fault (`Fault`): What happens.
        seed (`int`): Of the moments.
        base (`Path`): An empty folder.

    Returns:
        `tuple[list[str], list[str]]`: names of what differs from the run that was left alone, and the errors told by
        attempts that ended by themselves.

    Raises:
        NotPossibleError: If the fault cannot be made here.
        AssertionError: If the job hangs, fails once it is left alone, or never meets the fault.
    """
    moments = random.Random(seed)
    for number in range(TRIES):
        folder = base / str(number) / "job"
        with fault.place(folder):
            errors = _run_until_done(whole, fault, folder, moments, within=0.7 * whole.seconds / 2**number)
            if errors:
                made = whole.job.made(folder)
                names = sorted(made.keys() | whole.made.keys())
                return [name for name in names if made.get(name) != whole.made.get(name)], list(filter(None, errors))
    raise AssertionError(f"the job ended {TRIES} times before it could be disturbed")


def _run_until_done(whole: Whole, fault: Fault, folder: Path, moments: random.Random, *, within: float) -> list[str]:
    """Disturb attempts until one succeeds, the last one undisturbed, and return the errors of the others."""
    errors: list[str] = []
    for number in range(MOST_DISTURBED + 3):
        alone = len(errors) >= MOST_DISTURBED or number == MOST_DISTURBED + 2

        def strike(process: Any, alone: bool = alone) -> None:
            if not alone:
                process.join(timeout=moments.uniform(0, within))
                if process.is_alive():
                    fault.strike(process.pid, folder, moments)

        exit_code, _, error = attempt(whole.job, fault, whole.inputs, folder, meanwhile=strike)
        fault.heal(folder, moments)
        if exit_code == 0:
            break
        assert not alone, f"the job failed when it was left alone after the fault: {error}"
        errors.append(error if exit_code > 0 else "")
    return errors


def attempt(
    job: Job, fault: Fault, inputs: Path, folder: Path, *, meanwhile: Callable[[Any], None]
) -> tuple[int, float, str]:
    """Run a job in a subprocess, call a function meanwhile, and wait for its end.

    Returns:
        Its exit code, the seconds from the beginning of its work, and the error that it told.
    """
    started, terminal = folder.with_name("started"), folder.with_name("terminal")
    started.unlink(missing_ok=True)
    terminal.unlink(missing_ok=True)
    os.mkfifo(terminal)  # a file would be truncated by the faults themselves
    context: Any = multiprocessing.get_context("forkserver")
    process = context.Process(target=_work, args=(job.run, fault.inside, inputs, folder))
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
    in_start = re.search(r'threading\.py", line \d+ in start$', text, flags=re.MULTILINE)
    assert not hung or (fault.may_hang and in_start), f"the job hung; it wrote:\n{text[-5000:]}"
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return process.exitcode, seconds, "\n".join(errors or lines[-1:])


def _work(run: Callable[..., None], inside: Callable[..., None], inputs: Path, folder: Path) -> None:
    stream = os.open(folder.with_name("terminal"), os.O_WRONLY)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    faulthandler.enable(2)
    faulthandler.dump_traceback_later(0.9 * LIMIT_SECONDS, file=2)  # where it hangs
    inside(folder)
    folder.with_name("started").touch()
    run(inputs, folder)


def _read_all(stream: int) -> str:
    with open(stream, "rb") as file:
        return file.read().decode(errors="replace")
