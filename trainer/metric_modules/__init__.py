"""The paper's metrics as modules of Hugging Face `evaluate`: `evaluate.load(str(METRIC_MODULES / "NAME.py"))`.

Each file is one metric around a pure function, so that `evaluate.combine` and the libraries that build on it can use
it. They need the `eval` extra; nothing here imports them.
"""

from pathlib import Path

METRIC_MODULES = Path(__file__).resolve().parent

__all__ = ["METRIC_MODULES"]
