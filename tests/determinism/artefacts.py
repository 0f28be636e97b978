"""Read the output of a command as bytes that can be compared between runs."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any


def artefacts(folder: Path, *, dropped: Collection[str], unread: Collection[str] = ()) -> dict[str, bytes]:
    """The files of a folder by name.

    The name of the folder itself is put out of them. In JSON, fields of the names in `dropped` are left out; the order
    of those that stay counts.

    Args:
        folder (`Path`): Where a command has written.
        dropped (`Collection[str]`): Names of fields that hold times, wherever they stand.
        unread (`Collection[str]`): Names of files of which only their being there counts.
    """
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if file.name in unread:
            found[name] = b""
            continue
        content = file.read_bytes().replace(str(folder).encode(), b"FOLDER")
        if dropped and file.suffix in (".json", ".jsonl"):
            whole = [content] if file.suffix == ".json" else content.splitlines()
            content = b"\n".join(json.dumps(_without(json.loads(part), dropped)).encode() for part in whole)
        found[name] = content
    return found


def fields(folder: Path) -> set[str]:
    """Collect the names of all files and JSON fields, so that only existing names can be dropped."""
    names = set()
    for file in folder.rglob("*"):
        names.add(file.name)
        if file.suffix in (".json", ".jsonl") and file.is_file():
            content = file.read_bytes()
            for part in [content] if file.suffix == ".json" else content.splitlines():
                names |= set(_keys(json.loads(part)))
    return names


def _without(value: Any, dropped: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, dropped) for key, inner in value.items() if key not in dropped}
    return [_without(inner, dropped) for inner in value] if isinstance(value, list) else value


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(inner)
