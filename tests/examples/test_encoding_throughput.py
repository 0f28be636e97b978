"""The throughput benchmark: what it counts, and that it runs to its end on a tiny model and on a random one."""

import json

import pytest
import torch
from transformers import LlamaConfig

from examples.benchmarks import encoding_throughput as benchmark
from examples.benchmarks.measuring import random_llama

from .tiny_run import save_plain_llama

pytest.importorskip("sentence_transformers", reason="an optional extra: pip install .[eval]")


def test_operations_are_counted_as_by_hand():
    config = LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    weights = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)  # query, key and value, output, MLP
    scores = 3 * 2 * (2 * 5 * 5 * 8)  # queries by keys, then weights by values
    assert benchmark.operations([5], config) == 2 * weights * 5 + scores
    assert benchmark.operations([5, 5], config) == 2 * benchmark.operations([5], config)


def test_texts_are_half_sentences_half_paragraphs(tmp_path):
    paragraph = "The cat sat on the mat. Then it slept. After that it left."
    (tmp_path / "texts.txt").write_text("\n".join([paragraph] * 20))
    texts = benchmark.sample_texts(str(tmp_path / "texts.txt"), number=10, seed=0)
    assert len(texts) == 10 and texts.count(paragraph) == 5
    assert all(text in paragraph for text in texts)


def test_random_weights_are_the_same_each_time_and_move_no_generator(tmp_path, tiny_tokenizer, monkeypatch):
    monkeypatch.setitem(benchmark.SHAPES, "tiny", (16, 24, 2, 2, 2))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name in ("one", "other"):
        random_llama("tiny", tiny_tokenizer, tmp_path / name, dtype=torch.float32)
        assert torch.equal(torch.get_rng_state(), before)
        before = torch.manual_seed(6).get_state()
    one, other = (tmp_path / name / "model.safetensors" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("shape", [None, "tiny"])
def test_it_ends_with_its_figures(tmp_path, tiny_tokenizer, capsys, monkeypatch, shape):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(benchmark.SHAPES, "tiny", (16, 24, 2, 2, 2))
    model = save_plain_llama(tmp_path / "base", tiny_tokenizer)
    (tmp_path / "texts.txt").write_text("\n".join(["The cat sat on the mat. Then it slept."] * 20))
    arguments = [
        *("--model", str(model), "--texts", str(tmp_path / "texts.txt"), "--results", str(tmp_path)),
        *("--number", "12", "--rounds", "2", "--name", "speed", "--compiler", "eager"),
    ]
    benchmark.main(arguments if shape is None else [*arguments, "--shape", shape])
    assert capsys.readouterr().out.splitlines()[-1] == "encoding_throughput: OK (speed.json)"
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["largest_difference"] < 1e-5 and written["ratio_best"] > 0
    assert set(written["seconds"]) >= {"encode", "sentence-transformers, 32"}
