"""Functions of a test called in a process of its own, in which the Hub is the test's server."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .hub_server import HubServer

REPOSITORY = Path(__file__).resolve().parents[1]


def run_client(
    function: Callable[..., Any], *arguments: str, hub: HubServer, home: Path, token: str | None = None
) -> Any:
    """Call a module's function in a new process, since the one of the tests is offline, and return what JSON keeps.

    `home` holds the client's cache, and thus what one call leaves to the next.
    """
    code = (
        f"import json, sys; from {function.__module__} import {function.__name__} as function; "
        "print(json.dumps(function(*sys.argv[1:])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=hub.environment(home, token=token),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refusal(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, int | None, str] | None:
    """The exception of a call: its name, the status of the response behind it, its text; nothing if it succeeds."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return type(error).__name__, getattr(getattr(error, "response", None), "status_code", None), str(error)
    return None


def write_files(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Fill a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder
