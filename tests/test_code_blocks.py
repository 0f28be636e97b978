"""Test that every code block in pages and docstrings runs, or names existing scripts and options."""

import ast
import contextlib
import doctest
import functools
import importlib
import inspect
import io
import json
import re
import shlex
import subprocess
import sys

import pytest
from markdown_it import MarkdownIt

from trainer import LoraArguments, MagnetTrainingArguments

from .conftest import REPOSITORY
from .test_architecture import EXAMPLES as SCRIPTS
from .test_architecture import PACKAGE_FILES, parse
from .test_architecture import relative as name_of

EXAMPLES = REPOSITORY / "examples"
PAGES = sorted([*REPOSITORY.glob("*.md"), *EXAMPLES.rglob("*.md"), *EXAMPLES.glob("*.ipynb")])
SOURCES = [*PACKAGE_FILES, *SCRIPTS]
# Other programs, whose options are not checked.
PROGRAMS = {"pip", "pre-commit", "lm_eval", ".", "pytest", "venv", "pip-audit"}


def text_of(page):
    """Return a page as Markdown; of a notebook, the text between its code cells, which are tested elsewhere."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def blocks_of(text):
    """Return language and content of each block (`None` for an indented one), and inline code."""
    tokens = MarkdownIt().enable("table").parse(text)
    found = [(token.info.strip() if token.type == "fence" else None, token.content)
             for token in tokens if token.type in ("fence", "code_block")]  # fmt: skip
    spans = [child.content for token in tokens for child in token.children or () if child.type == "code_inline"]
    return found, spans


def docstrings_of(file):
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (found := ast.get_docstring(node)):
            yield found


def commands_of(text):
    """Yield the words of each command of a shell script."""
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).returncode == 0, text
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield words
                words = []


def check_command(words):
    """Check that a command names an existing script and its options, or another program."""
    words = words[1:] if re.fullmatch(r"[A-Z_]+=\S*", words[0]) else words
    if words[:2] == ["python", "-m"]:
        words = words[2:]
        if words[0].startswith("tests."):
            return check_options(REPOSITORY / f"{words[0].replace('.', '/')}.py", words[1:])
    if words[0] in PROGRAMS:
        return
    assert words[0] in ("python", "torchrun", "accelerate"), words
    place = next(place for place, word in enumerate(words) if word.endswith(".py"))
    check_options(REPOSITORY / words[place], words[place + 1 :])


def check_options(script, options):
    """Parse the options before `--help` with the script, and look for them in the help."""
    assert script.is_file(), script
    if options[:1] and options[0].endswith(".json") and not (REPOSITORY / options[0]).is_file():
        options = options[1:]  # a recipe of the reader's own
    module = importlib.import_module(name_of(script).removesuffix(".py").replace("/", "."))
    output, complaint, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [script.name, *options, "--help"]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(complaint):
            module.main()
    except SystemExit as end:
        assert end.code == 0, f"{script.name} {options}: {complaint.getvalue()}"
    finally:
        sys.argv = argv
    known = set(re.findall(r"(?<![\w-])--\w+", output.getvalue()))
    asked = {option.partition("=")[0] for option in options if option.startswith("--")}
    assert known and asked <= known, f"{script.name} has no {asked - known}"


@functools.cache
def options_of_scripts():
    """Return the names of all options: of parsers, and of the dataclasses that `adapt.py` converts to options."""
    source = "\n".join(file.read_text(encoding="utf-8") for file in SCRIPTS)
    written = re.findall(r'"--(\w+)"', source) + re.findall(r"^    (\w+): ", source, flags=re.MULTILINE)
    return {*written, *MagnetTrainingArguments.__dataclass_fields__, *LoraArguments.__dataclass_fields__}


# ---- Pages ----


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_contain_no_untested_block(page, monkeypatch):
    """The Python of the README and of the guides is run by `test_documentation.py`; no other page has any."""
    monkeypatch.chdir(REPOSITORY)
    text = text_of(page)
    blocks, spans = blocks_of(text)
    assert {language for language, _ in blocks} <= {"bash", "python", "text"}
    python = [content for language, content in blocks if language == "python"]
    run = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert python == (run if name_of(page) in ("README.md", "examples/README.md") else [])
    for language, content in blocks:
        if language == "bash":
            for words in commands_of(content):
                check_command(words)
    for span in spans:
        if re.match(r"(python|torchrun|accelerate launch) ", span):
            for words in commands_of(span):
                check_command(words)
        elif found := re.match(r"(\S+\.py) -", span):
            (script,) = (REPOSITORY / "examples").rglob(found[1].removeprefix("examples/"))
            check_options(script, shlex.split(span)[1:])
        elif found := re.match(r"--([a-z]+_\w+)", span):
            assert found[1] in options_of_scripts() | {"nproc_per_node", "config_file"}, span


# ---- Docstrings ----


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_docstrings_contain_no_untested_block(file, monkeypatch):
    """Pytest runs the examples of the packages, and the next test those of the scripts; the rest are commands."""
    monkeypatch.chdir(REPOSITORY)
    for docstring in docstrings_of(file):
        blocks, _ = blocks_of(docstring)
        for _, content in blocks:
            if not content.lstrip().startswith(">>> "):
                assert file.is_relative_to(REPOSITORY / "examples"), content
                for words in commands_of(content):
                    check_command(words)
        for section in re.findall(r"^Examples?:\n((?: +.*(?:\n|$)|\n)*)", docstring, flags=re.MULTILINE):
            assert ">>> " in section, section


@pytest.mark.parametrize("file", [file for file in SCRIPTS if ">>> " in file.read_text(encoding="utf-8")], ids=name_of)
def test_doctests_of_scripts_pass(file):
    module = importlib.import_module(name_of(file).removesuffix(".py").replace("/", "."))
    outcome = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.failed == 0
    written = sum(len(doctest.DocTestParser().get_examples(inspect.cleandoc(one))) for one in docstrings_of(file))
    assert outcome.attempted == written > 0
