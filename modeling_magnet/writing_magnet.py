"""A checkpoint directory appears whole: written aside, moved into place, its config last."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .sources_magnet import ADAPTER_CONFIG, CONFIG, CheckpointError

try:  # not on Windows, where what a killed save left behind stays until it is deleted by hand
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

# Without one of these a directory is no checkpoint to any loader: they go first and come last.
IDENTITIES = (CONFIG, ADAPTER_CONFIG)
# What a former checkpoint may have had and the new one not: it would be read beside it.
REPLACED = (
    *IDENTITIES,
    "model*.safetensors",
    "model*.safetensors.index.json",
    "adapter_model*",
    "magnet_adapter.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A directory to write to, which becomes the target at the end of the block; after an error nothing is left of it.

    Args:
        target (`Path`): The checkpoint directory; what else lies in it stays.

    Yields:
        `Path`: a directory that does not exist yet, on the target's file system.

    Raises:
        CheckpointError: no permission to write, or no room.
    """
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-saving-", dir=target.parent))
        with (scratch / "lock").open("w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finished = scratch / "checkpoint"
            yield finished
            if finished.is_dir():
                move_into_place(finished, target)
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{str(target)!r} could not be written ({error}). Nothing in it was changed unless its config is gone. "
            f"Check the permissions and the {shutil.disk_usage(_existing(target)).free / 1e9:.1f} GB that are free "
            "there, or name another directory."
        ) from error
    finally:
        if scratch is not None:
            _remove(scratch)


def move_into_place(finished: Path, target: Path) -> None:
    """Replace a checkpoint directory by a finished one beside it, its config last.

    The old config goes first: an interruption leaves the old checkpoint, the new one, or a directory that loaders
    refuse because it has no config, never a mixture.
    """
    if not target.exists():
        finished.rename(target)
        return
    new = sorted(file.relative_to(finished) for file in finished.rglob("*") if file.is_file())
    for identity in IDENTITIES:
        (target / identity).unlink(missing_ok=True)
    for pattern in REPLACED:
        for file in target.glob(pattern):
            if file.relative_to(target) not in new:
                file.unlink()
    for name in sorted(new, key=lambda name: str(name) in IDENTITIES):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(finished / name, target / name)


def _existing(path: Path) -> Path:
    """The nearest directory above that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _remove_leftovers(target: Path) -> None:
    """Delete what a killed save to the same target left beside it; a save that runs holds its lock."""
    if fcntl is None:
        return
    for folder in target.parent.glob(f".{target.name}-saving-*"):
        with suppress(OSError):
            folder.rmdir()  # killed before it had a lock
        with suppress(OSError), (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)


def _remove(scratch: Path) -> None:
    """The lock goes last, so that who is killed here leaves what the next save removes."""
    shutil.rmtree(scratch / "checkpoint", ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)


__all__ = ["REPLACED", "move_into_place", "written_aside"]
