"""A JSONL file that a long job appends to and that a killed job can go on with.

Beside `rows.jsonl` lies `rows.jsonl.settings.json`, which says what the rows were made from, so that two different
jobs never share a file. One process writes at a time.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .whole_files import json_bytes, parse_json, write_json


def resume_rows(path: str | Path, *, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Open the file for a job: check that it is this job's, drop a half-written last line, return the rows there are.

    Args:
        path (`str` or `Path`): The JSONL file; it and its folder may not exist yet.
        settings (`Mapping[str, Any]`): Everything the rows depend on, as JSON can hold it.

    Returns:
        `list[dict]`: the complete rows, empty for a new file.

    Raises:
        ValueError: If the file was begun with other settings or not by this module, or holds a line that is no JSON
            object.
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
    try:
        begun = parse_json(sidecar.read_bytes())
    except ValueError as error:
        begun = error
    if not isinstance(begun, dict):
        told = begun if isinstance(begun, ValueError) else f"it holds {type(begun).__name__}"
        raise ValueError(
            f"{str(sidecar)!r} is no JSON object of settings ({told}), so what the rows of {path.name!r} were made "
            "from is unknown. Restore it, or give another path."
        )
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
    return _complete_rows(path)


def append_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows and hand them to the operating system, so that a kill of this process loses none of them.

    Args:
        path (`str` or `Path`): A file opened by `resume_rows`.
        rows (`Iterable[Mapping[str, Any]]`): One JSON object each.
    """
    with open(path, "ab") as file:
        file.write(b"".join(json_bytes(row) + b"\n" for row in rows))


def _complete_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of all lines that end in a newline; what follows the last newline is cut off the file."""
    rows = []
    size = 0
    with open(path, "rb+") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = parse_json(line)
            except ValueError as error:
                raise ValueError(
                    f"Line {number} of {str(path)!r} is not JSON ({error}): the file was edited or damaged. "
                    "Restore it, or give another path."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"Line {number} of {str(path)!r} is {type(row).__name__}, not an object: the file was edited or "
                    "damaged. Restore it, or give another path."
                )
            rows.append(row)
            size += len(line)
        file.truncate(size)
    return rows


__all__ = ["append_rows", "resume_rows"]
