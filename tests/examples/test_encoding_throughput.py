"""Test the throughput benchmark: its counts, and complete runs on a tiny and a random model."""

import json

import pytest
from transformers import LlamaConfig

from examples.benchmarks import encoding_throughput as benchmark

pytest.importorskip("sentence_transformers", reason="an optional extra: pip install .[eval]")


def test_operation_counts_match_manual_calculation():
    config = LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    weights = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)  # query, key and value, output, MLP
    scores = 3 * 2 * (2 * 5 * 5 * 8)  # queries by keys, then weights by values
    assert benchmark.operations([5], config) == 2 * weights * 5 + scores
    assert benchmark.operations([5, 5], config) == 2 * benchmark.operations([5], config)


@pytest.mark.long
@pytest.mark.parametrize("shape", [None, "tiny"])
def test_script_writes_its_report(tmp_path, plain_llama, capsys, monkeypatch, shape):
    monkeypatch.setitem(benchmark.SHAPES, "tiny", (16, 24, 2, 2, 2))
    (tmp_path / "texts.txt").write_text("\n".join(["The cat sat on the mat. Then it slept."] * 20))
    arguments = [
        *("--model", str(plain_llama), "--texts", str(tmp_path / "texts.txt"), "--results", str(tmp_path)),
        *("--limit", "12", "--rounds", "2", "--name", "speed"),
    ]
    benchmark.main(arguments if shape is None else [*arguments, "--shape", shape])
    assert capsys.readouterr().out.splitlines()[-1] == "encoding_throughput: OK (speed.json)"
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["largest_difference"] < 1e-5 and written["ratio_best"] > 0
    assert set(written["seconds"]) >= {"encode", "sentence-transformers, 32"}
