"""Files to read, decompressed as their suffix says: `.gz`, `.xz`, anything else plain."""

import gzip
import io
import lzma
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast


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


__all__ = ["open_bytes", "open_text"]
