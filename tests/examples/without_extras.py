"""Run scripts in a process that cannot import packages of extras, and print a line of JSON for each.

python tests/examples/without_extras.py '[["fill.py", ["--help"]]]'
"""

import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
# The extras in setup.cfg, by import names.
EXTRAS = (
    *("matplotlib", "ipykernel", "nbclient", "nbformat", "jupyter_client", "traitlets", "evaluate", "lm_eval", "mteb"),
    *("sklearn", "scipy", "sentence_transformers", "seqeval", "gradio", "torchao", "deepspeed", "pdoc"),
)


def hide_extras() -> None:
    """Hide all modules of extras, as if they were not installed."""
    find: Any = PathFinder.find_spec

    def find_others(name: str, *args: Any) -> Any:
        return None if name.partition(".")[0] in EXTRAS else find(name, *args)

    PathFinder.find_spec = staticmethod(find_others)  # type: ignore[method-assign,assignment]


def main() -> None:
    """Run the scripts named on the command line."""
    sys.path.insert(0, str(REPOSITORY))
    hide_extras()
    from tests.scripts import run_script

    for script, arguments in json.loads(sys.argv[1]):
        try:
            code, out, err = run_script(REPOSITORY / "examples" / script, *arguments)
        except Exception as error:  # stands for the traceback that a user would see
            code, out, err = -1, "", f"Traceback: {type(error).__name__}: {error}"
        print(json.dumps({"script": script, "code": code, "out": out, "err": err}), flush=True)


if __name__ == "__main__":
    main()
