"""Compare the figures of Table 4 with explicit loops over the texts."""

import argparse
import json
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from examples.evaluate.infilling_perplexity import main, make_block_rows, make_story_rows
from examples.evaluate.parts.span_rows import story_row
from examples.evaluate.parts.stories import derange, read_stories
from examples.evaluate.parts.wikitext import read_wikitext

from .evaluation_files import write_all


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data") / "all")


READ = ["--device", "cpu", "--max_length", "100"]


def measure(data, checkpoint, tmp_path, *more):
    options = ["--results", str(tmp_path / "results"), *READ]
    return main(["--model", f"system={checkpoint}", "--data", str(data), *options, *more])


def test_left_reading_equals_stock_llama_perplexity(data, checkpoint, tmp_path, tiny_model):
    arguments = ["--reading", "left", "--units", "ROCStories"]
    (record,) = measure(data, checkpoint, tmp_path, *arguments, "--corpus", "story_cloze")
    stock, losses = LlamaForCausalLM.from_pretrained(checkpoint).eval(), []
    stories = read_stories(data, corpus="story_cloze")
    for row in make_story_rows(tiny_model.tokenizer, stories, foreign=False, seed=0):
        ((start, end),) = row.spans
        with torch.no_grad():
            logprobs = stock(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        losses += [-logprobs[place - 1, row.input_ids[place]].item() for place in range(start, end)]
    assert record.metrics == {"perplexity": pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)}
    assert record.counts == {"texts": 6, "spans": 6, "tokens": len(losses)}
    assert (record.table, record.system, record.unit) == ("infilling", "system", "Story Cloze")
    (other,) = measure(data, checkpoint, tmp_path, *arguments)
    assert other.unit == "ROCStories", "only these stand in the paper's column"


def test_both_corpora_are_measured_and_recorded(data, checkpoint, tmp_path, capsys):
    stories, wikitext = measure(data, checkpoint, tmp_path)
    assert "infilling: OK (1 models, 2 cells each" in capsys.readouterr().out
    assert stories.settings["removed"] == "one sentence of the first five"
    assert stories.settings["text"] == "lower case, detokenised"
    settings = wikitext.settings
    assert [settings[f"{name}_tokens"] for name in ("min_span", "max_span")] == [8, 32] and settings["max_spans"] == 3
    assert settings["reading"] == stories.settings["reading"] == "infill"
    assert (settings["max_length"], settings["text"]) == (100, "detokenised, <unk> replaced by 'unknown'")
    assert 8 * wikitext.counts["spans"] <= wikitext.counts["tokens"] <= 32 * wikitext.counts["spans"]
    for change in (["--reading", "left"], ["--suffix", "other"]):
        changed = measure(data, checkpoint, tmp_path, *change)
        for own, other in zip((stories, wikitext), changed, strict=True):
            assert (other.counts["texts"], other.counts["tokens"]) == (own.counts["texts"], own.counts["tokens"])
            assert other.metrics != own.metrics
    lines = (tmp_path / "results" / "infilling.jsonl").read_text().splitlines()
    assert [json.loads(line)["unit"] for line in lines] == ["ROCStories", "WikiText"] * 3


def test_other_suffix_comes_from_another_story(data, tiny_model):
    stories = read_stories(data)
    tokenizer = tiny_model.tokenizer
    others = derange(len(stories), seed=0)
    own = make_story_rows(tokenizer, stories, foreign=False, seed=0)
    places = set()
    for number, row in enumerate(make_story_rows(tokenizer, stories, foreign=True, seed=0)):
        ((_, end),) = row.spans
        assert row.spans == own[number].spans
        assert row.input_ids[:end] == own[number].input_ids[:end]
        before = tokenizer.decode(own[number].input_ids[1:end])
        place = next(k for k in range(5) if before == " ".join(stories[number][: k + 1]))
        places.add(place)
        assert tokenizer.decode(row.input_ids[end:]).strip() == " ".join(stories[others[number]][place + 1 :])
    assert len(places) > 1


def test_unreachable_hub_is_recorded(checkpoint, tmp_path, capsys):
    options = ["--results", str(tmp_path / "results"), "--device", "cpu", "--max_length", "100"]
    stories, wikitext = main(["--model", f"m={checkpoint}", *options])
    assert "mintujupally/ROCStories" in stories.unavailable and "Salesforce/wikitext" in wikitext.unavailable
    assert "not available here" in capsys.readouterr().out


def test_wikitext_contains_no_control_tokens(data, tiny_model):
    """Check `<unk>`, which is token 0 of this vocabulary, 3 of Gemma's, and in 9 of 10 paragraphs of the file."""
    tokenizer = tiny_model.tokenizer
    assert tokenizer("is <unk>.", add_special_tokens=False)["input_ids"].count(0) == 1
    args = argparse.Namespace(max_length=100, limit=None, seed=0, suffix="own")
    rows = make_block_rows(tokenizer, read_wikitext(data), args)
    special = set(tokenizer.all_special_ids)
    assert rows and all(not special & set(row.input_ids[1:]) for row in rows)
    assert "unknown" in tokenizer.decode(rows[0].input_ids)
    story = story_row(tokenizer, ["He saw <unk>.", "It </s> ran.", "<s>", "b.", "c."], 1)
    assert not special & set(story.input_ids[1:])


def test_ratios_to_a_reference_are_those_of_a_loop_over_texts(data, checkpoint, tmp_path, capsys):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("\n".join(json.dumps({"text": f"The cat sat on mat {k}. " * 20}) for k in range(9)))
    shared = [*READ, "--data", str(data), "--results", str(tmp_path / "results"), "--texts", str(held_out)]
    left = main(["--model", f"base, left={checkpoint}", "--reading", "left", *shared])
    assert "of the perplexity of" not in capsys.readouterr().out
    own = main(["--model", f"MAGNET={checkpoint}", *shared])
    shown = capsys.readouterr().out
    other = main(["--model", f"MAGNET, other suffix={checkpoint}", "--suffix", "other", *shared])
    assert [record.unit for record in own] == ["ROCStories", "WikiText", "held-out texts"]
    for record, reference, foreign in zip(own, left, other, strict=True):
        assert len(record.by_text) == record.counts["texts"] == len(foreign.by_text)
        assert sum(count for _, count in record.by_text) == record.counts["tokens"]
        assert [count for _, count in foreign.by_text] == [count for _, count in record.by_text]
        ratio = record.metrics["perplexity"] / reference.metrics["perplexity"]
        assert f"MAGNET, {record.unit}: {ratio:.3f} ±" in shown
    main(["--model", f"MAGNET={checkpoint}", "--limit", "3", *shared])
    assert "was measured on other texts" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is not a file"):
        main(["--model", f"MAGNET={checkpoint}", *shared, "absent.jsonl"])
