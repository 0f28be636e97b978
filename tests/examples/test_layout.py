"""Test the layout of `examples/`: few top-level scripts, and folders of parts that do not import each other."""

import ast

from ..conftest import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def test_examples_has_at_most_eight_scripts():
    assert sum("__main__" in file.read_text(encoding="utf-8") for file in EXAMPLES.glob("*.py")) <= 8


def imports_of(file):
    """Return the modules of `examples` that a file imports from."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    modules = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {module for module in modules if module.startswith("examples.")}


def test_folders_do_not_import_each_other():
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    for file in EXAMPLES.glob("*/**/*.py"):
        others = folders - {file.relative_to(EXAMPLES).parts[0]}
        assert not [module for module in imports_of(file) if module.split(".")[1] in others], file


def test_only_the_report_imports_reporting_which_imports_only_records():
    for file in (EXAMPLES / "evaluate").rglob("*.py"):
        inner = {module for module in imports_of(file) if module.startswith("examples.evaluate.reporting")}
        if file.parent.name == "reporting":
            assert imports_of(file) - inner <= {"examples.evaluate.parts.records"}, file
        else:
            assert not inner or file.name == "report.py", file
