"""What is wrong with files or weights, found before anything is read or written for long."""

from pathlib import Path

import torch
from safetensors import safe_open

from ..sources_magnet import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, CheckpointError, ModelSource, wrap_read_errors

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


def check_weights(source: ModelSource) -> None:
    """Refuse a local directory whose weights are missing, cut short or outside of it. Reads headers only.

    Args:
        source (`ModelSource`): A model or an adapter; nothing is checked for one of the Hub or in a GGUF file.

    Raises:
        CheckpointError: it names the file.
    """
    folder = source.directory
    if folder is None or source.arguments.get("gguf_file"):
        return
    names = {WEIGHTS}
    if source.file(ADAPTER_CONFIG) is not None and source.file(CONFIG) is None:
        names = {ADAPTER_WEIGHTS}
    elif source.file(WEIGHTS) is None and source.file(WEIGHTS_INDEX) is not None:
        with wrap_read_errors(repr(str(folder / WEIGHTS_INDEX))):
            names = set((source.read_json(WEIGHTS_INDEX) or {})["weight_map"].values())
            if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
                raise ValueError("`weight_map` names a file outside of its directory")
    for name in sorted(names):
        # A pickle, which can run any code when it is read, is never read in its place.
        with wrap_read_errors(repr(str(folder / name))), safe_open(folder / name, "pt"):
            pass


def check_not_packed(model: torch.nn.Module) -> None:
    """Refuse weights that bitsandbytes repacked for a CPU: what it gives back of them is not what they were."""
    for name, parameter in model.named_parameters():
        if getattr(getattr(parameter, "quant_state", None), "packing_format_for_cpu", False):
            raise CheckpointError(
                f"{name} was repacked by the 4-bit kernels of bitsandbytes in a forward on this CPU, and would be "
                "saved wrongly. Load the model again and save it before any forward, or quantise it otherwise."
            )
