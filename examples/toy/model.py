"""Open the model of `app.py` and `fill.py`: a named checkpoint, or the quickstart's, which is trained if missing."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.command_line import choose_device
from examples.models import open_magnet
from modeling_magnet import AutoMagnetForCausalLM

if TYPE_CHECKING:
    from examples.toy.training import Budget

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "outputs" / "quickstart"
# Saved last, so that it exists only if the rest of the checkpoint does.
CONFIG = "config.json"


def open_model(
    named: str | None,
    *,
    gguf_file: str | None = None,
    default_folder: Path = DEFAULT_FOLDER,
    budget: Budget | None = None,
    device: str | None = None,
) -> Any:
    """Open a named checkpoint, or the quickstart's model, in evaluation mode and with its tokenizer."""
    device = choose_device(device)
    source = str(named) if named else str(quickstart_model(default_folder, budget=budget))
    try:
        model = open_magnet(source, device=device, gguf_file=gguf_file)
    except OSError as error:
        raise ValueError(
            f"`--model` is {source!r}, which cannot be opened ({error}). Pass a directory with a checkpoint, or an id "
            "of the Hub."
        ) from error
    _ = model.tokenizer  # raises now if there is no mask token, not at the first request
    return model


def quickstart_model(folder: Path, *, budget: Budget | None = None, seed: int = 0) -> Path:
    """Return the quickstart's checkpoint, and train it if it is missing.

    Train in a temporary folder, then save with the config last. A killed build is therefore never taken for a model,
    and two simultaneous builds do not disturb each other.
    """
    checkpoint = folder / "magnet"
    if (checkpoint / CONFIG).is_file():
        return checkpoint
    # Imported here, because a start that trains nothing need not wait for it.
    from examples.toy.training import Budget, train_magnet

    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    print(f"There is no model in {checkpoint} yet. It is built once, in a few minutes on two CPU cores.")
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as scratch:
        built = train_magnet(Path(scratch), budget=budget or Budget(), seed=seed)
        AutoMagnetForCausalLM.from_pretrained(built).save_pretrained(checkpoint)
    print(f"The model is ready in {checkpoint} ({time.monotonic() - started:.0f} s).", flush=True)
    return checkpoint


def describe_model(model: Any, *, named: str | None) -> str:
    """Describe in a line which model answers."""
    size = sum(parameter.numel() for parameter in model.parameters())
    millions = f"{size / 1e6:.1f} million parameters" if size < 1e9 else f"{size / 1e9:.1f} billion parameters"
    name = Path(named).resolve().name if named and Path(named).is_dir() else named
    return f"{name or 'the model of the quickstart'}, {millions}"
