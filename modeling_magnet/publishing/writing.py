"""A checkpoint directory appears whole: written aside, moved into place, its config last."""

import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..sources_magnet import ADAPTER_CONFIG, CONFIG, CheckpointError

try:  # not on Windows, where what a killed save left behind stays until it is deleted by hand
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

# Without one of these a directory is not a checkpoint to any loader: they go first and come last.
IDENTITIES = (CONFIG, ADAPTER_CONFIG)
# What a former checkpoint may have had and the new one not: it would be read beside it. Exact names, because whatever
# else lies there is the user's.
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
    """Yield a directory that replaces the target at the end of the block; after an error nothing is left of it.

    Saves to one target may run at once: each is moved into place whole, and the last one stays.

    Args:
        target (`Path`): The checkpoint directory, or a link to it; other files in it are kept.

    Yields:
        `Path`: a directory that does not exist yet, on the target's file system.

    Raises:
        CheckpointError: no permission to write, or no space left; it says whether the target was changed.
    """
    held, changed = ExitStack(), list[Path]()
    try:
        place = target.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as alone:
            _lock_if_possible(alone, place.parent)
            _remove_leftovers(place)
            scratch = _make_scratch(place)
            _lock_if_possible(held, scratch)
            held.callback(shutil.rmtree, scratch, ignore_errors=True)
        finished = scratch / "checkpoint"
        yield finished
        if finished.is_dir():
            with ExitStack() as alone:
                _lock_if_possible(alone, place.parent)
                move_into_place(finished, place, changed)
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        state = (
            "It was changed: its config is gone or its files are not all of one save, so save to it again."
            if changed
            else "Nothing in it was changed."
        )
        existing = next(folder for folder in (target, *target.absolute().parents) if folder.is_dir())
        raise CheckpointError(
            f"{str(target)!r} could not be written ({error}). {state} Check the permissions and the "
            f"{shutil.disk_usage(existing).free / 1e9:.1f} GB that are free there, or name another directory."
        ) from error
    finally:
        held.close()


def move_into_place(finished: Path, target: Path, changed: list[Path]) -> None:
    """Replace a checkpoint directory by a finished one on the same file system, its config last.

    The old config goes first: an interruption leaves the old checkpoint, the new one, or a directory that loaders
    refuse because it has no config, never a mixture.

    Args:
        finished (`Path`): The new one.
        target (`Path`): The one to replace, or none.
        changed (`list[Path]`): Collects what was changed in the target, for whom this fails.

    Raises:
        CheckpointError: a directory in the place of a file, or the other way round; nothing was changed.
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


def stale_files(there: Collection[str], new: Iterator[str] | Collection[str]) -> list[str]:
    """Return the names in `there` that a loader would read beside the `new` files of a checkpoint."""
    added = set(new)
    replaces_tokenizer = bool(added & _TOKENIZER_FILES) or not set(IDENTITIES).isdisjoint(there)
    return sorted(
        name
        for name in set(there) - added
        if _REPLACED.fullmatch(name) or (replaces_tokenizer and name in _TOKENIZER_FILES)
    )


def _check_free(target: Path, name: Path) -> None:
    """Refuse what a move would only find out after the old config is gone."""
    blocking = [target / name] if (target / name).is_dir() else []
    blocking += [target / part for part in name.parents if (target / part).exists() and not (target / part).is_dir()]
    if blocking:
        raise CheckpointError(
            f"{str(blocking[0])!r} is in the way of a checkpoint's {str(name)!r}. Nothing was changed. Move it away, "
            "or name another directory."
        )


def _make_scratch(place: Path) -> Path:
    """Make a directory from which files can be moved into the target: beside it, or in it if it is a mount."""
    with suppress(PermissionError):  # where nothing may be made beside the target
        scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}-saving-", dir=place.parent))
        if not place.is_dir():
            return scratch
        try:
            os.rename(scratch / "absent", place / scratch.name)  # changes nothing: the mounts are compared first
        except OSError as error:
            if error.errno != errno.EXDEV:
                return scratch
        scratch.rmdir()
    return Path(tempfile.mkdtemp(prefix=".saving-", dir=place))


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
    """Lock a directory until `held` is closed. Where a file system locks none, saves must not run at once."""
    with suppress(OSError):
        held.enter_context(_lock(folder))


def _remove_leftovers(place: Path) -> None:
    """Delete what a killed save to the same target left; a save that runs holds its lock."""
    if fcntl is None:
        return
    beside = place.parent.glob(f".{glob.escape(place.name)}-saving-*")
    for folder in [*beside, *place.glob(".saving-*")]:
        with suppress(OSError), _lock(folder, wait=False):
            shutil.rmtree(folder, ignore_errors=True)
