"""Write a checkpoint directory atomically: to a temporary directory first, which is moved with its config last."""

import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..sources_magnet import ADAPTER_CONFIG, CONFIG, CheckpointError

try:  # not available on Windows, where the temporary directory of a killed save has to be deleted by hand
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

# No loader opens a directory without one of these, so they are deleted first and written last.
IDENTITIES = (CONFIG, ADAPTER_CONFIG)
# Files of an old checkpoint that a loader would mix with the new one. Exact names: other files belong to the user.
_REPLACED = re.compile(
    r"(adapter_)?config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|adapter_model\.(safetensors|bin)|magnet_adapter\.json|modules\.json|sentence_bert_config\.json"
    r"|config_sentence_transformers\.json"
)
_TOKENIZER_FILES = frozenset(
    {
        *("added_tokens.json", "chat_template.jinja", "merges.txt", "special_tokens_map.json"),
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"),
    }
)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a directory that replaces the target at the end of the block, and is deleted after an error.

    Concurrent saves to one target are safe: each is moved as a whole, and the last one remains.

    Args:
        target (`Path`): The checkpoint directory, or a link to it; other files in it are kept.

    Yields:
        `Path`: a directory on the target's file system, which the block has to create.

    Raises:
        CheckpointError: If the target cannot be written; the message says whether it was changed.
    """
    held, changed = ExitStack(), list[Path]()
    try:
        directory = target.resolve()
        directory.parent.mkdir(parents=True, exist_ok=True)
        # The lock on the parent excludes other saves only while directories appear and move; the lock on the scratch
        # directory tells them that this save is still running.
        with ExitStack() as exclusive:
            _lock_if_possible(exclusive, directory.parent)
            _remove_leftovers(directory)
            scratch = _make_scratch(directory)
            _lock_if_possible(held, scratch)
            held.callback(shutil.rmtree, scratch, ignore_errors=True)
        finished = scratch / "checkpoint"
        yield finished
        if finished.is_dir():
            with ExitStack() as exclusive:
                _lock_if_possible(exclusive, directory.parent)
                move_into_place(finished, directory, changed)
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        state = "It is incomplete now: save to it again." if changed else "It was not changed."
        existing = next(folder for folder in (target, *target.absolute().parents) if folder.is_dir())
        raise CheckpointError(
            f"{str(target)!r} could not be written ({error}). {state} Check the permissions and the free space, "
            f"{shutil.disk_usage(existing).free / 1e9:.1f} GB, or choose another directory."
        ) from error
    finally:
        held.close()


def move_into_place(finished: Path, target: Path, changed: list[Path]) -> None:
    """Replace a checkpoint directory by a finished one on the same file system.

    The old config is deleted first and the new one is moved last. An interruption leaves the old checkpoint, the new
    one, or a directory without a config, which loaders refuse; never a mixture. `changed` receives the files changed
    in the target, for the message of a failure.

    Raises:
        CheckpointError: If a directory has the name of a file, or a file that of a directory; nothing was changed.
    """
    if not target.exists():
        finished.rename(target)
        return
    new = sorted(file.relative_to(finished) for file in finished.rglob("*") if file.is_file())
    for name in new:
        _check_free(target, name)
    stale = stale_files([file.name for file in target.iterdir() if file.is_file()], map(str, new))
    identities = [name for name in IDENTITIES if (target / name).is_symlink() or (target / name).is_file()]
    for old in dict.fromkeys([*identities, *stale]):
        (target / old).unlink()
        changed.append(target / old)
    for name in sorted(new, key=lambda name: str(name) in IDENTITIES):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(finished / name, target / name)
        changed.append(target / name)


def stale_files(present: Collection[str], new: Iterable[str]) -> list[str]:
    """Return the `present` files that a loader would mix with the `new` files of a checkpoint."""
    added = set(new)
    replaces_tokenizer = bool(added & _TOKENIZER_FILES) or not set(IDENTITIES).isdisjoint(present)
    tokenizer_files = _TOKENIZER_FILES if replaces_tokenizer else frozenset()
    return sorted(name for name in set(present) - added if _REPLACED.fullmatch(name) or name in tokenizer_files)


def _check_free(target: Path, name: Path) -> None:
    """Raise an error if a file cannot be moved into the target, before the old config is deleted."""
    blocking = [target / name] if (target / name).is_dir() else []
    blocking += [target / part for part in name.parents if (target / part).exists() and not (target / part).is_dir()]
    if blocking:
        raise CheckpointError(
            f"{str(blocking[0])!r} blocks the file {str(name)!r} of the checkpoint. Nothing was changed. Move it, or "
            "choose another directory."
        )


def _make_scratch(directory: Path) -> Path:
    """Create a directory on the target's file system: beside the target, or in it if it is a mount point."""
    with suppress(PermissionError):  # the parent may be read-only
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-saving-", dir=directory.parent))
        if not directory.is_dir():
            return scratch
        try:
            os.rename(scratch / "absent", directory / scratch.name)  # always fails, with EXDEV across file systems
        except OSError as error:
            if error.errno != errno.EXDEV:
                return scratch
        scratch.rmdir()
    return Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))


@contextmanager
def _lock(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a directory; the OS releases it even if the process is killed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _lock_if_possible(held: ExitStack, folder: Path) -> None:
    """Lock a directory until `held` is closed. If the file system has no locks, concurrent saves are not safe."""
    with suppress(OSError):
        held.enter_context(_lock(folder))


def _remove_leftovers(directory: Path) -> None:
    """Delete the temporary directories of killed saves to this target; those of running saves are locked."""
    if fcntl is None:
        return
    beside = directory.parent.glob(f".{glob.escape(directory.name)}-saving-*")
    for folder in [*beside, *directory.glob(".saving-*")]:
        with suppress(OSError), _lock(folder, wait=False):
            shutil.rmtree(folder, ignore_errors=True)
