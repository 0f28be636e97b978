"""Write a tiny corpus, and run `encode_corpus.py` in subprocesses that may be killed."""

import io
import json
import multiprocessing
import os
import random
import resource
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .tiny_run import WORDS

# Forked from a process that has imported everything once and started no thread.
_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["examples.encode_corpus"])


def make_texts(number: int, *, seed: int = 0, longest: int = 20) -> list[str]:
    """Return texts of 0 to `longest` words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, longest))) for _ in range(number)]


def write_jsonl(path: Path, texts: Sequence[Any]) -> Path:
    """Write one object per line, with a column `key` beside the text."""
    lines = [json.dumps({"key": 100 + number, "text": text}) for number, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def start_run(options: Sequence[str], *, largest_file: int | None = None) -> tuple[Any, Connection]:
    """Start a run in a subprocess.

    Args:
        options (`Sequence[str]`): Of `encode_corpus.py`.
        largest_file (`int`, *optional*): Writing beyond so many bytes of a file fails, as on a full disk.

    Returns:
        The process, and a connection from which `main`'s outcome can be read: an error, or `None`, and the peak of
        memory in bytes.
    """
    ours, theirs = _forkserver.Pipe()
    process = _forkserver.Process(target=_run, args=(list(options), largest_file, theirs))
    process.start()
    theirs.close()
    return process, ours


def finish_run(options: Sequence[str], *, largest_file: int | None = None) -> tuple[Exception | None, int]:
    """Run to the end in a subprocess; return its error, if any, and its peak memory in bytes."""
    process, outcome = start_run(options, largest_file=largest_file)
    error, peak = outcome.recv()
    process.join()
    return error, peak


def _run(options: list[str], largest_file: int | None, outcome: Connection) -> None:
    """Run the command in the subprocess."""
    from examples.encode_corpus import main

    sys.stdout = sys.stderr = io.TextIOWrapper(open(os.devnull, "wb"))
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    error = None
    try:
        main(options)
    except (ValueError, OSError, RuntimeError) as raised:
        error = raised.with_traceback(None)
    outcome.send((error, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
