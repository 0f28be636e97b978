"""Which checkpoints of a run can be trusted: written to their end, still what was written; and which may go."""

import re
import shutil
import zlib
from pathlib import Path

from transformers.utils import logging

from .whole_files import parse_json, write_json

_STATE_FILE = "trainer_state.json"  # the last file of a checkpoint that the parent writes
SEAL_FILE = "checksums.json"  # the last one of ours
_BLOCK = 2**24

logger = logging.get_logger(__name__)


def last_complete_checkpoint(output_dir: str | Path, *, num_processes: int = 1) -> Path | None:
    """Find the newest checkpoint that was written to its end and has not changed since.

    A process that is killed while it saves leaves a folder with the highest number and half of its files; a disk may
    lose what it had. Each one that is passed over is named in a warning, with the reason.

    Args:
        output_dir (`str` or `Path`): Folder of the run.
        num_processes (`int`): Processes of the run; each one's random state has to be there.

    Returns:
        `Path`, or `None` if there is no such checkpoint.
    """
    for _, folder in sorted(_checkpoints(output_dir).items(), reverse=True):
        reason = _why_not(folder, num_processes=num_processes)
        if reason is None:
            return folder
        logger.warning(f"{folder} is passed over: {reason}.")
    return None


def seal_checkpoint(checkpoint: str | Path) -> None:
    """Write down the size and checksum of every file of a checkpoint that has been written.

    The seal is no protection against people, who can write another.

    Args:
        checkpoint (`str` or `Path`): Folder.
    """
    folder = Path(checkpoint)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL_FILE)
    seal = {path.relative_to(folder).as_posix(): [path.stat().st_size, _checksum(path)] for path in files}
    write_json(folder / SEAL_FILE, seal)


def check_checkpoint(checkpoint: str | Path) -> None:
    """Refuse a checkpoint whose files are not those that were written.

    Args:
        checkpoint (`str` or `Path`): Folder; without a seal, of an earlier version or another trainer, it is trusted.

    Raises:
        ValueError: naming the first file that differs.
    """
    reason = _damage(Path(checkpoint))
    if reason is not None:
        raise ValueError(
            f"{checkpoint} cannot be resumed from: {reason}. Resume from an earlier one; "
            "`--resume_from_checkpoint true` finds the newest that is whole."
        )


def check_processes(checkpoint: str | Path, *, num_processes: int) -> None:
    """Refuse a checkpoint of a run with another number of processes, whose steps would not be those of this one.

    Args:
        checkpoint (`str` or `Path`): Folder; each process of its run has left its random state there.
        num_processes (`int`): Processes of this run.

    Raises:
        ValueError: naming both numbers.
    """
    written_by = len(list(Path(checkpoint).glob("rng_state_*.pth"))) or 1
    if written_by != num_processes:
        raise ValueError(
            f"{checkpoint} was written by {written_by} processes, and this run has {num_processes}: a step would see "
            f"other rows and other negatives. Start as many, or start a new run from its weights."
        )


def forget_completeness(checkpoint: str | Path) -> None:
    """Mark a checkpoint that is about to be written again as incomplete; nothing if there is none."""
    for name in (SEAL_FILE, _STATE_FILE):
        (Path(checkpoint) / name).unlink(missing_ok=True)


def remove_old_checkpoints(
    output_dir: str | Path, *, step: int, limit: int | None, best: str | Path | None = None
) -> None:
    """Delete the oldest checkpoints by their steps, not by the times of their files: a clock may have been wrong.

    Those beyond the present step are what a run left that was resumed from an earlier one: they go first.

    Args:
        output_dir (`str` or `Path`): Folder of the run.
        step (`int`): Of the newest checkpoint, which always stays.
        limit (`int`, *optional*): How many may stay; `None` and what is below one mean all.
        best (`str` or `Path`, *optional*): One more that always stays.
    """
    if limit is None or limit <= 0:
        return
    oldest = sorted(_checkpoints(output_dir).items(), key=lambda found: (found[0] <= step, found[0]))
    kept = {step, *(number for number, folder in oldest if best is not None and folder.name == Path(best).name)}
    excess = len(oldest) - max(limit, len(kept))
    for _, folder in [(number, folder) for number, folder in oldest if number not in kept][: max(0, excess)]:
        shutil.rmtree(folder, ignore_errors=True)


def remove_checkpoints(output_dir: str | Path) -> None:
    """Delete all checkpoints of a run whose result was saved.

    Args:
        output_dir (`str` or `Path`): Folder of the run.
    """
    for folder in _checkpoints(output_dir).values():
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """The folders of checkpoints by their steps."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(output_dir).glob("checkpoint-*"))
    return {int(match[1]): path for match, path in found if match}


def _why_not(folder: Path, *, num_processes: int) -> str | None:
    """Why a checkpoint cannot be trusted; `None` where it can."""
    try:
        parse_json((folder / _STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return f"it was not written to its end, {_STATE_FILE} cannot be read"
    names = ["rng_state.pth"] if num_processes == 1 else [f"rng_state_{rank}.pth" for rank in range(num_processes)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        return f"it has no {missing[0]}"
    return _damage(folder)


def _damage(folder: Path) -> str | None:
    """Which file is not what was written; `None` where all are, or nothing is known of them."""
    try:
        seal = parse_json((folder / SEAL_FILE).read_bytes())
        expected = {str(name): (int(size), int(checksum)) for name, (size, checksum) in seal.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return f"{SEAL_FILE} cannot be read"
    for name, (size, checksum) in expected.items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes of {size:,}"
            if _checksum(folder / name) != checksum:
                return f"{name} has other bytes than were written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        except ValueError:  # names that no file can have
            return f"{SEAL_FILE} names {name!r:.60}"
    return None


def _checksum(file: Path) -> int:
    """CRC-32 of a file, at gigabytes a second."""
    checksum = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


__all__ = [
    "SEAL_FILE",
    "check_checkpoint",
    "check_processes",
    "forget_completeness",
    "last_complete_checkpoint",
    "remove_checkpoints",
    "remove_old_checkpoints",
    "seal_checkpoint",
]
