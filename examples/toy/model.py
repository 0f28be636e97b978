"""Open the model of `app.py` and `fill.py`: a named checkpoint, or the quickstart's, which is trained if missing."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.command_line import choose_device
from examples.models import open_magnet
from modeling_magnet import AutoMagnetForCausalLM

if TYPE_CHECKING:
    from examples.toy.training import Budget

try:  # not on Windows, where two first starts at a time would each build
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "outputs" / "quickstart"
# A checkpoint has its config last: whoever finds it finds the rest.
CONFIG = "config.json"


def open_model(
    named: str | None,
    *,
    gguf_file: str | None = None,
    default_folder: Path = DEFAULT_FOLDER,
    budget: Budget | None = None,
    device: str | None = None,
) -> Any:
    """Open a checkpoint for all users of the app."""
    device = choose_device(device)
    source = str(named) if named else str(quickstart_model(default_folder, budget=budget))
    try:
        model = open_magnet(source, device=device, gguf_file=gguf_file)
    except OSError as error:
        raise ValueError(
            f"`--model` is {source!r}, which cannot be opened ({error}). Pass a directory with a checkpoint, or an id "
            "of the Hub."
        ) from error
    _ = model.tokenizer  # complains where there is none, now and not before a user
    return model


def quickstart_model(folder: Path, *, budget: Budget | None = None, seed: int = 0) -> Path:
    """Return the quickstart's checkpoint, built once.

    It is trained in a folder of its own and moved into place when it is whole, so that a build that was killed is
    begun anew and never taken for a model.
    """
    checkpoint = folder / "magnet"
    if (checkpoint / CONFIG).is_file():
        return checkpoint
    # Here, since a start that trains nothing need not wait for it.
    from examples.toy.training import Budget, train_magnet

    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        if (checkpoint / CONFIG).is_file():  # another process has built it while this one waited
            return checkpoint
        started = time.monotonic()
        print(f"There is no model in {checkpoint} yet. It is built once, in a few minutes on two CPU cores.")
        scratch = folder / "building"
        shutil.rmtree(scratch, ignore_errors=True)  # of a build that was killed: the lock says that nobody is at work
        built = train_magnet(scratch, budget=budget or Budget(), seed=seed)
        AutoMagnetForCausalLM.from_pretrained(built).save_pretrained(checkpoint)
        shutil.rmtree(scratch)
        print(f"The model is ready in {checkpoint} ({time.monotonic() - started:.0f} s).", flush=True)
    return checkpoint


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on the folder; the OS releases it even if the process is killed."""
    with open(folder / "building.lock", "ab") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                print(f"Another process is building the model in {folder}; waiting for it.", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def describe_model(model: Any, *, named: str | None) -> str:
    """Return a line that says which model answers."""
    size = sum(parameter.numel() for parameter in model.parameters())
    millions = f"{size / 1e6:.1f} million parameters" if size < 1e9 else f"{size / 1e9:.1f} billion parameters"
    name = os.path.basename(os.path.normpath(named)) if named and os.path.isdir(named) else named
    return f"{name or 'the model of the quickstart'}, {millions}"


__all__ = ["describe_model", "open_model", "quickstart_model"]
