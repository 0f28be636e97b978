"""Files to read, decompressed as their suffix says: `.gz`, `.xz`, anything else plain."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

# What a file that is cut short, damaged or of another format raises while it is read.
UNREADABLE = (OSError, EOFError, UnicodeError, lzma.LZMAError, zlib.error)


def open_bytes(file: Path) -> BinaryIO:
    """The bytes of a file."""
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix.lower(), open)
    return cast(BinaryIO, opener(file, "rb"))


def open_text(file: Path, *, newline: str | None = None) -> TextIO:
    """The text of a file in UTF-8.

    Args:
        file (`Path`): The file.
        newline (`str`, *optional*): As `open` takes it.
    """
    return io.TextIOWrapper(open_bytes(file), encoding="utf-8", newline=newline)


@contextmanager
def whole_text(file: Path, *, newline: str | None = None) -> Iterator[TextIO]:
    """The text of a file in UTF-8, for a block that reads it to its end.

    Args:
        file (`Path`): The file.
        newline (`str`, *optional*): As `open` takes it.

    Raises:
        ValueError: naming the file, where it cannot be read or is no UTF-8.
    """
    try:
        with open_text(file, newline=newline) as stream:
            yield stream
    except UNREADABLE as error:
        raise ValueError(
            f"{str(file)!r} cannot be read to its end ({error}): it is damaged, cut short or no UTF-8. Fetch it again."
        ) from error


__all__ = ["UNREADABLE", "open_bytes", "open_text", "whole_text"]
