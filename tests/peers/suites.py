"""Run the test suites of transformers and peft on our classes, with their own classes as the control.

The suites come in the source packages of the installed versions, which pip downloads; none of their code is kept here.
A test that passes on the stock class and not on ours is an error, unless `ALLOWED` gives a reason. The source package
of transformers holds the common tests of models, but not those of `generate`: `test_causal_parity_magnet.py` compares
it with the stock class's.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.byte_tokenizer import byte_tokenizer

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

_NO_HEAD = "the weights lack the LM head, which stock leaves random with a warning; ours refuses them by name"
ALLOWED = {
    "test_base_model_prefix_loads_base_weights": _NO_HEAD,
    "test_correct_missing_keys": _NO_HEAD,
    "test_model_weights_reload_no_missing_tied_weights": _NO_HEAD,
    "test_sdpa_can_dispatch_non_composite_models": "asks for the default back-end by name; ours has another name",
}
"""Tests that pass on stock classes and may fail on ours."""

# Modules that the tests import and the source packages lack.
_LEFT_OUT = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
}
# The Hub ids in peft's tests; a folder of that name in the working directory is read instead.
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64, "query_pre_attn_scalar": 8}
_TINY: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "trl-internal-testing/tiny-random-LlamaForCausalLM": (LlamaConfig, LlamaForCausalLM, {}),
    "peft-internal-testing/tiny-dummy-qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {"head_dim": 8, **_SLIDING},
    ),
}


def source_package(name: str, folder: Path) -> None:
    """Download the source package of an installed library, and put its tests in `folder/tests`.

    Raises:
        OSError: If there is no such package.
    """
    wanted = f"{name}=={importlib.metadata.version(name)}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
    done = subprocess.run([*command, wanted], capture_output=True, text=True)
    archives = list(folder.glob(f"{name}-*.tar.gz"))
    if done.returncode or not archives:
        raise OSError(f"the source package {wanted} cannot be downloaded: {done.stderr.strip()[-300:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    (folder / archives[0].name.removesuffix(".tar.gz") / "tests").rename(folder / "tests")
    (folder / "tests" / "__init__.py").touch()


def lay_out_common_tests(folder: Path) -> None:
    """Copy the tests of transformers and our file to `folder/tests`."""
    source_package("transformers", folder)
    for name, text in _LEFT_OUT.items():
        file = folder / "tests" / name
        file.parent.mkdir(exist_ok=True)
        (file.parent / "__init__.py").touch()
        if not file.exists():
            file.write_text(text, encoding="utf-8")
    shutil.copy(HERE / "common_tests.py", folder / "tests" / "test_both.py")


def lay_out_adapter_tests(folder: Path) -> None:
    """Copy the tests of peft, our file, and tiny models under the requested names to `folder`."""
    source_package("peft", folder)
    shutil.copy(HERE / "adapter_tests.py", folder / "tests" / "test_both.py")
    tokenizer = byte_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    sizes |= {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    for name, (config_class, model_class, own) in _TINY.items():
        torch.manual_seed(0)
        model_class(config_class(**sizes, **own)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def outcomes(folder: Path, wanted: str) -> dict[tuple[str, str], bool]:
    """Run the tests in `folder/tests/test_both.py` that pytest's `-k` selects.

    Returns:
        `dict`: class and name of each test that was not skipped, to whether it passed with all its subtests.
    """
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "tests/test_both.py", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    command += ["-k", wanted, f"--junitxml={report}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), f"the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    passed: dict[tuple[str, str], bool] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test = (str(case.get("classname")).rpartition(".")[2], str(case.get("name")))
        if case.find("skipped") is None:
            is_ok = case.find("failure") is None and case.find("error") is None
            passed[test] = passed.get(test, True) and is_ok
    return passed


def compare(passed: dict[tuple[str, str], bool]) -> list[str]:
    """Return complaints about tests that pass on a stock class and not on ours."""
    stock = [test for test, is_ok in passed.items() if test[0].endswith("Stock") and is_ok]
    complaints = [] if stock else ["no test passed on a stock class: the suite did not run"]
    for case, name in stock:
        ours = (case.removesuffix("Stock") + "Ours", name)
        if not passed.get(ours, False) and name not in ALLOWED:
            outcome = "fails" if ours in passed else "is skipped"
            complaints.append(f"{ours[0]}::{name} {outcome}; it passes on the stock class")
    return complaints
