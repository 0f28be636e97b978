"""Write JSON files that appear whole or not at all, and JSONL logs that a killed job continues."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def whole_file(path: Path, *, aside: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when all of it is on the disk, or never.

    Args:
        path (`Path`): Its name.
        aside (`Path`, *optional*): A folder of the same file system for the unfinished file; its own by default.

    Raises:
        OSError: if it cannot be written, with its name and the free space.
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
    """Write a JSON file under a temporary name and move it into place; a missing folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as stream:
        stream.write(json_bytes(content, indent=2) + b"\n")


def json_bytes(content: Any, *, indent: int | None = None) -> bytes:
    """Encode as JSON in UTF-8, with escapes where a text holds a lone surrogate, as shell arguments may."""
    try:
        return json.dumps(content, indent=indent, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent).encode()


def parse_json(text: str | bytes) -> Any:
    """Parse untrusted JSON.

    Raises:
        ValueError: if it is not JSON, or nested deeper than Python's recursion limit.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


def resume_rows(path: str | Path, *, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Open a JSONL log for a job: check that it belongs to the job, drop a half-written last line, return its rows.

    `rows.jsonl.settings.json` beside `rows.jsonl` records what the rows were made from, so that two different jobs
    never share a file. One process writes at a time.

    Args:
        path (`str` or `Path`): The JSONL file; it and its folder may not exist yet.
        settings (`Mapping[str, Any]`): Everything the rows depend on, as JSON can hold it.

    Raises:
        ValueError: if the file was begun with other settings or elsewhere, or a line is not a JSON object.
    """
    path = Path(path)
    sidecar = path.with_name(path.name + ".settings.json")
    wanted = json.loads(json.dumps(settings))
    if not path.exists() or path.stat().st_size == 0:
        write_json(sidecar, wanted)
        return []
    if not sidecar.exists():
        raise ValueError(
            f"{str(path)!r} has rows but no {sidecar.name!r} beside it, so what they were made from is unknown. "
            "Give another path, or move the file away."
        )
    begun = _parse_object(sidecar.read_bytes(), name=repr(str(sidecar)))
    differences = [
        f"{name} was {begun.get(name)!r} and is now {wanted.get(name)!r}"
        for name in sorted(begun.keys() | wanted.keys())
        if begun.get(name) != wanted.get(name)
    ]
    if differences:
        raise ValueError(
            f"{str(path)!r} was begun with other settings: {'; '.join(differences)}. "
            "Repeat the call that began it, or give another path."
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
    """Append JSON objects to a file of `resume_rows`; once this returns, killing the process loses none of them."""
    with open(path, "ab") as file:
        file.write(b"".join(json_bytes(row) + b"\n" for row in rows))


def _parse_object(text: bytes, *, name: str) -> dict[str, Any]:
    """Parse a JSON object that this module wrote."""
    try:
        found = parse_json(text)
        reason = f"{type(found).__name__}, not an object"
    except ValueError as error:
        found, reason = None, f"not JSON ({error})"
    if not isinstance(found, dict):
        raise ValueError(f"{name} is {reason}: it was edited or damaged. Restore it, or give another path.")
    return found
