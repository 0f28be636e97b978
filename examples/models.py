"""How scripts open a model that is named on the command line."""

from typing import Any

import torch

from examples.hub import offline_where_unreachable
from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.sources_magnet import ADAPTER_SETTINGS, CONFIG, ModelSource


def is_here(path: str) -> bool:
    """Whether a model is on this machine, so that the Hub need not be asked: a directory or an installed base.

    Args:
        path (`str`): What was named on the command line.
    """
    return ModelSource(path, {}).directory is not None


def open_magnet(path: str, *, dtype: str = "auto", device: str = "cpu", **options: Any) -> Any:
    """Open a MAGNET checkpoint, an adapter or a plain decoder as our class, in evaluation mode on a device.

    Args:
        path (`str`): Directory or Hub id.
        dtype (`str`): Of the weights, by its name in torch; `"auto"`: as they are stored.
        device (`str`): What `choose_device` returned.
        options: Further arguments of `from_pretrained`.

    Raises:
        ValueError, OSError: nothing is there that can be opened.
    """
    if not is_here(path):
        offline_where_unreachable()
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    model: Any = AutoMagnetForCausalLM.from_pretrained(path, dtype=wanted, **options)
    return model.to(device).eval()


def not_adapted(path: str, *, gguf_file: str | None = None) -> str | None:
    """Return a line that says that a model was never adapted; `None` for a MAGNET checkpoint or adapter.

    Args:
        path (`str`): Directory or Hub id of a model that can be opened.
        gguf_file (`str`, *optional*): The GGUF file there; such a model was never adapted.
    """
    source = ModelSource(path, {})
    try:
        base = None if gguf_file else source.adapter_base()
        values = {} if gguf_file else (base or source).config_values()
    except (ValueError, OSError):  # not a directory of safetensors: nothing can be said of it
        return None
    if "magnet" in values or (base is not None and source.file(ADAPTER_SETTINGS)):
        return None
    lacks = f"{CONFIG} has no `magnet` block" if base is None else f"neither {ADAPTER_SETTINGS} nor a `magnet` block"
    return (
        f"note: {path} was never adapted by MAGNET ({lacks}): what it fills from both sides means nothing. Adapt it "
        "with examples/adapt.py first."
    )


__all__ = ["is_here", "not_adapted", "open_magnet"]
