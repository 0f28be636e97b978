"""The decoding benchmark on a small real model: its checks, its ratios, its file."""

import json

import pytest

from examples.benchmarks import infill_decoding


def test_it_checks_measures_and_writes(request, tmp_path, monkeypatch, capsys):
    real = request.getfixturevalue("stories260k")
    for name, value in {"FILL_TOKENS": 4, "DECODE_TOKENS": 2, "BATCH": 3, "LONG_CONTEXT": 64, "CANDIDATES": 3}.items():
        monkeypatch.setattr(infill_decoding, name, value)
    infill_decoding.main(["--model", str(real), "--rounds", "2", "--results", str(tmp_path)])
    assert "infill_decoding: OK (infill_decoding.json)" in capsys.readouterr().out
    report = json.loads((tmp_path / "infill_decoding.json").read_text())
    assert report["largest_score_difference"] < 1e-4
    assert {"eight blanks / one blank", "recomputed / cached", "3 scores / one"} <= set(report["ratios"])
    assert all(row["median"] > 0 for row in report["seconds"].values())


def test_ratios_are_taken_within_a_round():
    single = {f"one text, {n}": 1.0 for n in infill_decoding.CONTEXTS}
    single |= {f"one text, {n}, one token": 0.5 for n in infill_decoding.CONTEXTS}
    batch = {f"{infill_decoding.BATCH} texts, {n}": 4.0 for n in infill_decoding.CONTEXTS}
    batch |= {f"{infill_decoding.BATCH} texts, {n}, one token": 2.0 for n in infill_decoding.CONTEXTS}
    times = {"one blank": 1.0, "eight blanks": 1.5, "one blank, long": 3.0, "generate": 1.0, "generate, long": 5.0}
    times |= {"recomputed": 6.0, "cached": 1.0, "one score": 1.0, f"{infill_decoding.CANDIDATES} scores": 1.7}
    ratios = infill_decoding.measured_ratios({**single, **batch, **times})
    assert ratios["eight blanks / one blank"] == 1.5
    assert ratios["a filled token / one of generate"] == 0.5
    assert ratios["32 texts / one, tokens/s decoded, context 32"] == pytest.approx(32 * 0.5 / 2)
    assert ratios["32 texts / one, tokens/s with reading, context 256"] == pytest.approx(32 * 1 / 4)
