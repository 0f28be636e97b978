"""Deliberate bugs, each of which the ordinary tests have to catch: tests that pass in spite of a bug prove nothing.

    python tests/faults/mutations.py
    python tests/faults/mutations.py --only seed_ignored prompt_dropped --no_baseline

The tests nearest to the bugs run once on a copy of the tracked files. Then each bug is put into a copy of its own, and
its tests run there until the first fails; the working tree is never touched. A bug that no test catches, or whose text
is not found exactly once any more, makes the exit status 1.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT = 900  # seconds; a bug may also keep a loop from ending

_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - .*)?$", flags=re.MULTILINE)


class Mutation(NamedTuple):
    """A bug, as a change of the source."""

    name: str
    bug: str  # what is wrong then
    file: str
    text: str  # stands in the file exactly once
    replacement: str
    tests: tuple[str, ...]  # the nearest files, which are to catch it


class Outcome(NamedTuple):
    """What became of the tests of a copy."""

    failed: str | None  # node id of the first test that failed
    seconds: float
    passed: bool = False  # all that were not skipped
    complaint: str = ""  # why no test failed


MUTATIONS = (
    Mutation(
        name="mask_transposed",
        bug="in a forward over whole rows, keys see queries",
        file="modeling_magnet/masking_magnet.py",
        text="return allowed[:, None]  # (B, 1, Q, KV)",
        replacement="return (allowed.mT if allowed.shape[1] == allowed.shape[2] else allowed)[:, None]",
        tests=("tests/modeling_magnet/test_masking_magnet.py",),
    ),
    Mutation(
        name="mntp_shift",
        bug="masked tokens are predicted two positions earlier",
        file="trainer/corruption.py",
        text="labels[:-1] = torch.where(is_target, input_ids, IGNORE_INDEX)[1:]",
        replacement="labels[:-2] = torch.where(is_target, input_ids, IGNORE_INDEX)[2:]",
        tests=("tests/trainer/test_corruption.py",),
    ),
    Mutation(
        name="span_seen_by_context",
        bug="context tokens see the spans that they are to be independent of",
        file="modeling_magnet/masking_magnet.py",
        text="allowed |= (segment_ids == 0)[:, None, :]",
        replacement="allowed |= (segment_ids == 0)[:, None, :] | (query_segments == 0)[:, :, None]",
        tests=("tests/modeling_magnet/test_masking_magnet.py",),
    ),
    Mutation(
        name="padding_seen",
        bug="tokens attend to padding",
        file="modeling_magnet/masking_magnet.py",
        text="allowed &= attention_mask.bool()[:, None, :]",
        replacement="pass",
        tests=("tests/modeling_magnet/test_masking_magnet.py",),
    ),
    Mutation(
        name="loss_scaled_by_accumulation",
        bug="a window is the mean of its micro-batches' means, however many labels each has",
        file="trainer/magnet_trainer.py",
        text="num_items = num_items_in_batch if isinstance(num_items_in_batch, Tensor) else self._count(inputs)",
        replacement="num_items = self._count(inputs) * self._num_micro_batches()",
        tests=("tests/trainer/test_magnet_trainer.py",),
    ),
    Mutation(
        name="pairs_shuffled",
        bug="an anchor's positive is that of the next pair",
        file="trainer/data_collator.py",
        text='[row["anchor"] for row in rows] + [row["positive"] for row in rows]',
        replacement='[row["anchor"] for row in rows] + [row["positive"] for row in [*rows[1:], *rows[:1]]]',
        tests=("tests/trainer/test_data_collator.py",),
    ),
    Mutation(
        name="cache_position",
        bug="tokens fed back while decoding stand one position too far right",
        file="modeling_magnet/decoding_magnet.py",
        text="self.mask.starts[:num_rows] + step,",
        replacement="self.mask.starts[:num_rows] + step + 1,",
        # The first needs models that not every machine has.
        tests=("tests/modeling_magnet/test_infilling_magnet.py", "tests/modeling_magnet/test_families_magnet.py"),
    ),
    Mutation(
        name="seed_ignored",
        bug="runs with different seeds corrupt rows alike",
        file="trainer/corruption.py",
        text="for number in (seed, epoch, row_id):",
        replacement="for number in (0, epoch, row_id):",
        tests=("tests/trainer/test_corruption.py",),
    ),
    Mutation(
        name="adapter_not_merged",
        bug="a checkpoint saved with `merge_adapter=True` has the weights of the base",
        file="modeling_magnet/merging_magnet.py",
        text="layer.merge(safe_merge=True)",
        replacement="layer.merge(safe_merge=True, adapter_names=[])",
        tests=("tests/modeling_magnet/test_merging_magnet.py",),
    ),
    Mutation(
        name="prompt_dropped",
        bug="texts are encoded without their prompt",
        file="modeling_magnet/encoding_magnet.py",
        text="[texts[index] for index in chosen],\n                    prompt=prompt,",
        replacement="[texts[index] for index in chosen],\n                    prompt=None,",
        tests=("tests/modeling_magnet/test_encoding_magnet.py",),
    ),
)


def apply_mutation(mutation: Mutation, repository: Path) -> str:
    """The source of the mutation's file with the bug in it; nothing is written.

    Raises:
        ValueError: the text is not there exactly once.
    """
    file = repository / mutation.file
    source = file.read_text(encoding="utf-8") if file.is_file() else ""
    if (number := source.count(mutation.text)) != 1:
        raise ValueError(
            f"its text occurs {number} times in {mutation.file}, expected once; give the mutation the text that the "
            f"file has now: {mutation.text}"
        )
    return source.replace(mutation.text, mutation.replacement)


@contextmanager
def copy_of(repository: Path) -> Iterator[Path]:
    """A copy of the tracked files as they are now, in a temporary folder, with `../shared` beside it if there is one.

    Raises:
        ValueError: no checkout of git.
    """
    listed = subprocess.run(["git", "-C", str(repository), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        raise ValueError(f"git lists no files of {repository}; run this in a checkout. {listed.stderr.strip()}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        for name in filter(None, listed.stdout.split("\0")):
            if (repository / name).is_file():  # else it was deleted and not yet committed
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(repository / name, copy / name)
        shared = repository.parent / "shared"
        if shared.is_dir():
            (copy.parent / "shared").symlink_to(shared.resolve(), target_is_directory=True)
        yield copy


def run_tests(copy: Path, tests: Sequence[str]) -> Outcome:
    """Run test files of a copy, which imports its own packages, up to the first test that fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    paths = [str(copy), *filter(None, [environment.get("PYTHONPATH")])]
    options = ["-x", "-q", "-rfE", "--color=no", "-p", "no:cacheprovider"]
    start = time.monotonic()
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=copy,
            env={"OMP_NUM_THREADS": "1", **environment, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, TIMEOUT, complaint=f"the tests did not end in {TIMEOUT} seconds; name quicker ones")
    seconds = time.monotonic() - start
    found = _FAILED.search(ended.stdout)
    if ended.returncode == 1 and found:
        return Outcome(found[1], seconds)
    last = (ended.stdout.splitlines() or ["no output"])[-1].strip("= ")
    if ended.returncode == 0:
        told = f"none of {' '.join(tests)} caught it ({last}); add a test that does"
        return Outcome(None, seconds, passed=True, complaint=told)
    # A file that cannot be imported shows that the mutation is no bug but a crash.
    told = f"{' '.join(tests)} could not run; try them by hand:\n{ended.stdout[-2000:]}"
    return Outcome(None, seconds, complaint=told)


