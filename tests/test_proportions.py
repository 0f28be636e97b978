"""Test the counts of `proportions.py`."""

import json

import pytest
import torch

from trainer.loss_phases import parse_phases

from . import proportions
from .golden import tiny_model

# Rows above their limit, as of 2026-11-30: these numbers may only fall.
STILL_ABOVE = {
    "remote code: lines": 6240,
    "modeling_magnet: lines": 7800,
}


def test_every_row_is_within_its_limit_or_does_not_grow():
    above = {name: count for name, count, limit in proportions.table() if count > STILL_ABOVE.get(name, limit)}
    assert not above


def test_trace_sees_only_our_functions():
    assert proportions.trace(lambda: json.dumps([1])) == (0, 0, 0)
    files, functions, switches = proportions.trace(lambda: parse_phases(["4:1,0,1"]))
    assert files == 1 and functions >= 1 and switches == 0


def test_forward_passes_through_few_files():
    model, ids = tiny_model("llama"), torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        causal = proportions.trace(lambda: model(ids))
        infill = proportions.trace(lambda: model(ids, mode="infill", segment_ids=torch.tensor([[0, 1, 0]])))
    assert 1 <= causal.files <= infill.files
    assert causal.switches >= causal.files - 1


def test_long_functions_are_listed(tmp_path, monkeypatch):
    (tmp_path / "trainer").mkdir()
    body = "    pass\n" * (proportions.LONGEST_FUNCTION - 1)
    (tmp_path / "trainer" / "some.py").write_text(f"def fits():\n{body}\n\ndef too_long():\n{body}    pass\n")
    monkeypatch.setattr(proportions, "ROOT", tmp_path)
    assert proportions.long_functions() == ["trainer/some.py: too_long"]
    assert proportions.lines_of(tmp_path) == (1, 2 * proportions.LONGEST_FUNCTION + 3)


@pytest.mark.parametrize(
    "line", ["model.config.magnet['pooling']", 'config.magnet["pooling"] = 1', "config.magnet.get(1)"]
)
def test_raw_settings_accesses_are_counted(tmp_path, monkeypatch, line):
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "configuration_magnet.py").write_text(line)
    monkeypatch.setattr(proportions, "ROOT", tmp_path)
    assert proportions.raw_settings() == 0
    (tmp_path / "trainer" / "some.py").write_text(line)
    assert proportions.raw_settings() == 1
