"""Compare log-probabilities of missing tokens with one forward per token, the stock Llama, and the model's scoring."""

import pytest
import torch
from transformers import LlamaForCausalLM

from examples.evaluate.parts.prompted_infilling import PromptedInfiller
from examples.evaluate.parts.span_rows import RemovedSpans, block_rows, span_logprobs, story_row
from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.spans_magnet import Healed, SpanLayout

from ..modeling_magnet.infill_reference import next_logprobs

STORY = ["Lily saw a dog.", "It was big.", "She ran to her mom!", "Mom said no.", "They were happy."]
OTHER = ["Tom had a cat.", "It sat on a mat.", "Tom ate bread.", "The cat ran.", "He was sad, and cold."]
SPANS = {"max_spans": 3, "min_span_tokens": 2, "max_span_tokens": 6}


@pytest.fixture(scope="module")
def stock(wiki_7m):
    return LlamaForCausalLM.from_pretrained(wiki_7m).eval()


@pytest.fixture(scope="module")
def magnet(wiki_7m):
    return MagnetLlamaForCausalLM.from_pretrained(wiki_7m).eval()


@pytest.fixture(scope="module")
def blocks(magnet):
    texts = [" ".join(STORY + OTHER), " ".join(OTHER + STORY[:2]), " ".join(STORY)]
    return [magnet.tokenizer(text)["input_ids"] for text in texts]


@torch.no_grad()
def stock_logprobs(stock, row):
    """Compute one position of one row at a time."""
    logprobs = torch.log_softmax(stock(torch.tensor([row.input_ids])).logits[0], -1)
    return [
        logprobs[place - 1, row.input_ids[place]].item()
        for start, end in row.spans[row.first_counted :]
        for place in range(start, end)
    ]


def infill_logprobs(model, row):
    """Run one forward per token of each span; the other spans are empty."""
    edges = [0, *(edge for span in row.spans for edge in span), len(row.input_ids)]
    parts = [row.input_ids[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    lengths = [end - start for start, end in row.spans]
    layout = SpanLayout(
        parts=parts, span_lengths=lengths, filled=[[] for _ in lengths], healed=[Healed() for _ in lengths]
    )
    found = []
    for index, (start, end) in list(enumerate(row.spans))[row.first_counted :]:
        own = row.input_ids[start:end]
        found += [next_logprobs(model, layout, index, own[:k])[token].item() for k, token in enumerate(own)]
    return found


def assert_same(found, expected):
    assert [len(own) for own in found] == [len(own) for own in expected]
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(own), torch.tensor(other), atol=1e-4, rtol=0)


def test_left_reading_equals_the_stock_llama(stock, magnet, blocks):
    rows = block_rows(blocks, **SPANS, seed=4)
    assert max(len(row.spans) for row in rows) > 1
    assert_same(span_logprobs(magnet, rows, reading="left"), [stock_logprobs(stock, row) for row in rows])


def test_infill_reading_equals_one_forward_per_token(magnet, blocks):
    foreign = block_rows(blocks, **SPANS, seed=4, after=[*blocks[1:], blocks[0]])
    assert any(row.first_counted for row in foreign)
    rows = block_rows(blocks, **SPANS, seed=4) + foreign
    found = span_logprobs(magnet, rows, reading="infill")
    assert_same(found, [infill_logprobs(magnet, row) for row in rows])
    left = span_logprobs(magnet, rows, reading="left")
    assert max(abs(a[0] - b[0]) for a, b in zip(found, left, strict=True)) > 0.1


@pytest.mark.parametrize("place", range(5))
def test_story_score_equals_score_infill(real_llama, place):
    model = MagnetLlamaForCausalLM.from_pretrained(real_llama).eval()
    prefix, suffix = " ".join(STORY[:place]), "".join(f" {sentence}" for sentence in STORY[place + 1 :])
    fill = f" {STORY[place]}" if place else STORY[place]
    row = story_row(model.tokenizer, STORY, place)
    foreign = story_row(model.tokenizer, STORY, place, after=OTHER[place + 1 :])
    found = span_logprobs(model, [row, foreign], reading="infill")
    suffixes = [suffix, "".join(f" {sentence}" for sentence in OTHER[place + 1 :])]
    expected = model.score_infill([prefix] * 2, [[fill]] * 2, suffixes)
    assert_same(found, [one.logprobs for (one,) in expected])
    ((left,),) = PromptedInfiller(model, model.tokenizer).score_infill([prefix], [[fill]], [suffix])
    assert_same(span_logprobs(model, [row], reading="left"), [left.logprobs])
    assert left.token_ids == row.input_ids[slice(*row.spans[0])]


def test_end_of_span_model_gets_rounded_span_lengths(tiny_model):
    tiny_model.config.magnet["end_of_span"] = 8
    row = story_row(tiny_model.tokenizer, STORY, 1)
    expected = tiny_model.score_infill(STORY[0], [" " + STORY[1]], " " + " ".join(STORY[2:]))
    assert_same(span_logprobs(tiny_model, [row], reading="infill"), [expected[0].logprobs])
    tiny_model.config.magnet["end_of_span"] = 0
    (exact,) = span_logprobs(tiny_model, [row], reading="infill")
    assert exact != pytest.approx(expected[0].logprobs, abs=1e-3)


def test_spans_depend_on_the_seed_and_other_text_follows_each():
    blocks = [list(range(100 * n, 100 * n + 40)) for n in range(6)]
    rows = block_rows(blocks, **SPANS, seed=1)
    assert rows == block_rows(blocks, **SPANS, seed=1) != block_rows(blocks, **SPANS, seed=2)
    assert rows[:2] == block_rows(blocks[:2], **SPANS, seed=1)
    others = [*blocks[1:], blocks[0][:25]]
    foreign = iter(block_rows(blocks, **SPANS, seed=1, after=others))
    for row, ids, other in zip(rows, blocks, others, strict=True):
        assert row == RemovedSpans(ids, row.spans)
        for number, (start, end) in enumerate(row.spans):
            alone = next(foreign)
            assert alone.spans == row.spans[: number + 1]
            assert alone.first_counted == number
            assert alone.input_ids == ids[:end] + other[end:]
            assert start >= 1
    assert next(foreign, None) is None
