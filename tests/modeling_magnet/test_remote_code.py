"""Load saved directories in a clean process without the package, with remote code and without."""

import copy
import inspect
import json
import os
import pickle
import sys

import numpy as np
import pytest

from modeling_magnet import MagnetLlamaForCausalLM

from ..conftest import SHARED_MODELS
from ..scripts import run_python
from .test_checkpoint_magnet import behavior, variant

NAMES = ["untied", "tied", "headed", "real"]

# The order of the loads is the point: neither kind may change what a later load of the other returns.
CLEAN_PROCESS = """
import json, sys
from pathlib import Path

sys.modules["modeling_magnet"] = sys.modules["trainer"] = None  # importing either fails
import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM

IDS = torch.tensor([[1, 40, 41, 42, 43, 44]])

BEHAVIOR
report = {}
for directory in map(Path, sys.argv[2:]):
    kinds = {}
    for turn in ("first", "second"):
        for factory in (AutoModel, AutoModelForCausalLM):
            remote, loading = factory.from_pretrained(directory, trust_remote_code=True, output_loading_info=True)
            assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
            kinds[turn, factory.__name__, "remote"] = type(remote)
            np.savez(f"{directory}-{turn}-{factory.__name__}.npz", **behavior(remote))
        stock, loading = AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=False, output_loading_info=True
        )
        assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
        kinds[turn, "AutoModelForCausalLM", "stock"] = type(stock)
        kinds[turn, "AutoModel", "stock"] = type(AutoModel.from_pretrained(directory, trust_remote_code=False))
        with torch.no_grad():
            np.savez(f"{directory}-{turn}-stock.npz", causal=stock(IDS).logits.numpy())
    # Saved from its remote class, it must still be whole.
    remote.save_pretrained(f"{directory}-again")
    again = AutoModel.from_pretrained(f"{directory}-again", trust_remote_code=True)
    kinds["again", "AutoModel", "remote"] = type(again)
    np.savez(f"{directory}-again.npz", **behavior(again))
    report[directory.name] = [[*key, f"{kind.__module__}.{kind.__qualname__}"] for key, kind in kinds.items()]
Path(sys.argv[1]).write_text(json.dumps(report))
"""


@pytest.fixture(scope="module")
def saved(_tiny_weights, tiny_tokenizer, tmp_path_factory):
    """Return checkpoints of every kind, and the results of a clean process."""
    folder = tmp_path_factory.mktemp("checkpoints")
    base = copy.deepcopy(_tiny_weights)  # what was encoded once is not probed again, in copies neither
    base.tokenizer = tiny_tokenizer
    models = {"untied": base, "tied": variant(base, tied=True), "headed": variant(base, head="tanh")}
    if (SHARED_MODELS / "stories260K").is_dir():
        models["real"] = MagnetLlamaForCausalLM.from_pretrained(SHARED_MODELS / "stories260K")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    code = CLEAN_PROCESS.replace("BEHAVIOR", inspect.getsource(behavior))
    run_python(code, "report.json", *(folder / name for name in models), folder=elsewhere)
    return models, folder, json.loads((elsewhere / "report.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_remote_code_behaves_as_the_package(saved, name):
    models, folder, _ = saved
    if name not in models:
        pytest.skip("no model at ../shared/models/stories260K beside the repository")
    expected = behavior(models[name])
    for load in ("first-AutoModel", "first-AutoModelForCausalLM", "second-AutoModel", "again"):
        given = np.load(f"{folder / name}-{load}.npz")
        for key, value in expected.items():
            if value.dtype.kind == "U":
                assert given[key] == value, (load, key)
            else:
                # Another process may split the work of a sum differently over its threads.
                np.testing.assert_allclose(given[key], value, atol=1e-5, rtol=0, err_msg=f"{load} {key}")


@pytest.mark.parametrize("name", NAMES)
def test_the_stock_class_gives_the_same_logits_bit_for_bit(saved, name):
    models, folder, _ = saved
    if name not in models:
        pytest.skip("no model at ../shared/models/stories260K beside the repository")
    remote = np.load(f"{folder / name}-first-AutoModel.npz")["causal"]
    for turn in ("first", "second"):
        np.testing.assert_array_equal(np.load(f"{folder / name}-{turn}-stock.npz")["causal"], remote)


def test_neither_kind_of_load_changes_what_the_other_returns(saved):
    _, _, report = saved
    for name, kinds in report.items():
        for turn, factory, source, kind in kinds:
            if source == "remote":
                assert kind.startswith("transformers_modules."), (name, turn)
                assert kind.endswith("modeling_magnet.MagnetLlamaForCausalLM")
            else:
                stock = {"AutoModel": "LlamaModel", "AutoModelForCausalLM": "LlamaForCausalLM"}[factory]
                assert kind == f"transformers.models.llama.modeling_llama.{stock}", (name, turn)


def test_a_model_of_remote_code_can_be_pickled(saved):
    """sentence-transformers pickles the model to start its worker processes."""
    from transformers import AutoModel, AutoModelForCausalLM

    models, folder, _ = saved
    loads = [
        factory.from_pretrained(folder / "untied", trust_remote_code=True)
        for factory in 2 * (AutoModel, AutoModelForCausalLM)
    ]
    assert len({type(model) for model in loads}) == 1, "one class, whoever loads it, however often"
    for model in loads:
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again.encode("A cat."), models["untied"].encode("A cat."))


def test_the_directory_holds_the_code_and_nothing_of_ours_in_the_weights(saved):
    _, folder, _ = saved
    for name in ("untied", "headed"):
        files = {file.name for file in (folder / name).glob("*.py")}
        assert "modeling_magnet.py" in files and "__init__.py" not in files
        package = os.path.dirname(sys.modules["modeling_magnet"].__file__)
        code = {file for file in os.listdir(package) if file.endswith("_magnet.py")}
        # A Llama does not need the other families, nor a transformers that has them all.
        assert files == code - {"families_magnet.py"}
