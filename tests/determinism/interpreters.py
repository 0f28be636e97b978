"""Two Python interpreters that hash strings differently, each of which runs commands in processes of their own.

An interpreter imports torch and transformers once and forks for each command, so that a command costs its own time
alone; what it hashes strings with is inherited, also by processes that the command starts.
"""

import json
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


class Interpreter:
    """One of the two; a context manager that ends it.

    Args:
        hash_seed (`int`): `PYTHONHASHSEED`, and where all global generators stand when a command begins.
        folder (`Path`): Where commands are run, with caches that no other interpreter shares.
        threads (`int`): Threads of a command.
    """

    def __init__(self, *, hash_seed: int, folder: Path, threads: int = 1) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONHASHSEED": str(hash_seed),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": str(threads),
            "HF_HOME": str(folder / "cache"),
            "HF_DATASETS_CACHE": str(folder / "cache" / "datasets"),
            "HF_MODULES_CACHE": str(folder / "cache" / "modules"),
            "MPLCONFIGDIR": str(folder / "cache" / "matplotlib"),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(hash_seed)],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> "Interpreter":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def begin(self, script: Path, arguments: Sequence[str], *, log: Path) -> None:
        """Start `python SCRIPT ARGUMENTS`; one command at a time."""
        assert self._process.stdin is not None
        order = {"argv": [str(script), *arguments], "cwd": str(self.folder), "log": str(log)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def end(self) -> int:
        """Wait for the started command and return its exit status."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def _serve(seed: int) -> None:
    """Fork for every request and reply with the exit status."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import datasets  # noqa: F401
    import numpy as np
    import torch

    import trainer  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            answers.close()
            # The initial state of the generators must not affect a command that seeds what it draws from.
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            _become(order)
            return  # the end of the interpreter, as after a script
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _become(order: dict[str, Any]) -> None:
    """Run the script in this process as `python` would."""
    os.chdir(order["cwd"])
    streams = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open(os.devnull, os.O_RDONLY)
    for number, stream in ((0, streams[1]), (1, streams[0]), (2, streams[0])):
        os.dup2(stream, number)
    sys.argv = order["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
