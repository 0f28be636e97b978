"""Test the checks, ratios and report of the decoding benchmark on a small real model."""

import json

import pytest

from examples.benchmarks import infill_decoding


@pytest.fixture
def few_tokens(monkeypatch):
    for name, value in {"FILL_TOKENS": 4, "DECODE_TOKENS": 2, "BATCH": 3, "LONG_CONTEXT": 64, "CANDIDATES": 3}.items():
        monkeypatch.setattr(infill_decoding, name, value)


@pytest.mark.long
@pytest.mark.usefixtures("few_tokens")
def test_script_checks_measures_and_writes(request, tmp_path, capsys):
    options = ["--model", str(request.getfixturevalue("stories260k")), "--results", str(tmp_path)]
    infill_decoding.main([*options, "--rounds", "2"])
    assert "infill_decoding: OK (infill_decoding.json)" in capsys.readouterr().out
    report = json.loads((tmp_path / "infill_decoding.json").read_text())
    assert report["largest_score_difference"] < 1e-4
    assert {"eight blanks / one blank", "recomputed / cached", "3 scores / one"} <= set(report["ratios"])
    assert "share of the copying rate" in report["ratios"]
    assert report["floor_seconds"] > 0
    assert all(row["median"] > 0 for row in report["seconds"].values())


def test_bytes_per_step_match_manual_calculation(tiny_model):
    config, count = tiny_model.config, tiny_model.num_parameters()
    states = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 10
    assert tiny_model.lm_head.weight is not tiny_model.model.embed_tokens.weight
    read = count - tiny_model.model.embed_tokens.weight.numel() + states
    assert infill_decoding.step_bytes(tiny_model, context=10) == 4 * read
