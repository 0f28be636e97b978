"""Base models from Python packages and GGUF files. This folder is not part of the remote code of a checkpoint."""

from . import gguf as gguf
from .gemma3_270m import HUB_ID, NAME, packaged_checkpoint

# Adapters store the Hub id, which other libraries know; here it finds the installed package.
SHORT_NAMES = {HUB_ID: NAME}


def locate(name: str, *, on_hub: bool = False) -> tuple[str, str] | None:
    """Resolve the short name of a packaged base.

    Args:
        name (`str`): A short name such as `gemma-3-270m`; any other name gives `None`.
        on_hub (`bool`): Whether to skip the package, because the caller named a revision or a file of the Hub.

    Returns:
        `tuple[str, str]`, *optional*: where to read the base, and its Hub id. The first is the cached checkpoint of
        the installed package, otherwise the Hub id as well.

    Raises:
        OSError: If the installed package is damaged, or the cache cannot be written.
    """
    if name != NAME:
        return None
    checkpoint = None if on_hub else packaged_checkpoint()
    return (HUB_ID if checkpoint is None else str(checkpoint), HUB_ID)
