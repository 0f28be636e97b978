"""Test that the mutations fit the current source, and that an uncaught mutation is reported."""

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


@pytest.fixture
def repository(tmp_path):
    """Return a checkout of two files and an untracked file."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "adding.py").write_text(ADDING)
    (folder / "test_adding.py").write_text(TESTS)
    subprocess.run("git init -q && git add .", shell=True, cwd=folder, check=True)
    (folder / "conftest.py").write_text("raise RuntimeError('not tracked')\n")
    return folder


def test_there_are_ten_mutations():
    assert len({mutation.name for mutation in MUTATIONS}) == 10


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_mutation_fits_the_source_and_compiles(mutation):
    compile(apply_mutation(mutation, REPOSITORY), mutation.file, "exec")
    assert mutation.text != mutation.replacement and mutation.tests
    assert all((REPOSITORY / file).is_file() for file in mutation.tests)


def test_uncaught_mutation_is_reported_and_only_copies_change(repository, capsys):
    assert main(["--no_baseline"], mutations=[CAUGHT, HARMLESS, CRASH], repository=repository) == 1
    lost, reworded, *_, crash = [
        line for line in capsys.readouterr().out.splitlines() if ": a number is lost: " in line
    ]
    assert "test_adding.py::test_two_numbers" in lost and "NOT CAUGHT" in reworded and "NOT CAUGHT" in crash
    assert (repository / "adding.py").read_text() == ADDING


def test_failing_tests_are_not_counted_as_proof(repository, capsys):
    (repository / "adding.py").write_text(ADDING.replace("START = 0", "START = 1"))
    assert main([], mutations=[CAUGHT], repository=repository) == 1
    assert "test_adding.py::test_nothing_is_zero" in capsys.readouterr().err
