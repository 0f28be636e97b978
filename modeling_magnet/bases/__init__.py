"""Base models from Python packages and GGUF files. This folder does not travel as remote code."""

from . import gguf
from .gemma3_270m import HUB_ID, NAME, packaged_checkpoint


def locate(name: str, *, on_hub: bool = False) -> tuple[str, bool] | None:
    """Return where a base with a short name is.

    Args:
        name (`str`): What was asked for, such as `gemma-3-270m`.
        on_hub (`bool`): Whether the one on the Hub is meant, since the caller named a revision or a file.

    Returns:
        `tuple[str, bool]`, *optional*: directory of the checkpoint of an installed package, and true; the Hub id and
        false where the package is not installed; `None` for any other name.

    Raises:
        OSError: the package is installed, but damaged, or its model cannot be written to the cache.
    """
    if name != NAME:
        return None
    checkpoint = None if on_hub else packaged_checkpoint()
    return (HUB_ID, False) if checkpoint is None else (str(checkpoint), True)


__all__ = ["gguf", "locate"]
