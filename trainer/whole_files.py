"""Small files that appear whole or not at all, and JSON that nobody has to trust."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file beside its place and move it there; its folder is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_bytes(json_bytes(content, indent=2) + b"\n")
    os.replace(unfinished, file)


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


__all__ = ["json_bytes", "parse_json", "write_json"]
