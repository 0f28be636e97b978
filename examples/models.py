"""Open the model named on the command line, and use the Hub only if it answers."""

import functools
import os
import sys
from typing import Any

import torch

from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.sources_magnet import ADAPTER_SETTINGS, CONFIG, ModelSource

# Long enough for a slow connection, shorter than one attempt of the libraries.
TIMEOUT_SECONDS = 5.0


@functools.cache
def offline_where_unreachable() -> None:
    """Restrict the Hub's libraries to their cache, with a message, if the Hub does not answer."""
    import datasets
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except Exception as error:  # errors of sockets, proxies, certificates and the HTTP client
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that are started from here
        reason = str(error) or type(error).__name__
        print(
            f"note: {constants.ENDPOINT} cannot be reached ({reason}): only what is on disk is used", file=sys.stderr
        )


def is_here(path: str) -> bool:
    """Return whether a model is on this machine, as a directory or an installed base."""
    return ModelSource(path, {}).directory is not None


def open_magnet(path: str, *, dtype: str = "auto", device: str = "cpu", **options: Any) -> Any:
    """Open a MAGNET checkpoint, adapter or plain decoder in evaluation mode on a device."""
    if not is_here(path):
        offline_where_unreachable()
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    model: Any = AutoMagnetForCausalLM.from_pretrained(path, dtype=wanted, **options)
    return model.to(device).eval()


def not_adapted(path: str, *, gguf_file: str | None = None) -> str | None:
    """Return a warning if a model was never adapted; `None` for a MAGNET checkpoint or adapter."""
    source = ModelSource(path, {})
    try:
        base = None if gguf_file else source.adapter_base()
        values = {} if gguf_file else (base or source).config_values()
    except (ValueError, OSError):  # not a directory of safetensors, so the kind is unknown
        return None
    if "magnet" in values or (base is not None and source.file(ADAPTER_SETTINGS)):
        return None
    lacks = f"{CONFIG} has no `magnet` block" if base is None else f"neither {ADAPTER_SETTINGS} nor a `magnet` block"
    return (
        f"note: {path} was never adapted by MAGNET ({lacks}): what it fills from both sides means nothing. Adapt it "
        "with examples/adapt.py first."
    )
