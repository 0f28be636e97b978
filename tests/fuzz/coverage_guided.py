"""The same targets, their draws read from bytes that libFuzzer changes where that reaches new lines; needs atheris.

    pip install atheris
    python tests/fuzz/coverage_guided.py marks phases settings -max_total_time=120

Each target runs in a process of its own for the time given; what else begins with a dash is libFuzzer's. A finding
ends its process with its traceback, and its bytes lie beside as `crash-...`, which can be passed again.
"""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["HF_HUB_OFFLINE"] = "1"

import atheris

# Packages below are too large to be followed, and not what is tested.
with atheris.instrument_imports(include=["modeling_magnet", "trainer", "examples"]):
    from tests.fuzz.judging import FINDING, Target, judge
    from tests.fuzz.targets import TARGETS


class Draws(random.Random):
    """Draws that are bytes of an input; behind its end, zeros: the first of every choice."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self.data = atheris.FuzzedDataProvider(data)

    def random(self) -> float:
        """From 0 to below 1."""
        return self.data.ConsumeIntInRange(0, 2**16 - 1) / 2**16

    def getrandbits(self, k: int, /) -> int:
        """So many bits, of as many bytes as they take."""
        return self.data.ConsumeIntInRange(0, 2 ** min(k, 64) - 1)

    def _randbelow(self, n: int) -> int:
        """At once, where the library's own draws until it is below n, which some bytes would never be."""
        return self.data.ConsumeIntInRange(0, min(n, 2**64) - 1)


def once(target: Target, data: bytes) -> None:
    """Judge what these bytes draw."""
    verdict = judge(target, Draws(data))
    if verdict.outcome == FINDING:
        raise AssertionError(f"{target.name}: {verdict.told}")


def main(arguments: list[str]) -> int:
    """One target here, several in processes of their own; the number of those that found something."""
    names = [argument for argument in arguments if argument in TARGETS]
    options = [argument for argument in arguments if argument not in TARGETS]
    if len(names) != 1:
        command: list[Any] = [sys.executable, __file__]
        return sum(subprocess.run([*command, name, *options]).returncode != 0 for name in names)
    target = TARGETS[names[0]]
    atheris.Setup([sys.argv[0], *options], lambda data: once(target, data))
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
