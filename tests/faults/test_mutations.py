"""The deliberate bugs fit the source as it is now, and one that no test catches is reported."""

import shutil
import subprocess

import pytest

from .mutations import MUTATIONS, REPOSITORY, Mutation, apply_mutation, copy_of, main

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
    """A checkout of two files, and one that git was not told of."""
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


# ---- The list ----


def test_there_are_ten_and_each_has_a_name_of_its_own():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) == 10


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_a_mutation_fits_the_source_and_is_a_program(mutation):
    source = apply_mutation(mutation, REPOSITORY)
    assert source != (REPOSITORY / mutation.file).read_text(encoding="utf-8")
    compile(source, mutation.file, "exec")
    assert mutation.bug and mutation.tests
    assert all((REPOSITORY / file).is_file() for file in mutation.tests)


def test_a_text_that_is_there_twice_is_refused(repository):
    with pytest.raises(ValueError, match="occurs 2 times in adding.py, expected once"):
        apply_mutation(CAUGHT._replace(text="sum"), repository)


# ---- The script ----


def test_what_no_test_catches_is_reported(repository, capsys):
    assert main([], mutations=[CAUGHT, HARMLESS, STALE], repository=repository) == 1
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.split("\n\n")[1].splitlines()]
    assert [row[:-1] for row in rows] == [
        ["mutation", "caught", "by"],
        ["lost", "test_adding.py::test_two_numbers"],
        ["reworded", "NOT", "CAUGHT"],
        ["stale", "NOT", "CAUGHT"],
    ]
    assert "reworded: none of test_adding.py caught it (2 passed in" in printed.err
    assert "stale: its text occurs 0 times in adding.py" in printed.err
    assert "lost" not in printed.err
    assert (repository / "adding.py").read_text() == ADDING, "only copies are changed"


def test_what_is_caught_is_a_success_and_a_crash_is_not(repository, capsys):
    options = ["--no_baseline", "--only"]
    assert main([*options, "lost"], mutations=[CAUGHT, CRASH], repository=repository) == 0
    assert "unchanged" not in capsys.readouterr().out
    assert main([*options, "crash"], mutations=[CAUGHT, CRASH], repository=repository) == 1
    assert "crash: test_adding.py could not run; try them by hand" in capsys.readouterr().err


def test_tests_that_fail_anyway_prove_nothing(repository, capsys):
    (repository / "adding.py").write_text(ADDING.replace("START = 0", "START = 1"))
    assert main([], mutations=[CAUGHT], repository=repository) == 1
    printed = capsys.readouterr()
    assert "Without a bug, test_adding.py::test_nothing_is_zero fails; mend that first." in printed.err
    assert "lost" not in printed.out


def test_the_copy_is_of_tracked_files_and_reaches_what_is_shared(repository):
    (repository.parent / "shared").mkdir()
    (repository.parent / "shared" / "model").write_text("weights")
    with copy_of(repository) as copy:
        assert sorted(file.name for file in copy.iterdir()) == ["adding.py", "test_adding.py"]
        assert (copy / "../shared/model").read_text() == "weights"
    assert (repository.parent / "shared" / "model").exists() and not copy.exists()


def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    with pytest.raises(ValueError, match="run this in a checkout"), copy_of(tmp_path):
        pass


def test_names_are_listed_and_others_refused(capsys):
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [one.name for one in MUTATIONS]
    with pytest.raises(SystemExit):
        main(["--only", "typo"])
    assert "choose from" in capsys.readouterr().err
