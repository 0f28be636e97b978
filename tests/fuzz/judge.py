"""Classify the result of a hostile input: a right result, a clear error, or a finding.

    python tests/fuzz/judge.py --inputs 100000
    python tests/fuzz/judge.py --inputs 2000 --target settings --seed 5000000
    python tests/fuzz/judge.py --input settings:4711  # one finding again, with its traceback

A clear error is a `ValueError`, or an `OSError` about a file, that a `raise` of this repository raises; errors of a
package below it, or of an operator, were meant for somebody else. Needs Linux.
"""

import argparse
import linecache
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    # Python puts only a script's folder on the path. No input may reach a network.
    sys.path.insert(0, str(REPOSITORY))
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}

Target = Callable[[random.Random, Path], None]
OWN = tuple(str(REPOSITORY / folder) + os.sep for folder in ("modeling_magnet", "trainer", "examples"))
# Files of transformers whose errors name the argument.
SPEAK_FOR_US = ("logits_process.py", "hf_argparser.py")
LIMIT_SECONDS, LIMIT_SPACE = 10.0, 4 << 30


class BrokenError(Exception):
    """Signal a wrong result, or an error that does not say enough."""


class HungError(BaseException):
    """Signal a timeout; `except Exception` in the library must not catch it."""


def check(is_right: Any, told: str) -> None:
    """Raise an error if a result is wrong."""
    if not is_right:
        raise BrokenError(told)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Require that errors in the block name the given file, column or argument."""
    try:
        yield
    except ValueError as error:
        if name not in str(error):
            raise BrokenError(f"the message does not name {name}: {error}") from error
        raise


def is_clear(error: BaseException) -> bool:
    """Return whether an error was raised on purpose by this library, or by a file listed in `SPEAK_FOR_US`."""
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, ValueError | OSError) or len(str(error)) < 15 or not frames:
        return False
    last = frames[-1]
    if last.filename.startswith(OWN):
        return linecache.getline(last.filename, last.lineno or 0).lstrip().startswith("raise ")
    return last.filename.endswith(SPEAK_FOR_US)


def judge(target: Target, draw: random.Random, *, seconds: float = LIMIT_SECONDS) -> str | None:
    """Run a target on one input with a folder, bounded time and bounded address space.

    Returns:
        `None` for a right result, `"refused"` for a clear error, else the finding.
    """
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _limits(seconds):
            warnings.simplefilter("ignore")
            target(draw, Path(folder))
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if is_clear(error):
            return "refused"
        frames = traceback.extract_tb(error.__traceback__)
        places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-4:])
        return f"{type(error).__name__}: {str(error)[:300]} [{places}]"
    return None


@contextmanager
def _limits(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise HungError(f"no end after {seconds:g} seconds")

    handler = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_SPACE, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def draw_of(name: str, seed: int) -> random.Random:
    """Return the generator of an input, the same for each call."""
    return random.Random(f"{name}:{seed}")


def judge_all(target: Target, name: str, seeds: range, *, seconds: float = LIMIT_SECONDS) -> Iterator[str | None]:
    """Judge inputs in a forked process; if it crashes or hangs, report a finding and continue with the next input."""
    context: Any = multiprocessing.get_context("fork")
    while seeds:
        near, far = context.Pipe(duplex=False)

        def work(seeds: range = seeds, far: Any = far) -> None:
            for seed in seeds:
                far.send(judge(target, draw_of(name, seed), seconds=seconds))

        process = context.Process(target=work)
        process.start()
        far.close()
        judged = 0
        try:
            while near.poll(2 * seconds):  # native code does not notice the timeout
                verdict = near.recv()
                judged += 1
                yield verdict
            process.kill()
        except EOFError:
            pass
        process.join()
        if judged < len(seeds):
            yield f"the process ended with {process.exitcode}"
        seeds = seeds[judged + 1 :]


def main(arguments: list[str] | None = None) -> int:
    """Judge many inputs, print a table with the findings, and return the exit status."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets, divided as in the tests")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="only these")
    parser.add_argument("--seed", type=int, default=0, help="the first of each target")
    parser.add_argument("--input", help="show what becomes of one input, TARGET:SEED")
    args = parser.parse_args(arguments)
    if args.input is not None:
        name, _, seed = args.input.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[name][0](draw_of(name, int(seed)), Path(folder))
        return 0
    total, findings = sum(TARGETS[name][1] for name in args.target), []
    print("| target | inputs | right results | clear errors | findings |\n|---|---|---|---|---|")
    for name in args.target:
        target, share = TARGETS[name]
        seeds = range(args.seed, args.seed + max(1, args.inputs * share // total))
        verdicts = list(judge_all(target, name, seeds))
        right, refused = verdicts.count(None), verdicts.count("refused")
        found = [
            f"- `{name}:{seed}`: {told}"
            for seed, told in zip(seeds, verdicts, strict=True)
            if told not in (None, "refused")
        ]
        print(f"| {name} | {len(seeds)} | {right} | {refused} | {len(found)} |", flush=True)
        findings += found
    print("\n".join(findings))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
