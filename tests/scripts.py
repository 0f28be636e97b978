"""Run scripts in this process, which has already imported torch, and code in a process of its own."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock


def run_script(script: ModuleType | Path, *arguments: str) -> tuple[int, str, str]:
    """Run the code of a script under the name `__main__`.

    Args:
        script (`ModuleType` or `Path`): Its file, or the module of it.
        arguments (`str`): Its command line.

    Returns:
        `tuple[int, str, str]`: the exit status, what it printed, and what stands on its standard error.
    """
    path = str(script.__file__ if isinstance(script, ModuleType) else script)
    out, err, code = io.StringIO(), io.StringIO(), None
    with (
        mock.patch.object(sys, "argv", [path, *arguments]),
        mock.patch.object(sys, "path", [str(Path(path).parent), *sys.path]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            code = end.code
    if isinstance(code, str):  # which Python prints
        err.write(code + "\n")
        code = 1
    return code or 0, out.getvalue(), err.getvalue()


def run_python(code: str, *arguments: object, folder: Path, **environment: str) -> str:
    """Run code in a process that knows no other cache than that in its folder, and return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    kept |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
