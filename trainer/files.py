"""Write files atomically, and JSONL logs that an interrupted job can resume."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic_write(path: Path, *, temporary_folder: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` once it is complete on disk.

    Args:
        path (`Path`): The final path.
        temporary_folder (`Path`, *optional*): Folder of the temporary file, on the same file system; by default that
            of `path`.

    Raises:
        OSError: If the file cannot be written; the message names its path and the free space.
    """
    unfinished = (path.parent if temporary_folder is None else temporary_folder) / f"{path.name}.unfinished"
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the renaming is on disk, too
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
            f"{str(path)!r} cannot be written ({error.strerror or error}); {free:,} bytes are free there. "
            "Finished work is kept: free some space or raise the limit, then run the same command to resume",
        ) from error


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file atomically, and create its folder if missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as stream:
        stream.write(json_bytes(content, indent=2) + b"\n")


def json_bytes(content: Any, *, indent: int | None = None) -> bytes:
    """Encode as JSON in UTF-8; escape non-ASCII characters if there is a lone surrogate, as in shell arguments."""
    try:
        return json.dumps(content, indent=indent, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent).encode()


def parse_json(text: str | bytes) -> Any:
    """Parse untrusted JSON.

    Raises:
        ValueError: If it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


def resume_rows(path: str | Path, *, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Check that a JSONL log belongs to a job, drop an incomplete last line, and return its rows.

    `rows.jsonl.settings.json`, next to `rows.jsonl`, records the settings of the job, so that different jobs cannot
    share a file. Only one process may write at a time.

    Args:
        path (`str` or `Path`): The JSONL file; it and its folder need not exist.
        settings (`Mapping[str, Any]`): Everything that the rows depend on, as JSON values.

    Raises:
        ValueError: If the file has other or no settings, or a line is not a JSON object.
    """
    path = Path(path)
    sidecar = path.with_name(path.name + ".settings.json")
    wanted = json.loads(json.dumps(settings))
    if not path.exists() or path.stat().st_size == 0:
        write_json(sidecar, wanted)
        return []
    if not sidecar.exists():
        raise ValueError(
            f"{str(path)!r} has rows, but {sidecar.name!r} with their settings is missing. Pass another path, or move "
            "the file away."
        )
    begun = _parse_object(sidecar.read_bytes(), name=repr(str(sidecar)))
    differences = [
        f"{name} was {begun.get(name)!r} and is now {wanted.get(name)!r}"
        for name in sorted(begun.keys() | wanted.keys())
        if begun.get(name) != wanted.get(name)
    ]
    if differences:
        raise ValueError(
            f"{str(path)!r} was begun with other settings: {'; '.join(differences)}. Use these again, or pass "
            "another path."
        )
    rows, size = [], 0
    with open(path, "rb+") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            rows.append(_parse_object(line, name=f"Line {number} of {str(path)!r}"))
            size += len(line)
        file.truncate(size)
    return rows


def append_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON objects to a file of `resume_rows`; they survive if the process is killed afterwards."""
    with open(path, "ab") as file:
        file.write(b"".join(json_bytes(row) + b"\n" for row in rows))


def _parse_object(text: bytes, *, name: str) -> dict[str, Any]:
    """Parse a JSON object that this module wrote."""
    try:
        content = parse_json(text)
        reason = f"{type(content).__name__}, not an object"
    except ValueError as error:
        content, reason = None, f"not JSON ({error})"
    if not isinstance(content, dict):
        raise ValueError(f"{name} is {reason}: it was edited or damaged. Restore it, or pass another path.")
    return content
