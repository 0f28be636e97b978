"""Pretraining in legs: it stops in time, goes on, and leaves a stock Llama that has learned something."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.evaluate import pretrain

from .tiny_run import write_corpus


@pytest.mark.long
def test_legs_lead_to_a_stock_llama(tmp_path, tiny_tokenizer, monkeypatch, capsys):
    tiny_tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    options = ["--tokenizer", str(tmp_path / "tokenizer"), "--output", str(tmp_path / "out"), "--hidden_size", "16"]
    options += ["--texts", str(write_corpus(tmp_path / "train.jsonl.xz", num_texts=80, seed=0))]
    options += ["--eval_texts", str(write_corpus(tmp_path / "eval.jsonl.xz", num_texts=8, seed=1))]
    options += ["--steps", "60", "--batch_size", "8", "--max_length", "64", "--learning_rate", "0.01"]

    assert pretrain.main([*options, "--minutes", "0"]) == 1, "the time is over behind the first step"
    assert not (tmp_path / "out" / "config.json").exists()
    assert "stopped at step 1 of 60; the same command goes on" in capsys.readouterr().out
    assert pretrain.main([*options, "--minutes", "9"]) == 60

    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained("out")
    assert model.dtype == torch.bfloat16 and model.config.tie_word_embeddings and model.config.use_cache
    assert len(AutoTokenizer.from_pretrained("out")) == model.config.vocab_size
    perplexities = [float(value) for value in json.loads((tmp_path / "out" / "perplexity.json").read_text()).values()]
    assert len(perplexities) == 20
    assert perplexities[-1] < perplexities[0] / 4
    with pytest.raises(ValueError, match="holds a finished model"):
        pretrain.main(options)


def test_the_shape_of_the_study_has_about_28_million_parameters(wiki_7m):
    model = pretrain.new_llama(AutoTokenizer.from_pretrained(wiki_7m), hidden_size=512, max_length=1024)
    assert 27e6 < model.num_parameters() < 30e6
