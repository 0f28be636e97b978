"""Base models from Python packages and GGUF files. This folder is not part of the remote code of a checkpoint."""

from . import gguf as gguf
from .gemma3_270m import HUB_ID, NAME, packaged_checkpoint


def locate(name: str, *, on_hub: bool = False) -> tuple[str, bool] | None:
    """Resolve the short name of a packaged base.

    Args:
        name (`str`): A short name such as `gemma-3-270m`; any other name gives `None`.
        on_hub (`bool`): Whether to skip the package, because the caller named a revision or a file of the Hub.

    Returns:
        `tuple[str, bool]`, *optional*: the cached checkpoint of the installed package and `True`, otherwise the Hub id
        and `False`.

    Raises:
        OSError: If the installed package is damaged, or the cache cannot be written.
    """
    if name != NAME:
        return None
    checkpoint = None if on_hub else packaged_checkpoint()
    return (HUB_ID, False) if checkpoint is None else (str(checkpoint), True)