def try_mutation(mutation: Mutation, repository: Path = REPOSITORY) -> Outcome:
    """Put a bug into a copy of the repository and run its tests there."""
    try:
        source = apply_mutation(mutation, repository)
    except ValueError as error:
        return Outcome(None, 0.0, complaint=str(error))
    with copy_of(repository) as copy:
        (copy / mutation.file).write_text(source, encoding="utf-8")
        return run_tests(copy, mutation.tests)


def table(outcomes: dict[str, Outcome]) -> str:
    """The outcomes as lines of text: mutation, caught by, seconds."""
    rows = [("mutation", "caught by", "seconds")]
    rows += [(name, run.failed or "NOT CAUGHT", f"{run.seconds:.0f}") for name, run in outcomes.items()]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:{first}}  {by:{second}}  {seconds:>7}" for name, by, seconds in rows)


def parse_arguments(arguments: list[str] | None, *, names: Sequence[str]) -> argparse.Namespace:
    """The options; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="mutations to try; see --list")
    parser.add_argument("--list", action="store_true", help="print the mutations and end")
    parser.add_argument("--no_baseline", action="store_true", help="do not try the tests on an unchanged copy first")
    return parser.parse_args(arguments)


def main(
    arguments: list[str] | None = None, *, mutations: Sequence[Mutation] = MUTATIONS, repository: Path = REPOSITORY
) -> int:
    """Try the mutations and print what caught each; returns the exit status."""
    args = parse_arguments(arguments, names=[mutation.name for mutation in mutations])
    chosen = [mutation for mutation in mutations if args.only is None or mutation.name in args.only]
    if args.list:
        print("\n".join(f"{mutation.name:28} {mutation.file:36} {mutation.bug}" for mutation in chosen))
        return 0
    if not args.no_baseline:
        tests = list(dict.fromkeys(file for mutation in chosen for file in mutation.tests))
        print(f"unchanged: {len(tests)} test files", end=" ... ", flush=True)
        with copy_of(repository) as copy:
            run = run_tests(copy, tests)
        if not run.passed:
            print("FAILED")
            told = f"{run.failed} fails" if run.failed else run.complaint
            print(f"Without a bug, {told}; mend that first.", file=sys.stderr)
            return 1
        print(f"pass, {run.seconds:.0f} s", flush=True)
    outcomes: dict[str, Outcome] = {}
    for number, mutation in enumerate(chosen, 1):
        print(f"{number}/{len(chosen)} {mutation.name}: {mutation.bug}", end=" ... ", flush=True)
        run = outcomes[mutation.name] = try_mutation(mutation, repository)
        print(f"{'caught' if run.failed else 'NOT CAUGHT'}, {run.seconds:.0f} s", flush=True)
    print(f"\n{table(outcomes)}")
    missed = {name: run.complaint for name, run in outcomes.items() if run.failed is None}
    for name, complaint in missed.items():
        print(f"\n{name}: {complaint}.", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
