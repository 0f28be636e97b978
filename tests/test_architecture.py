"""Test rules about the source: the direction of imports, and what the Hub can resolve."""

import ast
import configparser
import functools
import re
import sys
from graphlib import TopologicalSorter

import pytest

from .conftest import REPOSITORY

HUB_FILES = sorted(file for file in (REPOSITORY / "modeling_magnet").glob("*.py") if file.name != "__init__.py")
PACKAGE_FILES = sorted(
    file for folder in ("modeling_magnet", "trainer") for file in (REPOSITORY / folder).rglob("*.py")
)
EXAMPLES = sorted((REPOSITORY / "examples").rglob("*.py"))
OURS = {"modeling_magnet", "trainer", "examples", "tests"}
# Packages that a user of the Hub copy has; transformers itself requires the last three.
HUB_REQUIREMENTS = {"torch", "transformers", "numpy", "safetensors", "huggingface_hub"}
MAY_IMPORT = {"modeling_magnet": {"modeling_magnet"}, "trainer": {"trainer", "modeling_magnet"}}


def relative(file):
    return str(file.relative_to(REPOSITORY))


@functools.cache
def parse(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def absolute_imports(file, *, inside_functions=True):
    """Return the packages of absolute imports; without those inside blocks, what importing the file needs."""
    names = set()
    for node in ast.walk(parse(file)) if inside_functions else parse(file).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).split(".")[0])
    return names


def optional_imports(file):
    """Return imports whose absence is caught; the Hub does not require them."""
    names = set()
    for node in parse(file).body:
        if isinstance(node, ast.Try):
            assert [ast.unparse(handler.type) for handler in node.handlers] == ["ImportError"]
            names |= {alias.name for inner in node.body if isinstance(inner, ast.Import) for alias in inner.names}
            names |= {inner.module.split(".")[0] for inner in node.body if isinstance(inner, ast.ImportFrom)}
    return names


def relative_imports(file):
    return [node for node in ast.walk(parse(file)) if isinstance(node, ast.ImportFrom) and node.level > 0]


@pytest.mark.parametrize("file", PACKAGE_FILES + EXAMPLES, ids=relative)
def test_imports_follow_the_layering(file):
    folder = file.relative_to(REPOSITORY).parts[0]
    allowed = MAY_IMPORT.get(folder, OURS - {"tests"})
    assert absolute_imports(file) & OURS <= allowed


@pytest.mark.parametrize("file", PACKAGE_FILES, ids=relative)
def test_imports_of_a_module_are_requirements(file):
    """Check setup.cfg, because the tests' own environment has more packages than a user's."""
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    required = {re.split("[<>=]", line)[0] for line in settings["options"]["install_requires"].split()} | {"yaml"}
    if file.name == "mteb_encoder.py" or file.parent.name == "metric_modules":  # imported only by name
        required |= {"mteb", "evaluate", "datasets", "sklearn", "seqeval"}
    names = absolute_imports(file, inside_functions=False)
    assert names - set(sys.stdlib_module_names) - OURS <= required


@pytest.mark.parametrize("name", ["corruption", "metrics"])
def test_pure_modules_import_only_torch_and_the_model(name):
    file = REPOSITORY / "trainer" / f"{name}.py"
    assert absolute_imports(file) - set(sys.stdlib_module_names) <= {"torch", "modeling_magnet"}
    assert relative_imports(file) == []


@pytest.mark.parametrize(
    ("folder", "bottom", "top"),
    [("modeling_magnet", "spans_magnet", "families_magnet"), ("trainer", "sources", "magnet_trainer")],
)
def test_modules_of_a_package_form_no_circle(folder, bottom, top):
    imports = {}
    for file in (REPOSITORY / folder).glob("*.py"):
        nodes = [node for node in relative_imports(file) if node.level == 1]
        imports[file.stem] = {alias.name for node in nodes if node.module is None for alias in node.names}
        imports[file.stem] |= {node.module for node in nodes if node.module}
    order = list(TopologicalSorter(imports).static_order())
    assert order.index(bottom) < order.index(top)


@pytest.mark.parametrize("file", HUB_FILES, ids=relative)
def test_hub_resolves_every_import(file):
    outside = absolute_imports(file) - set(sys.stdlib_module_names) - optional_imports(file)
    assert outside <= HUB_REQUIREMENTS, "each would become a requirement of the Hub copy"
    assert optional_imports(file) <= {"fcntl", "modeling_magnet", "peft"}
    for node in relative_imports(file):
        assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
        assert (file.parent / f"{node.module}.py").is_file(), ast.unparse(node)


@pytest.mark.parametrize("file", HUB_FILES, ids=relative)
def test_docstrings_contain_nothing_like_a_relative_import(file):
    """Check docstrings, because transformers finds relative imports by a regular expression over the whole file."""
    text = file.read_text(encoding="utf-8")
    found = re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE)
    found += re.findall(r"^\s*import\s+\.(\S+)\s*$", text, flags=re.MULTILINE)
    assert sorted(found) == sorted(node.module for node in relative_imports(file))
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"^\s*(from|import)\s+\.", node.value, flags=re.MULTILINE)


def test_remote_files_have_distinct_names():
    assert all(file.stem.endswith("_magnet") for file in HUB_FILES)


def test_modules_below_the_model_do_not_import_it():
    for file in HUB_FILES:
        if file.name not in ("modeling_magnet.py", "families_magnet.py"):
            assert "modeling_magnet" not in {node.module for node in relative_imports(file)}, file.name
