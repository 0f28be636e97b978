"""Evaluate infilling on tiny stories and texts: spans, judges, tests and tables."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from examples.evaluate import long_fills
from examples.evaluate.long_fills import CONTINUATION_TOKENS, HeldOutSpan, continuation_perplexity, draw_spans
from examples.evaluate.parts.prompted_infilling import PromptedInfiller
from examples.evaluate.parts.records import RecordFile
from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.spans_magnet import continuation_ids
from trainer.metrics import repetition_n

from .evaluation_files import write_wikitext

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play with her toys in the park. One day, she "
    "saw a big dog and they were happy to run in the sun. Her mom said that it was time to go home and eat some food. "
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": STORY * 6 + f"The number is {n}."}) + "\n" for n in range(30)))
    return str(file)


@pytest.fixture(scope="module")
def tokenizer(stories260k):
    return AutoTokenizer.from_pretrained(stories260k)


def test_spans_have_requested_lengths_and_rejoin_to_the_text(texts, tokenizer):
    lengths = [3, 8, 5, 12]
    spans = draw_spans(texts, tokenizer, lengths=lengths, prefix_tokens=20, suffix_tokens=40, seed=3)
    whole = STORY * 6
    for span, length in zip(spans, lengths, strict=True):
        assert span.length == len(continuation_ids(tokenizer, span.truth)) == length
        assert span.truth.startswith(" ")
        assert span.suffix.startswith(" ")
        assert (span.prefix + span.truth + span.suffix)[:60] in whole
    assert spans == draw_spans(texts, tokenizer, lengths=lengths, prefix_tokens=20, suffix_tokens=40, seed=3)
    with pytest.raises(ValueError, match="30 texts.*31"):
        draw_spans(texts, tokenizer, lengths=[3] * 31, prefix_tokens=20, suffix_tokens=40, seed=3)


def test_judge_continues_after_prefix_and_fill(stories260k, tokenizer):
    model = MagnetLlamaForCausalLM.from_pretrained(stories260k)
    span = HeldOutSpan("Once upon a time, there was", " a little girl", " named Lily. She loved to play.", 3)
    value = continuation_perplexity(model, tokenizer, [span], [" a big dog"])
    front = tokenizer(span.prefix + " a big dog")["input_ids"]
    ids = tokenizer(span.prefix + " a big dog" + span.suffix)["input_ids"]
    assert len(ids) - len(front) <= CONTINUATION_TOKENS
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    own = [logprobs[place - 1, ids[place]].item() for place in range(len(front), len(ids))]
    assert value == pytest.approx(np.exp(-np.mean(own)), rel=1e-4)


@pytest.fixture
def short_context(monkeypatch):
    monkeypatch.setattr(long_fills, "PREFIX_TOKENS", 40)
    monkeypatch.setattr(long_fills, "SUFFIX_TOKENS", 40)


def test_long_fills_are_written_whole_and_in_chunks(stories260k, texts, tmp_path, short_context, tokenizer, capsys):
    options = ["--judge", str(stories260k), "--texts", texts, "--limit", "3", "--span_tokens", "16"]
    records = long_fills.main(
        ["--model", f"m={stories260k}", *options, "--chunks", "16", "8", "--results", str(tmp_path), "--device", "cpu"]
    )
    assert "long_fills: OK (1 models, 8 cells each" in capsys.readouterr().out
    by_unit = {record.unit: record for record in records}
    filled = {f"{name}, {kind}" for name in ("at once", "chunks of 8") for kind in ("greedy", "sampled")}
    judged = {"judge, left to right, greedy", "judge, left to right, sampled"}
    assert set(by_unit) == filled | judged | {"what stood there", "nothing"}
    assert set(by_unit["nothing"].metrics) == {"continuation_perplexity", "rep_4"}
    assert all(record.metrics["continuation_perplexity"] > 1 for record in records)
    assert all(record.settings["judge"]["name"] == "stories260K" for record in records)
    assert len(RecordFile(tmp_path, "long_fills").read()) == 8

    model = MagnetLlamaForCausalLM.from_pretrained(stories260k)
    spans = draw_spans(texts, tokenizer, lengths=[16] * 3, prefix_tokens=40, suffix_tokens=40, seed=0)
    prefixes, suffixes = [span.prefix for span in spans], [span.suffix for span in spans]
    for name, chunk in (("at once", 16), ("chunks of 8", 8)):
        fills = model.infill(prefixes, suffixes, max_new_tokens=16, chunk_size=chunk)
        record = by_unit[f"{name}, greedy"]
        assert [sample["fill"] for sample in record.samples] == fills
        expected = continuation_perplexity(model, tokenizer, spans, fills)
        assert record.metrics["continuation_perplexity"] == pytest.approx(expected)
        assert record.metrics["rep_4"] == repetition_n(fills)
        scored = PromptedInfiller(model, tokenizer).score_infill(prefixes, [[fill] for fill in fills], suffixes)
        logprobs = [value for (one,) in scored for value in one.logprobs]
        assert record.metrics["fill_perplexity"] == pytest.approx(np.exp(-np.mean(logprobs)))
    for name in ("at once", "chunks of 8", "judge, left to right"):
        greedy, sampled = by_unit[f"{name}, greedy"], by_unit[f"{name}, sampled"]
        assert (greedy.settings["sampling"], sampled.settings["sampling"]["do_sample"]) == ({}, True)
        assert greedy.samples != sampled.samples
    assert [sample["truth"] for sample in by_unit["what stood there"].samples] == [span.truth for span in spans]


def test_long_fills_of_wikitext(wiki_7m, tmp_path, short_context):
    write_wikitext(tmp_path, number=200)
    options = ["--judge", str(wiki_7m), "--data", str(tmp_path), "--limit", "2", "--span_tokens", "8", "--chunks", "8"]
    records = long_fills.main(
        ["--model", f"m={wiki_7m}", *options, "--kinds", "greedy", "--results", str(tmp_path), "--device", "cpu"]
    )
    assert [record.unit for record in records][-1] == "at once, greedy"
    (texts,) = {record.settings["texts"] for record in records}
    assert texts == "wiki.valid.tokens.xz, detokenised, <unk> replaced by 'unknown'"
    assert all("\n" not in sample["prefix"] for record in records for sample in record.samples)
