"""Test the reference: every public name and parameter is explained, and the pages build without warnings."""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
import tempfile

import pytest

import modeling_magnet
import trainer
from examples import reference

PACKAGES = (modeling_magnet, trainer)
OURS = {package.__name__ for package in PACKAGES}


def documented(docstring):
    """Return the names before a colon, or before a type in brackets, under `Args:`."""
    section = re.search(r"^Args:\n((?: +.*\n|\n)*)", inspect.cleandoc(docstring or "") + "\n", flags=re.MULTILINE)
    entries = re.findall(r"^ {4}(\w[\w, ]*?)(?: \(.*|:.*)$", section[1] if section else "", flags=re.MULTILINE)
    return {name.strip() for entry in entries for name in entry.split(",")}


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def is_ours(cls):
    return cls.__module__.split(".")[0] in OURS


def own_methods(cls):
    """Yield the public methods of a class and of our mixins; parameters of stock methods are explained there."""
    for owner in filter(is_ours, cls.__mro__):
        for name, member in vars(owner).items():
            is_static = isinstance(member, staticmethod)
            member = inspect.unwrap(getattr(member, "__func__", member))
            if name.startswith("_") or not inspect.isfunction(member):
                continue
            stock = [vars(base)[name] for base in cls.__mro__ if not is_ours(base) and name in vars(base)]
            theirs = {"args", "kwargs"} if stock else set()
            for method in stock:
                theirs |= set(parameters(inspect.unwrap(getattr(method, "__func__", method))))
            own = list(inspect.signature(member).parameters)[0 if is_static else 1 :]
            yield f"{owner.__name__}.{name}", member.__doc__, [one for one in own if one not in theirs]


def constructor(cls):
    """Return what the docstring of a class has to explain."""
    if dataclasses.is_dataclass(cls):
        own = [one for one in dataclasses.fields(cls) if one.name in vars(cls)["__annotations__"]]
        return [one.name for one in own if one.init and not one.name.startswith("_") and "help" not in one.metadata]
    return parameters(cls.__init__) if "__init__" in vars(cls) else []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_parameters_of_public_names_are_documented(package):
    asked, silent = 0, []
    for name in package.__all__:
        member = getattr(package, name)
        parts = []
        if inspect.isfunction(member):
            parts = [(name, member.__doc__, parameters(member))]
        elif inspect.isclass(member) and member is not modeling_magnet.MagnetMixin:  # defined by its subclasses
            parts = [(name, member.__doc__, constructor(member)), *own_methods(member)]
        for label, docstring, needed in parts:
            asked += len(needed)
            explained = documented(docstring) | set(re.findall(r"\w+", docstring or ""))
            silent += [f"{label}: {name}" for name in needed if name not in explained]
    assert asked > 30
    assert not silent, "\n".join(sorted(set(silent)))


@pytest.mark.parametrize("package", ["modeling_magnet", "trainer", "trainer.metric_modules"])
def test_public_constants_are_documented(package):
    module = importlib.import_module(package)
    explained = set()
    for file in (reference.REPOSITORY / package.replace(".", "/")).glob("*.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        for statement, behind in zip(body, body[1:], strict=False):
            is_text = isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
            if isinstance(statement, ast.Assign | ast.AnnAssign) and is_text:
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                explained |= {ast.unparse(target) for target in targets}
    assert {name for name in module.__all__ if not callable(getattr(module, name))} <= explained


# ---- The pages ----


def test_pdoc_warnings_and_local_paths_fail_the_reference(tmp_path, monkeypatch):
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    monkeypatch.syspath_prepend(tmp_path)
    # Below a folder: pdoc hides what is also the value of an environment variable.
    below = os.path.join(tempfile.gettempdir(), "somewhere")
    for name, line in (("an_unknown_type", "def speak(to: 'Nobody'): ..."), ("a_folder", f"PLACE = {below!r}")):
        (tmp_path / f"{name}.py").write_text(f'"""A module."""\n\n{line}\n')
        monkeypatch.setattr(reference, "documented_modules", lambda name=name: [importlib.import_module(name)])
        with pytest.raises((UserWarning, ValueError), match="Nobody" if "type" in name else "a_folder.html names"):
            reference.write_reference(tmp_path / "pages" / name)


@pytest.mark.long
def test_reference_pages_contain_every_public_docstring(tmp_path):
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    # A separate process, because the script changes docstrings.
    command = [sys.executable, str(reference.REPOSITORY / "examples" / "reference.py"), f"--output_dir={tmp_path}"]
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    assert last.startswith("reference: OK")
    for module in reference.documented_modules():
        page = (tmp_path / f"{module.__name__.replace('.', '/')}.html").read_text(encoding="utf-8")
        for name, member in reference.public_names(module).items():
            if inspect.ismodule(member):
                continue
            (section,) = re.findall(rf'<section id="{name}">.*?</section>', page, flags=re.DOTALL)
            if inspect.isclass(member) or inspect.isfunction(member):
                assert 'class="docstring"' in section, f"{module.__name__}.{name}"
    arguments = (tmp_path / "trainer" / "training_args.html").read_text(encoding="utf-8")
    assert arguments.count("Rows per device and micro-batch.") == 1
    assert "<strong>path (<code>str</code>):</strong>" in (tmp_path / "modeling_magnet.html").read_text()
