"""Compare the perplexity of whole texts with a loop over windows and the stock Llama."""

import json
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from examples.evaluate.parts.wikitext import read_wikitext
from examples.evaluate.text_perplexity import main, make_windows

from .evaluation_files import write_wikitext


@torch.no_grad()
def by_loop(model, tokenizer, texts, *, size):
    """Loop over windows of BOS and `size - 1` tokens, a position at a time."""
    losses = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        while ids:
            window, ids = [tokenizer.bos_token_id, *ids[: size - 1]], ids[size - 1 :]
            logprobs = torch.log_softmax(model(torch.tensor([window])).logits[0], -1)
            losses += [-logprobs[place - 1, window[place]].item() for place in range(1, len(window))]
    return math.exp(sum(losses) / len(losses)), len(losses)


def test_figures_equal_the_stock_llama(tmp_path, checkpoint, tiny_model, capsys):
    write_wikitext(tmp_path, number=5)
    texts = ["The cat sat on the mat. " * 20, "The dog barked."]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ["--results", str(tmp_path / "results"), "--device", "cpu", "--max_length", "40"]
    more = ["--data", str(tmp_path), "--texts", f"More={tmp_path / 'more.jsonl'}"]
    wikitext, other = main(["--model", f"m={checkpoint}", *options, *more])
    stock = LlamaForCausalLM.from_pretrained(checkpoint).eval()
    whole = "\n".join(read_wikitext(tmp_path, headings=True))
    for record, read in ((wikitext, [whole]), (other, [text.strip() for text in texts])):
        value, tokens = by_loop(stock, tiny_model.tokenizer, read, size=40)
        assert record.metrics == {"perplexity": pytest.approx(value, rel=1e-4)}
        assert record.counts["tokens"] == tokens
        assert record.counts["window"] == 40
    assert other.counts["texts"] == 2
    assert [wikitext.unit, other.unit] == ["WikiText", "More"]
    assert "perplexity: OK (1 models, 2 cells each" in capsys.readouterr().out


def test_windows_default_to_the_context_length(tmp_path, checkpoint):
    write_wikitext(tmp_path)
    options = ["--results", str(tmp_path / "results"), "--device", "cpu", "--data", str(tmp_path)]
    (record,) = main(["--model", f"m={checkpoint}", *options])
    assert record.counts["window"] == 256
    assert record.settings["window"] == "the model's context"
    (first,) = main(["--model", f"m={checkpoint}", *options, "--limit", "1"])
    assert first.counts == {"texts": 1, "windows": 1, "window": 256, "tokens": 255}


def test_each_token_counts_once(tiny_model):
    tokenizer = tiny_model.tokenizer
    text = "The cat sat on the mat. " * 9
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = make_windows(tokenizer, [text, ""], size=7)
    assert [token for row in rows for token in row.input_ids[1:]] == ids
    assert {row.input_ids[0] for row in rows} == {tokenizer.bos_token_id}
    assert all(row.spans == [(1, len(row.input_ids))] for row in rows)
    tokenizer.bos_token = None
    rows = make_windows(tokenizer, [text], size=7)
    assert [token for row in rows for token in row.input_ids][:70] == ids[:70], "the first is read, but not predicted"


def test_corpus_marks_are_read_as_text(tiny_model):
    text = "the cat <unk> sat </s> on <s>"
    (row,) = make_windows(tiny_model.tokenizer, [text], size=256)
    assert row.input_ids[0] == 1 and not {0, 1, 2} & set(row.input_ids[1:])
    assert tiny_model.tokenizer.decode(row.input_ids[1:]) == text
