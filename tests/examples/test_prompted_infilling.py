"""The prompted baselines: prompts of the paper, and scores against plain forwards."""

import pytest
import torch
from transformers import AutoTokenizer

from examples.evaluate.parts.prompted_infilling import PROMPTS, PromptedInfiller, SolvedBlank
from modeling_magnet import MagnetLlamaForCausalLM

PREFIX, SUFFIX = "Tom fell. It hurt.", " He cried. Mom came."


@pytest.fixture(scope="module")
def causal_model(stories260k):
    model = MagnetLlamaForCausalLM.from_pretrained(stories260k).eval()
    return model, AutoTokenizer.from_pretrained(stories260k)


def test_a_line_of_a_story_is_missing_in_its_place():
    assert PROMPTS["line_by_line"](PREFIX, SUFFIX) == (
        "You have a five-sentence story with some missing text.\nHere is the context for each line, with the "
        "missing line indicated:\nLine 1: Tom fell.\nLine 2: It hurt.\nLine 3: [Missing Line]\nLine 4: He cried.\n"
        "Line 5: Mom came.\nPlease generate the missing line of the story. Please generate only the missing line "
        "and nothing else.\nThe missing line is: Line 3:"
    )


def test_prompt_adds_no_second_full_stop():
    """`Prefix: <past-context>.` and `... in the given text: <text>.`, without two marks in a row."""
    for prefix, expected in (("Tom fell", "Tom fell."), ('"Ow!"', '"Ow!"'), ("Why? ", "Why?"), ("", "")):
        lines = PROMPTS["prefix_suffix"](prefix, " He cried").split("\n")
        assert lines[1:3] == [f"Prefix: {expected}", "Suffix: He cried."]
    assert PROMPTS["blank"]("Tom fell.", "").split("\n")[0].endswith("in the given text: Tom fell. _.")
    assert PROMPTS["blank"]("Tom fell.", " He cried").split("\n")[0].endswith("text: Tom fell. _ He cried.")


def test_examples_come_first_in_the_same_format(causal_model):
    examples = [SolvedBlank("A cat.", " A dog.", "A cow."), SolvedBlank("Up.", "Left.", "Down.")]
    infiller = PromptedInfiller(*causal_model, family="prefix_suffix", examples=examples)
    blocks = infiller.prompt(PREFIX, SUFFIX).split("\n\n")
    assert blocks == [
        PROMPTS["prefix_suffix"]("A cat.", "A cow.") + " A dog.",
        PROMPTS["prefix_suffix"]("Up.", "Down.") + " Left.",
        PROMPTS["prefix_suffix"](PREFIX, SUFFIX),
    ]


def test_left_to_right_equals_greedy_generation(causal_model):
    model, tokenizer = causal_model
    infiller = PromptedInfiller(model, tokenizer)
    prefixes = [PREFIX, "Once upon a time"]
    fills = infiller.infill(prefixes, [SUFFIX, ""], max_new_tokens=8)
    for prefix, fill in zip(prefixes, fills, strict=True):
        ids = tokenizer(prefix, return_tensors="pt", return_token_type_ids=False)
        expected = model.generate(**ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        assert prefix + fill == tokenizer.decode(expected[0], skip_special_tokens=True)
        assert infiller.infill(prefix, SUFFIX, max_new_tokens=8) == fill


@pytest.mark.parametrize("family", ["blank", "contextual", "prefix_suffix", "line_by_line"])
def test_the_answer_to_a_prompt_is_one_line_that_joins(causal_model, family):
    fill = PromptedInfiller(*causal_model, family=family).infill(PREFIX, SUFFIX, max_new_tokens=12)
    assert "\n" not in fill
    assert fill.startswith(" ")
    spaced = PromptedInfiller(*causal_model, family=family).infill(PREFIX + " ", SUFFIX, max_new_tokens=12)
    assert not spaced.startswith(" ")


@torch.no_grad()
def plain_logprob(model, tokenizer, front, target):
    """Return the log-probability of one text after another, from one forward."""
    front_ids = tokenizer(front)["input_ids"]
    ids = tokenizer(front + target)["input_ids"]
    assert ids[: len(front_ids)] == front_ids
    logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    return sum(logprobs[place - 1, ids[place]].item() for place in range(len(front_ids), len(ids)))


def test_scores_are_those_of_plain_forwards(causal_model):
    model, tokenizer = causal_model
    fills = [" He was sad.", " The dog ran to the big red house."]
    infiller = PromptedInfiller(model, tokenizer)
    together = infiller.score_infill([PREFIX, "Once"], [fills, fills[:1]], [SUFFIX, SUFFIX])
    for prefix, scored in zip([PREFIX, "Once"], together, strict=True):
        for fill in scored:
            assert fill.logprob == pytest.approx(plain_logprob(model, tokenizer, prefix, fill.text), abs=1e-3)
    prompted = PromptedInfiller(model, tokenizer, family="contextual").score_infill(PREFIX, fills, SUFFIX)
    expected = plain_logprob(model, tokenizer, PROMPTS["contextual"](PREFIX, SUFFIX), fills[0])
    assert prompted[0].logprob == pytest.approx(expected, abs=1e-3)
