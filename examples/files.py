"""Read files that may be compressed (`.gz`, `.xz`), and find data files."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

# Errors of reading a file that is truncated, damaged or of another format.
UNREADABLE = (OSError, EOFError, UnicodeError, lzma.LZMAError, zlib.error)


def open_bytes(file: Path) -> BinaryIO:
    """Read a file, decompressed."""
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix.lower(), open)
    return cast(BinaryIO, opener(file, "rb"))


@contextmanager
def open_text(file: Path, *, newline: str | None = None) -> Iterator[TextIO]:
    """Open a UTF-8 text file for a block that reads it to its end."""
    try:
        with io.TextIOWrapper(open_bytes(file), encoding="utf-8", newline=newline) as stream:
            yield stream
    except UNREADABLE as error:
        raise ValueError(
            f"{str(file)!r} cannot be read to its end ({error}): it is damaged, cut short or not UTF-8. Get it again."
        ) from error


def data_file(folder: Path, name: str) -> Path:
    """Find a file in a folder or one of its subfolders; if there is none, return its path in the folder."""
    places = (folder / name, *sorted(folder.glob(f"*/{name}")))
    return next((file for file in places if file.is_file()), places[0])
