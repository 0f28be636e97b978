"""Test the layout of `examples/`: few top-level scripts, and folders of parts that do not import each other."""

import ast

from ..conftest import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def test_examples_has_at_most_eight_scripts():
    assert sum("__main__" in file.read_text(encoding="utf-8") for file in EXAMPLES.glob("*.py")) <= 8


def test_folders_do_not_import_each_other():
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    for file in EXAMPLES.glob("*/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("examples."):
                other = str(node.module).split(".")[1]
                assert other not in folders - {file.relative_to(EXAMPLES).parts[0]}, f"{file} imports {node.module}"
