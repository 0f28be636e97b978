"""Test the shared command line: one spelling per option, errors in one line, and reports of missing extras."""

import argparse
import json
import platform
import subprocess
import sys
from collections import defaultdict
from unittest import mock

import pytest

from examples import models
from examples.command_line import OneLineParser, add_device, choose_device, require_extra, start

from ..conftest import REPOSITORY
from ..scripts import run_script
from . import without_extras

EXAMPLES = REPOSITORY / "examples"
SCRIPTS = sorted(
    str(path.relative_to(EXAMPLES))
    for path in EXAMPLES.rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
# One option per line: its spelling, then the names that must not be used for it.
SPELLINGS = (
    ("--model_name_or_path", "--model_path", "--model_name", "--checkpoint"),
    ("--output_dir", "--out_dir", "--output_folder"),
    ("--device", "--devices", "--use_gpu"),
    ("--texts", "--text_files", "--corpora"),
    ("--max_new_tokens", "--tokens", "--fill_tokens"),
    ("--num_return_sequences", "--num_answers", "--num_fills"),
    ("--limit", "--max_rows", "--max_texts", "--num_rows", "--number", "--num_texts", "--num_stories"),
    ("--contrastive_batch_size", "--pairs_a_step"),
    ("--runs", "--run"),
    ("--lora_r", "--rank", "--lora_rank"),
    ("--batch_size", "--batch"),
    ("--max_length", "--max_seq_length", "--block_size"),
    ("--seed", "--random_seed"),
)


class Captured(Exception):
    """Carry a script's parser out of the script."""


@pytest.fixture(scope="module")
def parsers():
    """Return the parsers of each script, those of subcommands included, and the scripts that open models."""
    found = {}

    def capture(parser, *args, **kwargs):
        raise Captured(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", capture):
        for script in SCRIPTS:
            with pytest.raises(Captured) as caught:
                run_script(EXAMPLES / script)
            parser = caught.value.args[0]
            choices = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
            found[script] = [parser, *(sub for group in choices for sub in group.values())]
    return found


def options_of(parsers):
    """Return script, spelling and action of every option."""
    for script, group in parsers.items():
        for parser in group:
            for action in parser._actions:
                if action.option_strings and action.option_strings[0] != "-h":
                    yield script, action.option_strings[0], action


@pytest.mark.long  # imports lm_eval and others: 8 s
def test_options_have_one_spelling_each(parsers):
    used = defaultdict(set)
    for script, name, action in options_of(parsers):
        used[name].add(script)
        others = [other for other in action.option_strings[1:] if other.replace("-", "_") != name.replace("-", "_")]
        assert others in ([], ["--model"]), f"{script} shows two spellings: {action.option_strings}"
    for spelling, *others in SPELLINGS:
        assert used[spelling], f"no script has {spelling}"
        wrong = {other: sorted(used[other]) for other in others if used[other]}
        assert not wrong, f"what is {spelling} elsewhere"
    by_help = defaultdict(set)
    for script, name, action in options_of(parsers):
        if script != "adapt.py" and action.help:
            by_help[action.help].add(name)
    # A role or a unit of a few words may describe several options; a whole sentence may not.
    doubled = {text: names for text, names in by_help.items() if len(names) > 1 and len(text.split()) > 4}
    assert doubled == {}


@pytest.mark.long
def test_device_model_and_dtype_options_agree_in_all_scripts(parsers):
    model, device = set(), set()
    for script, name, action in options_of(parsers):
        if name == "--model_name_or_path":
            model.add(script)
            assert script == "adapt.py" or "--model" in action.option_strings, script
        if name in ("--base", "--judge"):
            model.add(script)
        if name == "--device":
            device.add(script)
            assert action.default is None
            assert action.help.startswith("such as cpu or cuda:1; ")
        if name == "--data":
            assert action.help.startswith("folder with the data files")
    # These choose in other ways: the Trainer's own options, a device per process, a plan.
    others = {"adapt.py", "encode_corpus.py", "evaluate/study.py"}
    assert model - others <= device


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_option_prints_one_line_in_every_script(script):
    if script == "adapt.py":
        pytest.skip("tested with it")
    code, out, err = run_script(EXAMPLES / script, "--no_such_option=1")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("what to do"), OSError("what to do")])
