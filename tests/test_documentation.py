"""Test the documentation: pages run, name existing files, and explain everything public.

Pytest itself runs the examples in docstrings (`--doctest-modules`); `test_code_blocks.py` checks that no block is left
out, and `test_reference.py` that every parameter is explained.
"""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import modeling_magnet
import trainer
from examples import reference
from examples.adapt import main

from .conftest import REPOSITORY
from .examples.tiny_run import WORDS, save_plain_llama, tiny_options

README, GUIDES, CONTRIBUTING = (
    (REPOSITORY / page).read_text(encoding="utf-8") for page in ("README.md", "examples/README.md", "CONTRIBUTING.md")
)
# Files that a page names and that exist only after a run.
WRITTEN_BY_RUNS = {"adapt.json", "NAME.json", "config.json"}
MODULES = sorted(
    f"{package.__name__}.{module.name}"
    for package in (modeling_magnet, trainer)
    for module in pkgutil.iter_modules(package.__path__)
)


def blocks(language: str, page: str) -> list[str]:
    """Return a page's fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_of_pages_run_on_an_adapted_model(tmp_path, monkeypatch, capsys, tiny_tokenizer):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    base = save_plain_llama(tmp_path / "path/to/llama", tiny_tokenizer)
    main([*tiny_options(tmp_path, model=base), "--output_dir=outputs/mine"])
    Path("corpus.txt").write_text("\n".join([" ".join(WORDS * 2)] * 8) + "\n")
    capsys.readouterr()

    page: dict[str, object] = {}
    for block in [*blocks("python", README), *blocks("python", GUIDES)]:
        exec(compile(block, "README.md", "exec"), page)

    printed = capsys.readouterr().out
    assert re.search(r"^She ate the apple.* for lunch\.$", printed, flags=re.MULTILINE | re.DOTALL)
    assert page["vectors"].shape == (3, 16)
    assert page["words"].shape == (3, 16)
    assert len(page["fills"]) == 2
    agreement = page["embedder"].encode(page["texts"], normalize_embeddings=True) - page["vectors"]
    assert abs(agreement).max() < 1e-5
    assert Path("outputs/by_hand/config.json").exists()


def test_readme_commands_set_themselves_up_in_one_line():
    """`.ci/run` takes the second from the page."""
    set_up = "python -m venv --upgrade-deps .venv && . .venv/bin/activate && pip install -c constraints.txt -e '.["
    quickstart, tests = [line for line in README.splitlines() if line.startswith(set_up)]
    assert "examples/quickstart.py" in quickstart and "pytest" in tests


def test_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_map_names_existing_files():
    folders = {0: ""}
    for line in blocks("text", CONTRIBUTING)[0].splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        assert (REPOSITORY / (folders[depth] + name)).exists(), folders[depth] + name
        if name.endswith("/"):
            folders[depth + 1] = folders[depth] + name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "examples/README.md"])
def test_files_and_folders_named_in_pages_exist(page):
    """Search names in every folder, because a sentence may omit the folder that it is about."""
    existing = {f"/{path.relative_to(REPOSITORY)}" for path in REPOSITORY.rglob("*") if ".git" not in path.parts}
    existing |= {f"{path}/" for path in existing if (REPOSITORY / path[1:]).is_dir()}
    text = re.sub(r"^```.*?^```$", "", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(r"`([\w./-]+(?:\.(?:py|ipynb|txt|cfg|lock|json|yaml|js)|/))`", text):
        known = name in WRITTEN_BY_RUNS or any(path.endswith(f"/{name.removeprefix('../')}") for path in existing)
        assert known, f"{page} names {name}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "SECURITY.md"])
def test_relative_links_resolve(page):
    path = REPOSITORY / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_examples_table_lists_every_script_and_recipe():
    scripts = [path for path in REPOSITORY.glob("examples/**/*.py") if "__main__" in path.read_text(encoding="utf-8")]
    for path in [*REPOSITORY.glob("examples/configs/*.json"), *scripts]:
        assert f"`{path.relative_to(REPOSITORY / 'examples')}`" in GUIDES


@pytest.mark.parametrize("name", [*MODULES, "modeling_magnet", "trainer"])
def test_public_names_are_documented(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    silent = []
    for public, member in reference.public_names(module).items():
        parts = {public: member}
        if inspect.isclass(member):
            parts |= {f"{public}.{key}": value for key, value in vars(member).items() if not key.startswith("_")}
        for key, part in parts.items():
            part = part.fget if isinstance(part, property) else inspect.unwrap(getattr(part, "__func__", part))
            if inspect.isclass(part) or inspect.isfunction(part):
                text = (part.__doc__ or "").strip()
                # A dataclass without a docstring gets its signature as docstring.
                silent += [key] if not text or text.startswith(f"{part.__name__}(") else []
    assert not silent


def test_training_arguments_have_help_texts():
    fields = trainer.MagnetTrainingArguments.__dataclass_fields__
    own = trainer.MagnetTrainingArguments.__annotations__
    assert [name for name in own if not fields[name].metadata["help"].endswith((".", ")"))] == []
