"""Test each cell of the README's table of loaders and checkpoints, for every family."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM

from modeling_magnet.families_magnet import FAMILIES, AutoMagnetForCausalLM
from tests.adapters import add_lora

from .test_checkpoint_magnet import IDS, behavior
from .test_families_magnet import write_decoder

README = Path(__file__).resolve().parents[2] / "README.md"
TEXTS = ["A cat.", ""]  # of `behavior`
SOURCES = ("plain decoder", "MAGNET checkpoint", "adapter over a plain decoder", "adapter over a MAGNET checkpoint")
REMOTE = {"trust_remote_code": True}
# How each line of the table opens a directory; what is opened from the Hub is in publishing/test_hub.
LOADERS = {
    "`AutoMagnetForCausalLM`, of the installed package": lambda path: open_model(AutoMagnetForCausalLM, path),
    "`AutoModel`, `trust_remote_code=True`": lambda path: open_model(AutoModel, path, **REMOTE),
    "`AutoModelForCausalLM`, `trust_remote_code=True`": lambda path: open_model(AutoModelForCausalLM, path, **REMOTE),
    "`AutoModelForCausalLM`": lambda path: open_model(AutoModelForCausalLM, path),
    "`PeftModel` around our model": lambda path: open_peft(path),
    "`SentenceTransformer`": lambda path: SentenceTransformer(str(path)),
    "`SentenceTransformer`, `trust_remote_code=True`": lambda path: SentenceTransformer(str(path), **REMOTE),
}


def read_table():
    """Return line, column and cell of the README's table."""
    lines = README.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| opened with |"))
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in take_table(lines[start:]))
    return [(row[0], column, cell) for row in rows for column, cell in zip(head[1:], row[1:], strict=True)]


def take_table(lines):
    return lines[: next(number for number, line in enumerate(lines) if not line.startswith("|"))]


TABLE = read_table()


def test_the_table_is_complete():
    assert {column for _, column, _ in TABLE} == set(SOURCES)
    assert {line for line, _, _ in TABLE} == set(LOADERS)


def open_model(factory, path, **options):
    model, info = factory.from_pretrained(path, output_loading_info=True, **options)
    trunk = {"lm_head.weight"} if not hasattr(model, "lm_head") else set()  # a stock trunk has no use for it
    assert not any(set(info[kind]) - trunk for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def open_peft(path):
    base = re.search(r'"base_model_name_or_path": "(.*?)"', (path / "adapter_config.json").read_text())[1]
    return PeftModel.from_pretrained(open_model(AutoMagnetForCausalLM, base), path).eval()


@pytest.fixture(scope="module", params=list(FAMILIES))
def sources(request, tiny_tokenizer, tmp_path_factory):
    """Write a directory of each kind, and record the results of the model in memory."""
    root = tmp_path_factory.mktemp("matrix") / request.param
    write_decoder(root / SOURCES[0], request.param, tiny_tokenizer)
    plain = AutoMagnetForCausalLM.from_pretrained(root / SOURCES[0])
    plain.save_pretrained(root / SOURCES[1])
    expected = {SOURCES[0]: behavior(plain), SOURCES[1]: behavior(plain)}
    for base, kind in zip(SOURCES[:2], SOURCES[2:], strict=True):
        model = add_lora(AutoMagnetForCausalLM.from_pretrained(root / base))
        model.save_pretrained(root / kind)
        expected[kind] = behavior(model)
        assert np.abs(expected[kind]["causal"] - expected[base]["causal"]).max() > 1e-2
    return root, expected


@pytest.mark.parametrize(("line", "source", "cell"), TABLE, ids=lambda value: re.sub(r"\W+", "-", value).strip("-"))
@torch.no_grad()
def test_each_cell_holds(sources, line, source, cell):
    root, expected = sources
    if cell == "none":
        assert not (root / source / "adapter_config.json").exists()
        return
    if cell == "refused":
        with pytest.raises((ValueError, OSError, ImportError), match="merge_this_adapter_first"):
            LOADERS[line](root / source)
        return
    opened = LOADERS[line](root / source)
    reference = expected[source]
    if cell in ("MAGNET", "MAGNET with adapter"):
        assert type(opened).__module__.startswith("transformers_modules.") == line.startswith("`AutoModel")
        for name, value in behavior(opened).items():
            np.testing.assert_array_equal(value, reference[name], err_msg=name)
    elif cell in ("stock", "stock with adapter"):
        assert type(opened).__module__.startswith("transformers.models.")
        output = opened(IDS)
        if "AutoModel`" in line:  # the trunk: its states under the head of ours
            trunk = AutoMagnetForCausalLM.from_pretrained(root / source)
            logits = trunk._project(output.last_hidden_state)
        else:
            logits = output.logits
        np.testing.assert_array_equal(logits.numpy(), reference["causal"])
    elif cell == "the vectors of `encode`":
        np.testing.assert_allclose(opened.encode(TEXTS), reference["embedding"], atol=1e-5)
    else:
        assert cell == "not ours"
        assert np.abs(opened.encode(TEXTS) - reference["embedding"]).max() > 1e-3
    has_adapter = any("lora" in name for name, _ in getattr(opened, "named_parameters", list)())
    assert has_adapter == source.startswith("adapter")
