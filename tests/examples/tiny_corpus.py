"""Write a tiny corpus; tests of interrupted jobs also use it."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .tiny_run import WORDS


def make_texts(number: int, *, seed: int = 0, longest: int = 20) -> list[str]:
    """Return texts of 0 to `longest` words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, longest))) for _ in range(number)]


def write_jsonl(path: Path, texts: Sequence[Any]) -> Path:
    """Write one object per line, with a column `key` beside the text."""
    lines = [json.dumps({"key": 100 + number, "text": text}) for number, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
