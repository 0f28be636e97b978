"""Check files and weights before a long load or save."""

from pathlib import Path

import torch
from safetensors import safe_open

from ..sources_magnet import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, CheckpointError, ModelSource, wrap_read_errors

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


def check_weights(source: ModelSource) -> None:
    """Raise an error if weights of a local directory are missing, truncated or outside of it. Reads only headers.

    Sources on the Hub and GGUF files are not checked.
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
        # There is no fallback to pickles, which can run arbitrary code.
        with wrap_read_errors(repr(str(folder / name))), safe_open(folder / name, "pt"):
            pass


def check_not_packed(model: torch.nn.Module) -> None:
    """Raise an error for weights that bitsandbytes repacked for a CPU, because it does not restore them exactly."""
    for name, parameter in model.named_parameters():
        if getattr(getattr(parameter, "quant_state", None), "packing_format_for_cpu", False):
            raise CheckpointError(
                f"{name} was repacked by the 4-bit CPU kernels of bitsandbytes in a forward, and would be saved "
                "incorrectly. Load the model again and save it before any forward, or use another quantization."
            )
