"""Base models whose weights come as Python packages. This folder does not travel as remote code."""

from .gemma3_270m import HUB_ID, NAME, packaged_file


def locate(name: str, *, on_hub: bool = False) -> tuple[str, str | None] | None:
    """Where a base with a short name is.

    Args:
        name (`str`): What was asked for, such as `gemma-3-270m`.
        on_hub (`bool`): Whether the one on the Hub is meant, since the caller named a revision or a file.

    Returns:
        `tuple[str, str]`, *optional*: directory and GGUF file of an installed package; the Hub id and `None` where the
        package is not installed; `None` for any other name.

    Raises:
        OSError: the package is installed, but damaged, or its file cannot be written to the cache.
    """
    if name != NAME:
        return None
    file = None if on_hub else packaged_file()
    return (HUB_ID, None) if file is None else (str(file.parent), file.name)


__all__ = ["locate"]
