"""What is written about the code is true: the README runs, its tree is the real one, all that is public is explained.

The examples in docstrings are run by pytest itself (`--doctest-modules`); `test_code_blocks.py` sees that no block is
left out.
"""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import modeling_magnet
import trainer
from examples.adapt import main
from examples.adapt_arguments import parse_arguments

from .examples.tiny_run import WORDS, save_plain_llama, tiny_options
from .scripts import run_script

REPOSITORY = Path(__file__).resolve().parents[1]
README, GUIDES, CONTRIBUTING = (
    (REPOSITORY / page).read_text(encoding="utf-8") for page in ("README.md", "examples/README.md", "CONTRIBUTING.md")
)
MODULES = sorted(
    f"{package.__name__}.{module.name}"
    for package in (modeling_magnet, trainer)
    for module in pkgutil.iter_modules(package.__path__)
)


def blocks(language: str, page: str = README) -> list[str]:
    """A page's fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


# ---- Pages ----


def test_the_readme_stays_short():
    """Depth lives in docstrings, the guides and the notebook."""
    assert len(README.splitlines()) <= 150


def test_the_python_of_both_pages_runs_from_top_to_bottom_on_an_adapted_model(
    tmp_path, monkeypatch, capsys, tiny_tokenizer
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    base = save_plain_llama(tmp_path / "path/to/llama", tiny_tokenizer)
    main([*tiny_options(tmp_path, model=base), "--output_dir=outputs/mine"])
    Path("corpus.txt").write_text("\n".join([" ".join(WORDS * 2)] * 8) + "\n")
    capsys.readouterr()

    page: dict[str, object] = {}
    for block in [*blocks("python"), *blocks("python", GUIDES)]:
        exec(compile(block, "README.md", "exec"), page)

    printed = capsys.readouterr().out
    assert re.search(r"^She ate the apple.* for lunch\.$", printed, flags=re.MULTILINE | re.DOTALL)
    assert page["vectors"].shape == (3, 16)
    assert page["words"].shape == (3, 16)
    assert len(page["fills"]) == 2
    agreement = page["embedder"].encode(page["texts"], normalize_embeddings=True) - page["vectors"]
    assert abs(agreement).max() < 1e-5
    assert Path("outputs/by_hand/config.json").exists()


def test_the_tour_takes_some_twenty_lines():
    tour = [line for line in blocks("python")[0].splitlines() if line.strip() and not line.startswith("#")]
    assert len(tour) <= 20


def test_the_two_commands_do_their_own_set_up_on_one_line():
    commands = [block for block in blocks("bash") if "pip install" in block]
    assert len(commands) == 2
    for command in commands:
        set_up = "python -m venv --upgrade-deps .venv && . .venv/bin/activate && pip install -c constraints.txt -e '.["
        assert command.startswith(set_up)
        assert command.count("\n") == 1
    assert "examples/quickstart.py" in commands[0] and "pytest" in commands[1]


def test_the_options_of_adapt_exist():
    (block,) = blocks("bash", README[README.index("## Adapt your own") :])
    assert block in blocks("bash", GUIDES)[-2]
    command = block.replace("\\\n", " ").splitlines()[0]
    adapt, _, training = parse_arguments([*command.split()[2:], "--use_cpu"])
    assert (adapt.pairs, training.view_dropout) == ("dropout", 0.3)
    guide = GUIDES[GUIDES.index("## Adapt your own") : GUIDES.index("## A family")]
    for option in set(re.findall(r"--([a-z]+(?:_[a-z]+)+)", guide)) - {"nproc_per_node", "config_file"}:
        assert any(option in vars(part) for part in parse_arguments(["--model_name_or_path=m", "--train_texts=t"])), (
            option
        )


def test_the_tree_names_files_that_exist():
    (tree,) = blocks("text", CONTRIBUTING)
    folders, listed = {0: ""}, set()
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        assert len(line.split()) > 1, f"{name} has no clause"
        if name.endswith("/"):
            folders[depth + 1] = folders[depth] + name
        else:
            listed.add(folders[depth] + name)
    assert all((REPOSITORY / path).is_file() for path in listed)


def test_relative_links_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "examples/magnet_tour.ipynb"):
        path = REPOSITORY / page
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{page} links to {target}"


def test_the_table_of_examples_names_every_script_and_recipe():
    table = (REPOSITORY / "examples" / "README.md").read_text(encoding="utf-8")
    assert f"`{'adapt.py'}`" in table and "`quickstart.py`" in table
    scripts = [path for path in REPOSITORY.glob("examples/**/*.py") if "__main__" in path.read_text(encoding="utf-8")]
    for path in [*REPOSITORY.glob("examples/configs/*.json"), *scripts]:
        assert f"`{path.relative_to(REPOSITORY / 'examples')}`" in table


# ---- Source ----


@pytest.mark.parametrize("name", [*MODULES, "modeling_magnet", "trainer"])
def test_everything_public_is_explained(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    silent = []
    for public in module.__all__:
        member = getattr(module, public)
        if not (inspect.isclass(member) or inspect.isfunction(member)):
            continue
        parts = {public: member}
        if inspect.isclass(member):
            parts |= {f"{public}.{key}": value for key, value in vars(member).items() if not key.startswith("_")}
        for key, part in parts.items():
            if isinstance(part, property):
                part = part.fget
            part = inspect.unwrap(getattr(part, "__func__", part))
            if (inspect.isclass(part) or inspect.isfunction(part)) and not (part.__doc__ or "").strip():
                silent.append(key)
            # A dataclass without a docstring gets its signature as one.
            if inspect.isclass(part) and (part.__doc__ or "").startswith(f"{part.__name__}("):
                silent.append(key)
    assert not silent


@pytest.mark.parametrize("field", sorted(trainer.MagnetTrainingArguments.__annotations__))
def test_every_training_argument_has_its_help_text(field):
    help_text = trainer.MagnetTrainingArguments.__dataclass_fields__[field].metadata["help"]
    assert help_text.endswith((".", ")"))


def test_the_main_job_explains_itself(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, output, _ = run_script(REPOSITORY / "examples" / "adapt.py", "--help")
    assert code == 0
    for option in ("--model_name_or_path", "--train_texts", "--pairs", "--loss_phases", "--lora_r"):
        assert option in output
