"""Deliberate bugs, each of which the ordinary tests have to catch: tests that pass in spite of a bug prove nothing.

    python tests/faults/mutations.py
    python tests/faults/mutations.py --only seed_ignored prompt_dropped --no_baseline

The tests nearest to the bugs run once on a copy of the tracked files. Then each bug is put into a copy of its own, and
its tests run there until the first fails; the working tree is never touched. A bug that no test catches makes the exit
status 1.
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
    """Describe a bug as a change of the source."""

    name: str
    bug: str  # the wrong behavior
    file: str
    text: str  # occurs exactly once in the file
    replacement: str
    caught_by: tuple[str, ...] = ()  # by default the test file of the same name

    @property
    def tests(self) -> tuple[str, ...]:
        """Return the nearest test files, which have to catch the bug."""
        return self.caught_by or (re.sub(r"^(.*/)", r"tests/\1test_", self.file),)


MUTATIONS = (
    Mutation(
        name="mask_transposed",
        bug="in a forward over whole rows, keys see queries",
        file="modeling_magnet/masking_magnet.py",
        text="return allowed[:, None]  # (B, 1, Q, KV)",
        replacement="return (allowed.mT if allowed.shape[1] == allowed.shape[2] else allowed)[:, None]",
    ),
    Mutation(
        name="mntp_shift",
        bug="masked tokens are predicted two positions earlier",
        file="trainer/corruption.py",
        text="labels[:-1] = torch.where(is_target, input_ids, IGNORE_INDEX)[1:]",
        replacement="labels[:-2] = torch.where(is_target, input_ids, IGNORE_INDEX)[2:]",
    ),
    Mutation(
        name="span_seen_by_context",
        bug="context tokens see the spans that they are to be independent of",
        file="modeling_magnet/masking_magnet.py",
        text="allowed |= (segment_ids == 0)[:, None, :]",
        replacement="allowed |= (segment_ids == 0)[:, None, :] | (query_segments == 0)[:, :, None]",
    ),
    Mutation(
        name="padding_seen",
        bug="tokens attend to padding",
        file="modeling_magnet/masking_magnet.py",
        text="allowed &= attention_mask.bool()[:, None, :]",
        replacement="pass",
    ),
    Mutation(
        name="loss_scaled_by_accumulation",
        bug="a window is the mean of its micro-batches' means, however many labels each has",
        file="trainer/magnet_trainer.py",
        text="num_items = num_items_in_batch if isinstance(num_items_in_batch, Tensor) else self._count(inputs)",
        replacement="num_items = self._count(inputs) * self._num_micro_batches",
    ),
    Mutation(
        name="pairs_shuffled",
        bug="an anchor's positive is that of the next pair",
        file="trainer/data_collator.py",
        text='[row["anchor"] for row in rows] + [row["positive"] for row in rows]',
        replacement='[row["anchor"] for row in rows] + [row["positive"] for row in [*rows[1:], *rows[:1]]]',
    ),
    Mutation(
        name="cache_position",
        bug="tokens fed back while decoding stand one position too far right",
        file="modeling_magnet/decoding_magnet.py",
        text="position_ids=self.starts[:num_rows] + step,",
        replacement="position_ids=self.starts[:num_rows] + step + 1,",
        # The first test file needs models that may be missing on a machine.
        caught_by=("tests/modeling_magnet/test_infilling_magnet.py", "tests/modeling_magnet/test_families_magnet.py"),
    ),
    Mutation(
        name="seed_ignored",
        bug="runs with different seeds corrupt rows alike",
        file="trainer/samplers.py",
        text="for number in (seed, epoch, row_id):",
        replacement="for number in (0, epoch, row_id):",
    ),
    Mutation(
        name="adapter_not_merged",
        bug="a checkpoint saved with `merge_adapter=True` has the weights of the base",
        file="modeling_magnet/publishing/merging.py",
        text="layer.merge(safe_merge=True)",
        replacement="layer.merge(safe_merge=True, adapter_names=[])",
    ),
    Mutation(
        name="prompt_dropped",
        bug="texts are encoded without their prompt",
        file="modeling_magnet/encoding_magnet.py",
        text="self.tokenizer, texts, **self.reading)",
        replacement="self.tokenizer, texts, **{**self.reading, 'prompt': None})",
    ),
)


def apply_mutation(mutation: Mutation, repository: Path) -> str:
    """Return the source of the mutation's file with the bug in it; nothing is written."""
    source = (repository / mutation.file).read_text(encoding="utf-8")
    if (number := source.count(mutation.text)) != 1:
        raise ValueError(f"its text occurs {number} times in {mutation.file}, expected once: {mutation.text}")
    return source.replace(mutation.text, mutation.replacement)


@contextmanager
def copy_of(repository: Path) -> Iterator[Path]:
    """Copy the current tracked files to a temporary folder, with `../shared` beside it if it exists."""
    command = ["git", "-C", str(repository), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        for name in filter(None, listed.split("\0")):
            if (repository / name).is_file():  # otherwise it was deleted and not yet committed
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(repository / name, copy / name)
        if (shared := repository.parent / "shared").is_dir():
            (copy.parent / "shared").symlink_to(shared.resolve(), target_is_directory=True)
        yield copy


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[str | None, str]:
    """Run test files of a copy, which imports its own packages, up to the first failing test.

    Returns:
        `tuple[str | None, str]`: node id of that test, or `None`; and the last lines of pytest.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(copy), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--color=no", "-p", "no:cacheprovider", *tests]
    try:
        ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return None, f"the tests did not end in {TIMEOUT} seconds"
    # With another exit status a file cannot be imported: the mutation is a crash, which proves nothing.
    found = _FAILED.search(ended.stdout) if ended.returncode == 1 else None
    return (found[1] if found else None), (ended.stdout + ended.stderr).strip("\n= ")[-2000:]


def main(
    arguments: list[str] | None = None, *, mutations: Sequence[Mutation] = MUTATIONS, repository: Path = REPOSITORY
) -> int:
    """Try the mutations, print what caught each, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [mutation.name for mutation in mutations]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--no_baseline", action="store_true", help="do not try the tests on an unchanged copy first")
    args = parser.parse_args(arguments)
    chosen = [mutation for mutation in mutations if mutation.name in args.only]
    if not args.no_baseline:
        with copy_of(repository) as copy:
            files = dict.fromkeys(file for mutation in chosen for file in mutation.tests)
            failed, output = run_tests(copy, list(files))
        if failed or "passed" not in output:
            print(f"Without a bug, {failed or output} fails; mend that first.", file=sys.stderr)
            return 1
    missed = 0
    for mutation in chosen:
        began = time.monotonic()
        source = apply_mutation(mutation, repository)
        with copy_of(repository) as copy:
            (copy / mutation.file).write_text(source, encoding="utf-8")
            failed, output = run_tests(copy, mutation.tests)
        outcome = failed or f"NOT CAUGHT, {output}"
        print(f"{mutation.name}: {mutation.bug}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
        missed += failed is None
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
