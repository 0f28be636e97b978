"""The memory benchmark on a small model: what it calls, counts and writes."""

import json

import pytest

from examples.benchmarks import infilling_memory


@pytest.mark.long
def test_it_counts_and_writes(request, tmp_path, capsys, monkeypatch):
    for name, value in {"NUM_TEXTS": 2, "ANSWERS": 2, "MASK_TOKENS": 200}.items():
        monkeypatch.setattr(infilling_memory, name, value)
    model = str(request.getfixturevalue("wiki_7m"))
    report = infilling_memory.main(["--model", model, "--results", str(tmp_path), "--attn_implementation", "eager"])
    assert capsys.readouterr().out.splitlines()[-1] == "infilling_memory: OK (infilling_memory.json)"
    assert json.loads((tmp_path / "infilling_memory.json").read_text()) == report
    assert len(report["calls"]) == 7
    assert all(one["bytes"] > 0 and one["resident_bytes"] >= 0 for one in report["calls"].values())
    assert report["mask_bytes"] == 2 * 200 * 200 * 4
    assert report["calls"]["infill masks, 2 x 200"]["bytes"] <= 2 * report["mask_bytes"]


def test_the_fill_that_is_scored_has_about_the_tokens_it_says(tiny_model, monkeypatch):
    monkeypatch.setattr(infilling_memory, "NUM_TEXTS", 2)
    monkeypatch.setattr(infilling_memory, "FILL_TOKENS", 40)
    monkeypatch.setattr(infilling_memory, "SENTENCE", "the old dog ran")
    scored = infilling_memory.scored(tiny_model)
    assert [len(fills) for fills in scored] == [1, 1]
    assert 30 <= len(scored[0][0].token_ids) <= 41
