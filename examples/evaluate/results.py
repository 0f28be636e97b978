"""The JSON file of an evaluation: what was measured, with what, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from examples.corpus.writing import whole_file


def write_results(path: Path | None, results: dict[str, Any], *, models: dict[str, str]) -> None:
    """Write results with the names of the models and the versions of the libraries.

    Args:
        path (`Path`, *optional*): The file; nothing is written without one.
        results (`dict`): What was measured.
        models (`dict[str, str]`): Folders or Hub ids by role; of a folder its name alone is kept.
    """
    if path is None:
        return
    names = {role: Path(model).name if Path(model).is_dir() else model for role, model in models.items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    with whole_file(path) as file:
        file.write((json.dumps({**results, "models": names, "versions": versions}, indent=1) + "\n").encode())


__all__ = ["write_results"]
