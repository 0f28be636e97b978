"""Test that the tour runs in a fresh folder, and that the committed outputs come from one clean run."""

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from examples.tour.run_notebook import main, run_notebook
from examples.toy.language import THINGS

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK = REPOSITORY / "examples" / "magnet_tour.ipynb"
LARGEST_FILE = 600_000
# Patterns of local paths: absolute paths of Linux, macOS and Windows, and of any environment.
MACHINE_PATHS = re.compile(
    r"/(home|root|tmp|Users|opt|usr|var|private|mnt)/|[A-Za-z]:\\\\?Users|site-packages|file://"
)


@pytest.fixture(scope="module")
def committed() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_of(notebook, name):
    (cell,) = (cell for cell in notebook.cells if cell.id == name)
    return cell


def printed(cell):
    """Return what a cell printed, and its last value as text."""
    texts = [output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"]
    return "".join([*texts, *(output.data.get("text/plain", "") for output in cell.outputs if "data" in output)])


def shares(text):
    return [float(share) / 100 for share in re.findall(r"(\d+(?:\.\d+)?)\s?%", text)]


def kinds(cell):
    """Return the kinds of visible output; progress and warnings differ between machines."""
    return [
        (output.output_type, output.get("name"), sorted(output.get("data", {})))
        for output in cell.outputs
        if output.get("name") != "stderr"
    ]


def check_story(notebook):
    """Check the results of every run: the filled span, only from both sides, and the separated sentences."""
    assert re.fullmatch(r"tour: OK \(MAGNET \d+%; \d+ s\)\n", printed(cell_of(notebook, "end")))
    fills = printed(cell_of(notebook, "fill")).splitlines()[1:]
    assert fills and all(" kite " in fill for fill in fills)
    left, *_ = shares(printed(cell_of(notebook, "exam-left")))
    (lost,) = shares(printed(cell_of(notebook, "not-adapted")))
    still_left, guess, both, wrong_end = shares(printed(cell_of(notebook, "accuracy")))
    assert guess == pytest.approx(1 / len(THINGS), abs=5e-3)
    assert both >= 0.9 and max(left, lost, still_left, wrong_end) <= 0.2
    before, after, _ = shares(printed(cell_of(notebook, "neighbors-claims")))
    assert after >= 0.4 > 0.1 >= before


# ---- What is committed ----


def test_committed_outputs_come_from_one_complete_run(committed):
    nbformat.validate(committed)
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    results = [(cell.execution_count, output) for cell in cells for output in cell.outputs]
    assert not [output for _, output in results if output.output_type == "error"]
    assert all(output.get("execution_count", count) == count for count, output in results)
    check_story(committed)


def test_committed_notebook_contains_no_machine_details_or_widgets(committed):
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST_FILE
    assert set(committed.metadata) <= {"kernelspec", "language_info"}
    assert committed.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert not any(cell.metadata for cell in committed.cells)  # the places of timings
    for cell in code_cells(committed):
        for output in cell.outputs:
            shown = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
            texts = json.dumps([output.get("text", ""), shown])
            assert not MACHINE_PATHS.search(texts), f"{cell.id}: {texts}"
            assert str(REPOSITORY) not in texts and str(Path.home()) + os.sep not in texts
            assert not any("widget" in kind or "javascript" in kind for kind in shown)
            # Bars that overwrite each other leave their control characters.
            assert "\\u001b" not in texts and "\\r" not in texts, f"{cell.id}: {texts}"


# ---- A run ----


@pytest.fixture
def small(tmp_path) -> Path:
    """Write a notebook that creates a file, a bar and a value."""
    bar = "import sys\nfor step in range(3):\n    sys.stderr.write(f'\\rstep {step}')"
    sources = ["from pathlib import Path\nPath('here.txt').write_text('x')", bar, "40 + 2"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.cells[2].metadata["tags"] = ["noise"]
    nbformat.write(notebook, tmp_path / "small.ipynb")
    return tmp_path / "small.ipynb"


def test_run_keeps_visible_outputs(small, tmp_path, capsys):
    work = tmp_path / "work"
    work.mkdir()
    assert main([str(small), "--folder", str(work), "--output", str(tmp_path / "run.ipynb")]) == 0
    assert re.search(r"^run_notebook: OK \(.*run\.ipynb; \d+ s\)$", capsys.readouterr().out, flags=re.MULTILINE)
    first, second, third = nbformat.read(tmp_path / "run.ipynb", as_version=4).cells
    assert [cell.execution_count for cell in (first, second, third)] == [1, 2, 3]
    assert (work / "here.txt").is_file()
    assert [output.text.strip() for output in second.outputs] == ["step 2"]
    assert printed(third) == "42" and not third.metadata
    assert not nbformat.read(small, as_version=4).cells[2].outputs


def test_failing_cell_is_reported_and_leaves_the_file_unchanged(small, capsys):
    notebook = nbformat.read(small, as_version=4)
    notebook.cells[1].source = "assert 1 > 2, 'no more true'"
    nbformat.write(notebook, small)
    before = small.read_bytes()
    assert main([str(small)]) == 1
    assert "FAILED" in capsys.readouterr().out.splitlines()[-1]
    assert small.read_bytes() == before


@pytest.mark.long
def test_tour_runs_in_a_fresh_folder(tmp_path, committed, monkeypatch):
    """Run from a plain Llama to a filled blank with a kernel of this interpreter and without a network."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "IPYTHONDIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    copy = Path(shutil.copy(NOTEBOOK, tmp_path))
    notebook = run_notebook(copy, folder=tmp_path)

    check_story(notebook)
    assert (tmp_path / "outputs" / "tour" / "magnet" / "model.safetensors").is_file()
    assert {cell.id: kinds(cell) for cell in code_cells(notebook)} == {
        cell.id: kinds(cell) for cell in code_cells(committed)
    }
