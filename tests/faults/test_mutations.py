"""Test that the mutations fit the current source, and that an uncaught mutation is reported."""

import shutil
import subprocess

import pytest

from .mutations import MUTATIONS, REPOSITORY, Mutation, apply_mutation, main

ADDING = '''"""Sums."""

START = 0  # of every sum


def add(numbers):
    return sum(numbers, START)
'''
TESTS = """from adding import add


def test_nothing_is_zero():
    assert add([]) == 0


def test_two_numbers():
    assert add([1, 2]) == 3
"""
CAUGHT = Mutation("lost", "a number is lost", "adding.py", "sum(numbers,", "sum(numbers[1:],", ("test_adding.py",))
HARMLESS = CAUGHT._replace(name="reworded", text="# of every sum", replacement="# of each sum")
CRASH = CAUGHT._replace(name="crash", text="START = 0", replacement="START = nought")
STALE = CAUGHT._replace(name="stale", text="total(numbers)")


@pytest.fixture
def repository(tmp_path):
    """Return a checkout of two files and an untracked file."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "adding.py").write_text(ADDING)
    (folder / "test_adding.py").write_text(TESTS)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    (folder / "conftest.py").write_text("raise RuntimeError('not tracked')\n")
    return folder


def test_ten_mutations_have_distinct_names():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) == 10


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_mutation_fits_the_source_and_compiles(mutation):
    source = apply_mutation(mutation, REPOSITORY)
    assert source != (REPOSITORY / mutation.file).read_text(encoding="utf-8")
    compile(source, mutation.file, "exec")
    assert mutation.bug and mutation.tests
    assert all((REPOSITORY / file).is_file() for file in mutation.tests)


def test_uncaught_mutation_is_reported_and_only_copies_change(repository, capsys):
    assert main([], mutations=[CAUGHT, HARMLESS, STALE, CRASH], repository=repository) == 1
    unchanged, lost, reworded, stale, crash, *_ = capsys.readouterr().out.splitlines()
    assert unchanged.startswith("unchanged: 2 passed")
    assert "lost" in lost and "test_adding.py::test_two_numbers" in lost
    assert "reworded" in reworded and "NOT CAUGHT, 2 passed" in reworded
    assert "stale" in stale and "NOT CAUGHT" in stale and "0 times in adding.py" in stale
    assert "crash" in crash and "NOT CAUGHT, the tests could not run" in crash
    assert (repository / "adding.py").read_text() == ADDING
    assert main(["--no_baseline", "--only", "lost"], mutations=[CAUGHT, CRASH], repository=repository) == 0


def test_failing_tests_are_not_counted_as_proof(repository, capsys):
    (repository / "adding.py").write_text(ADDING.replace("START = 0", "START = 1"))
    assert main([], mutations=[CAUGHT], repository=repository) == 1
    printed = capsys.readouterr()
    assert "test_adding.py::test_nothing_is_zero" in printed.err and "lost" not in printed.out
