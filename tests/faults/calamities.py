"""What befalls a job: it is killed, memory or disk run out, its folder is closed to it, its clock jumps."""

import ctypes
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CLOCK_SOURCE = Path(__file__).with_name("clock.c")
DISK_BYTES = 96 * 2**20
TEN_YEARS = 10 * 365 * 24 * 3600


class NotPossibleError(Exception):
    """This machine does not let a fault be made; the reason."""


class Fault:
    """A signal, and what the other faults change of it.

    Args:
        name (`str`): Of the table.
        number (`signal.Signals`): What is sent.
    """

    # One of these must be told by a job that ends by itself; a signal ends it without a word.
    told: tuple[str, ...] = ()
    # Whether it may hang, so that somebody has to kill it.
    may_hang = False
    # How the job's process is started: forked from one that has imported everything, or anew.
    start_method = "forkserver"

    def __init__(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        self.name, self.number = name, number

    @contextmanager
    def place(self, folder: Path) -> Iterator[None]:
        """What a job's folder stands on.

        Raises:
            NotPossibleError: where the fault cannot be made here.
        """
        folder.mkdir(parents=True)
        yield

    def inside(self) -> None:
        """In the job's process, before it begins."""

    def strike(self, pid: int, folder: Path, moments: random.Random) -> None:
        """At a random moment."""
        os.kill(pid, self.number)

    def heal(self, folder: Path) -> None:
        """Before the job is started again."""


class NoMemory(Fault):
    """The process gets no more address space than it has, or a little more.

    In Python a thread that finds no memory when it begins leaves `Thread.start` waiting for ever, which several
    libraries below this one call.
    """

    may_hang = True
    told = (
        "SystemError",
        "MemoryError",
        "memory",
        "alloc",
        "failed to map",
        "start new thread",
        "Resource temporarily unavailable",
    )

    def strike(self, pid: int, folder: Path, moments: random.Random) -> None:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + moments.choice([0, 0, 2**18, 2**20, 2**22])
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


class NoRoom(Fault):
    """No file may grow beyond so many bytes, at a moment when some are larger and some smaller."""

    told = ("File too large",)

    def inside(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error of writing, then, as on a full disk

    def strike(self, pid: int, folder: Path, moments: random.Random) -> None:
        limit = moments.randint(0, moments.choice([0, 3_000, 30_000]))
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


class FullDisk(Fault):
    """A file system in memory that another file fills but for some kilobytes."""

    told = ("No space left", "Not enough disk space")

    @contextmanager
    def place(self, folder: Path) -> Iterator[None]:
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            raise NotPossibleError("no file system may be mounted here")
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

    def strike(self, pid: int, folder: Path, moments: random.Random) -> None:
        left = moments.choice([0, moments.randint(0, 4_000), moments.randint(0, 60_000)])
        with open(folder / ".filler", "wb") as file:
            while (free := shutil.disk_usage(folder).free) > left:
                with suppress(OSError):  # the job writes meanwhile
                    os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + free - left)

    def heal(self, folder: Path) -> None:
        (folder / ".filler").unlink(missing_ok=True)


class ReadOnly(Fault):
    """Nothing can be made, changed or removed in any folder of the job any more."""

    told = ("Permission denied",)

    def inside(self) -> None:
        if os.getuid() == 0:
            _obey_permissions()

    def strike(self, pid: int, folder: Path, moments: random.Random) -> None:
        _allow(folder, files=0o444, folders=0o555)

    def heal(self, folder: Path) -> None:
        _allow(folder, files=0o644, folders=0o755)


class ClockJump(Fault):
    """The time of day jumps by up to ten years, to and fro, and the process is killed; its files get any times."""

    start_method = "spawn"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._moments = random.Random(0)

    @contextmanager
    def place(self, folder: Path) -> Iterator[None]:
        folder.mkdir(parents=True)
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise NotPossibleError("no C compiler is here to make a clock that jumps")
        library, self._offset = folder.with_name("clock.so"), folder.with_name("clock.offset")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, CLOCK_SOURCE, "-ldl"], check=True)
        self._set_clock(0)
        changed = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self._offset)}
        before = {name: os.environ.get(name) for name in changed}
        os.environ |= changed
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)

    def strike(self, pid: int, folder: Path, moments: random.Random) -> None:
        self._set_clock(moments.randint(-TEN_YEARS, TEN_YEARS))
        if moments.random() < 0.7:
            os.kill(pid, signal.SIGKILL)

    def heal(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            then = 1_700_000_000 + self._moments.randint(-TEN_YEARS, TEN_YEARS)
            os.utime(path, (then, then), follow_symlinks=False)

    def _set_clock(self, seconds: int) -> None:
        with open(self._offset, "r+b" if self._offset.exists() else "wb") as file:
            file.write(struct.pack("l", seconds))


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("SIGKILL"),
        Fault("SIGTERM", signal.SIGTERM),
        NoMemory("no memory"),
        NoRoom("no room for a file"),
        FullDisk("full disk"),
        ReadOnly("read-only folder"),
        ClockJump("clock jump"),
    )
}


def _allow(folder: Path, *, files: int, folders: int) -> None:
    """Set the permissions of everything in a folder; what disappears meanwhile is passed over."""
    for place, _, names in os.walk(folder):
        for path, mode in [(place, folders), *((os.path.join(place, name), files) for name in names)]:
            try:
                os.chmod(path, mode)
            except FileNotFoundError:
                continue


def _obey_permissions() -> None:
    """Let permissions hold for this process although it is root's: give CAP_DAC_OVERRIDE away."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
    sets = ctypes.create_string_buffer(24)
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    low = list(struct.unpack("6I", sets.raw))
    for place in range(3):  # effective, permitted, inheritable; the capability is the second bit
        low[place] &= ~0b10
    if libc.capset(header, struct.pack("6I", *low)):
        raise OSError(ctypes.get_errno(), "capset")
