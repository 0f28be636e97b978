"""Where the files of the drivers' data are: one folder serves all drivers, each finds its own sub-folder in it."""

from pathlib import Path


def data_file(folder: Path, name: str) -> Path:
    """Return a file of a folder or of one of its sub-folders; where there is none, where it would be in the folder.

    Args:
        folder (`Path`): What `--data` says: the root of all data, or the sub-folder itself.
        name (`str`): Of the file.
    """
    places = (folder / name, *sorted(folder.glob(f"*/{name}")))
    return next((file for file in places if file.is_file()), places[0])


__all__ = ["data_file"]
