"""Run a script like `python SCRIPT ARGUMENTS`, in this process, which has already imported torch."""

import contextlib
import io
import runpy
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
