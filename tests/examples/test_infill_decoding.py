"""The decoding benchmark on a small real model: its checks, its ratios, its file."""

import json

import pytest

from examples.benchmarks import infill_decoding


@pytest.fixture
def few_tokens(monkeypatch):
    for name, value in {"FILL_TOKENS": 4, "DECODE_TOKENS": 2, "BATCH": 3, "LONG_CONTEXT": 64, "CANDIDATES": 3}.items():
        monkeypatch.setattr(infill_decoding, name, value)


@pytest.mark.long
@pytest.mark.usefixtures("few_tokens")
def test_it_checks_measures_and_writes(request, tmp_path, capsys):
    options = ["--model", str(request.getfixturevalue("stories260k")), "--results", str(tmp_path)]
    infill_decoding.main([*options, "--rounds", "2"])
    assert "infill_decoding: OK (infill_decoding.json)" in capsys.readouterr().out
    report = json.loads((tmp_path / "infill_decoding.json").read_text())
    assert report["largest_score_difference"] < 1e-4
    assert {"eight blanks / one blank", "recomputed / cached", "3 scores / one"} <= set(report["ratios"])
    assert "share of the copying rate" in report["ratios"]
    assert report["floor_seconds"] > 0
    assert all(row["median"] > 0 for row in report["seconds"].values())


def test_bytes_of_a_step_are_counted_as_by_hand(tiny_model):
    config, count = tiny_model.config, tiny_model.num_parameters()
    states = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 10
    assert tiny_model.lm_head.weight is not tiny_model.model.embed_tokens.weight
    read = count - tiny_model.model.embed_tokens.weight.numel() + states
    assert infill_decoding.step_bytes(tiny_model, context=10) == 4 * read


def test_ratios_are_taken_within_a_round():
    single = {f"one text, {n}": 1.0 for n in infill_decoding.CONTEXTS}
    single |= {f"one text, {n}, one token": 0.5 for n in infill_decoding.CONTEXTS}
    batch = {f"{infill_decoding.BATCH} texts, {n}": 4.0 for n in infill_decoding.CONTEXTS}
    batch |= {f"{infill_decoding.BATCH} texts, {n}, one token": 2.0 for n in infill_decoding.CONTEXTS}
    times = {"one blank": 1.0, "eight blanks": 1.5, "one blank, long": 3.0, "generate": 1.0, "generate, long": 5.0}
    times |= {"recomputed": 6.0, "cached": 1.0, "one score": 1.0, f"{infill_decoding.CANDIDATES} scores": 1.7}
    floor = 0.5 / infill_decoding.DECODE_TOKENS
    ratios = infill_decoding.measured_ratios({**single, **batch, **times}, floor=floor)
    assert ratios["share of the copying rate"] == pytest.approx(0.25)
    assert ratios["eight blanks / one blank"] == 1.5
    assert ratios["a filled token / one of generate"] == 0.5
    assert ratios["32 texts / one, tokens/s decoded, context 32"] == pytest.approx(32 * 0.5 / 2)
    assert ratios["32 texts / one, tokens/s with reading, context 256"] == pytest.approx(32 * 1 / 4)
