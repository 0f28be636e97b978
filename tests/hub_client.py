"""Call functions of a test in a subprocess whose Hub is the test's server."""

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
    """Call a module's function in a new process, since that of the tests is offline, and return what JSON keeps.

    `home` holds the client's cache, and thus what one call leaves to the next.
    """
    code = (
        f"import json, sys; from {function.__module__} import {function.__name__} as function; "
        "print(json.dumps(function(*sys.argv[1:])))"
    )
    command, environment = [sys.executable, "-c", code, *arguments], hub.environment(home, token=token)
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refusal(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, int | None, str] | None:
    """Return the exception of a call, or `None`: its name, the status of the response that caused it, its text."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return type(error).__name__, getattr(getattr(error, "response", None), "status_code", None), str(error)
    return None
