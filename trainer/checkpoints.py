"""Which checkpoint of an interrupted run can be trusted."""

import json
import re
from pathlib import Path

_STATE_FILE = "trainer_state.json"  # the last file of a checkpoint that is written


def last_complete_checkpoint(output_dir: str | Path, *, num_processes: int = 1) -> Path | None:
    """Find the newest checkpoint that was written to its end.

    A process that is killed while it saves leaves a folder with the highest number and half of its files.

    Args:
        output_dir (`str` or `Path`): Folder of the run.
        num_processes (`int`): Processes of the run; each one's random state has to be there.

    Returns:
        `Path`, or `None` if there is no complete checkpoint.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if _is_complete(folder, num_processes=num_processes):
            return folder
    return None


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
    (Path(checkpoint) / _STATE_FILE).unlink(missing_ok=True)


def _is_complete(folder: Path, *, num_processes: int) -> bool:
    """Whether the state file can be read and no process's random state is missing."""
    try:
        json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if num_processes == 1:
        return (folder / "rng_state.pth").is_file()
    return all((folder / f"rng_state_{rank}.pth").is_file() for rank in range(num_processes))


__all__ = ["check_processes", "forget_completeness", "last_complete_checkpoint"]
