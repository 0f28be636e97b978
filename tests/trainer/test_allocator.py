"""Freed memory stays in the process: counted by the page faults of large tensors made again and again."""

import platform
import subprocess
import sys

import pytest

from trainer.memory import keep_freed_memory

COUNT = """
import resource, sys
from trainer.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import torch
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_large_tensors_made_again_cause_no_page_faults():
    faults = {
        way: int(subprocess.run([sys.executable, "-c", COUNT, way], capture_output=True, check=True, text=True).stdout)
        for way in ("kept", "usual")
    }
    assert faults["kept"] < 0.3 * faults["usual"]  # 64 MiB are 16,384 pages, once instead of four times


@pytest.mark.parametrize("system, library", [("Darwin", "glibc"), ("Linux", "musl")])
def test_other_systems_are_left_alone(monkeypatch, system, library):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.libc_ver", lambda: (library, ""))
    monkeypatch.setattr("ctypes.CDLL", None)
    assert keep_freed_memory() is False