def test_fixable_errors_print_one_line_and_exit_with_2(error, capsys):
    def fails():
        raise error

    with pytest.raises(SystemExit, match="2"):
        start(fails)
    assert capsys.readouterr().err == "error: what to do\n"
    with pytest.raises(ZeroDivisionError):
        start(lambda: 1 / 0)


def test_device_defaults_to_cuda_and_invalid_devices_raise():
    parser = OneLineParser()
    add_device(parser)
    assert parser.parse_args([]).device is None
    assert choose_device("cpu") == "cpu"
    with mock.patch("torch.cuda.is_available", lambda: False):
        assert choose_device(None) == "cpu"
    for wrong in ("warp", "meta", "cuda:77", "cpu:x"):
        with pytest.raises(ValueError, match=f"`--device` is '{wrong}'"):
            choose_device(wrong)


def test_missing_extra_raises_with_install_command():
    require_extra("eval", "json")
    with pytest.raises(ValueError, match=r"no_such_thing.*pip install -e '\.\[eval\]'"):
        require_extra("eval", "json", "no_such_thing")


def test_unreachable_hub_is_asked_once(capsys, monkeypatch):
    import datasets
    from huggingface_hub import constants

    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append(url)
            raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    models.offline_where_unreachable.cache_clear()
    for _ in range(2):
        models.offline_where_unreachable()
    models.offline_where_unreachable.cache_clear()
    assert asked == [constants.ENDPOINT] and constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {constants.ENDPOINT} cannot be reached (no route)")


@pytest.mark.long  # another process imports torch: 6 s
def test_help_works_without_extras_and_missing_extras_are_reported(tmp_path, stories260k):
    model, data = str(stories260k), str(tmp_path)
    needing = {
        "quickstart.py": ([], "plots"),
        "app.py": ([], "demo"),
        "reference.py": ([], "dev"),
        "tour/run_notebook.py": (["x.ipynb"], "notebook"),
        "evaluate/sts.py": (["--model", model, "--data", data], "eval"),
        "evaluate/clustering.py": (["--model", model, "--data", data], "eval"),
        "evaluate/word_probes.py": (["--model", model, "--data", data], "eval"),
        "evaluate/mmlu.py": (["--model", model, "--data", data], "eval"),
        "evaluate/report.py": ([], "eval"),
        "evaluate/study.py": (["plan.json", "--output_dir", data], "eval"),
        "evaluate/human_evaluation.py": (["score", "--key", "k.json", "--answers", "a.json"], "eval"),
        "benchmarks/encoding_throughput.py": (["--model", model, "--texts", "x.txt"], "eval"),
    }
    calls = [[script, ["--help"]] for script in SCRIPTS]
    calls += [[script, arguments] for script, (arguments, _) in needing.items()]
    done = subprocess.run(
        [sys.executable, without_extras.__file__, json.dumps(calls)], capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(calls)
    for answer, (script, arguments) in zip(answers, calls, strict=True):
        if arguments == ["--help"]:
            assert answer["code"] == 0 and "usage: " in answer["out"], answer
        else:
            assert answer["code"] == 2 and len(answer["err"].splitlines()) == 1, answer
            assert answer["err"].startswith("error: ")
            assert f"pip install -e '.[{needing[script][1]}]'" in answer["err"]


# ---- Freed memory ----

COUNT = """
import resource, sys
import torch
import trainer  # as in `adapt.py`; in a smaller heap glibc may map the first tensor in spite of the settings
from trainer.cpu_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_reallocating_large_tensors_causes_no_page_faults():
    faults = {
        way: int(subprocess.run([sys.executable, "-c", COUNT, way], capture_output=True, check=True, text=True).stdout)
        for way in ("kept", "usual")
    }
    assert faults["kept"] < 0.3 * faults["usual"]  # 64 MiB are 16,384 pages, once instead of four times
