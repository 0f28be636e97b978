"""Find, check and remove the checkpoints of a run."""

import re
import shutil
from pathlib import Path

from accelerate import PartialState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from .files import parse_json

logger = logging.get_logger(__name__)


def last_complete_checkpoint(output_dir: str | Path, *, num_processes: int = 1) -> Path | None:
    """Find the newest complete checkpoint, and warn about each one that is skipped.

    A process killed during a save leaves an incomplete folder. A complete checkpoint has the random state of each of
    `num_processes` processes.
    """
    for _, folder in sorted(_checkpoints(output_dir).items(), reverse=True):
        reason = _incompleteness(folder, num_processes=num_processes)
        if reason is None:
            return folder
        logger.warning(f"Skipping {folder}: {reason}.")
    return None


def checkpoint_to_resume(choice: str | bool | None, *, output_dir: str | Path) -> str | None:
    """Resolve and check `resume_from_checkpoint`; every process must call this.

    Args:
        choice (`str` or `bool`, *optional*): A folder, or `True` for the newest complete checkpoint.
        output_dir (`str` or `Path`): Folder of the run.

    Raises:
        ValueError: If there is no such checkpoint, or another number of processes wrote it.
    """
    if not choice:
        return None
    state = PartialState()
    if choice is True:
        last = last_complete_checkpoint(output_dir, num_processes=state.num_processes)
        if last is None:
            raise ValueError(
                f"{output_dir} has no complete checkpoint of {state.num_processes} process(es) to resume from. "
                "Pass the path of a checkpoint, or clear the folder and omit `resume_from_checkpoint` to start anew."
            )
        choice = str(last)
    elif not Path(choice).is_dir():
        raise ValueError(f"`resume_from_checkpoint` is {choice!r}, which is not a folder. Pass a checkpoint.")
    written_by = len(list(Path(choice).glob("rng_state_*.pth"))) or 1
    if written_by != state.num_processes:
        raise ValueError(
            f"{choice} was written by {written_by} processes, but this run has {state.num_processes}, whose steps see "
            f"other rows and negatives. Start {written_by} processes, or a new run from the checkpoint's weights."
        )
    return choice


def remove_old_checkpoints(
    output_dir: str | Path, *, step: int, limit: int | None, best: str | Path | None = None
) -> None:
    """Delete the oldest checkpoints until `limit` are left, but never those of `step` and `best`.

    Age is measured in steps, since clocks may be wrong. Checkpoints beyond the current step are left over from before
    the run was resumed; they are deleted first. A limit of `None` or below 1 keeps all.
    """
    if limit is None or limit <= 0:
        return
    oldest = sorted(_checkpoints(output_dir).items(), key=lambda item: (item[0] <= step, item[0]))
    kept = {step, *(number for number, folder in oldest if best is not None and folder.name == Path(best).name)}
    excess = len(oldest) - max(limit, len(kept))
    removable = [folder for number, folder in oldest if number not in kept]
    for folder in removable[: max(0, excess)]:
        shutil.rmtree(folder, ignore_errors=True)


def remove_checkpoints(output_dir: str | Path) -> None:
    """Delete all checkpoints of a run."""
    for folder in _checkpoints(output_dir).values():
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """Map the step of each checkpoint to its folder."""
    folders = Path(output_dir).glob("checkpoint-*")
    return {int(match[1]): path for path in folders if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))}


def _incompleteness(folder: Path, *, num_processes: int) -> str | None:
    """Describe what a checkpoint lacks; return `None` if it is complete."""
    try:  # the last file that transformers writes
        parse_json((folder / TRAINER_STATE_NAME).read_bytes())
    except (OSError, ValueError):
        return f"it is incomplete, {TRAINER_STATE_NAME} cannot be read"
    names = ["rng_state.pth"] if num_processes == 1 else [f"rng_state_{rank}.pth" for rank in range(num_processes)]
    missing = [name for name in names if not (folder / name).is_file()]
    return f"it has no {missing[0]}" if missing else None
