"""Small files that appear whole or not at all, and JSON that nobody has to trust."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def whole_file(path: Path, *, aside: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file that appears under its name when all of it is on the disk, or not at all.

    Args:
        path (`Path`): Its name; a file of this name is replaced.
        aside (`Path`, *optional*): A folder of the same file system for the unfinished file; its own by default.

    Raises:
        OSError: it cannot be written; the message has its name and the free space.
    """
    unfinished = (path.parent if aside is None else aside) / f"{path.name}.unfinished"
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too
        finally:
            os.close(folder)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f"{str(path)!r} cannot be written ({error.strerror or error}); {free:,} bytes are free there. What was "
            "finished before is kept: make room or lift the limit, then run the same command again",
        ) from error


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file whole; its folder is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as stream:
        stream.write(json_bytes(content, indent=2) + b"\n")


def json_bytes(content: Any, *, indent: int | None = None) -> bytes:
    """JSON in UTF-8; escaped where a text holds half of a surrogate pair, as an argument of a shell may."""
    try:
        return json.dumps(content, indent=indent, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent).encode()


def parse_json(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is none, or brackets in it are nested deeper than Python follows them.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


__all__ = ["json_bytes", "parse_json", "whole_file", "write_json"]
