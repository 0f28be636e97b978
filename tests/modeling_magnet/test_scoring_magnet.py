"""Compare scores of fills with a full-mask forward pass per fill, and with decoding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.scoring_magnet import scored_rows
from modeling_magnet.spans_magnet import continuation_ids, lay_out

from .lifting import lift_logits

FILLS = [" a red ball", " the", " big dog and a small cat", " a blue box", " the", "日本"]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(real_llama, request):
    return MagnetLlamaForCausalLM.from_pretrained(real_llama, attn_implementation=request.param)


@torch.no_grad()
def one_by_one(model, prefix, fill, suffix):
    """Return the log-probabilities of a fill from a separate forward pass, in the order of the text."""
    ids = continuation_ids(model.tokenizer, fill)
    layout = lay_out(model.tokenizer, [prefix, suffix], span_lengths=[len(ids)], context_length=10**6)
    cut = layout.predictors[0] + 1
    row = layout.token_ids[:cut] + ids + layout.token_ids[cut:]
    segments = [0] * cut + [1] * len(ids) + [0] * (len(layout.token_ids) - cut)
    logits = model(torch.tensor([row]), mode="infill", segment_ids=torch.tensor([segments])).logits[0]
    logprobs = torch.log_softmax(logits[cut - 1 : cut - 1 + len(ids)], -1)
    return logprobs.gather(-1, torch.tensor(ids)[:, None])[:, 0]


def test_each_score_equals_a_separate_forward_pass(model):
    prefix, suffix = "Lily saw", " in the park. She was happy."
    scored = model.score_infill(prefix, FILLS, suffix)
    assert [fill.text for fill in scored] == FILLS
    for fill in scored:
        torch.testing.assert_close(
            torch.tensor(fill.logprobs), one_by_one(model, prefix, fill.text, suffix), atol=1e-4, rtol=0
        )
        assert fill.logprob == pytest.approx(sum(fill.logprobs))
        assert fill.mean_logprob == pytest.approx(fill.logprob / len(fill.token_ids))
    assert scored[1].logprobs == scored[4].logprobs


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_a_batch_gives_the_scores_of_single_calls(model, batch_tokens):
    prefixes, suffixes = ["Lily saw", "", "Once upon a time,"], [" in the park.", " was sad.", ""]
    fills = [FILLS, FILLS[:1], FILLS[2:4]]
    together = model.score_infill(prefixes, fills, suffixes, batch_tokens=batch_tokens)
    for prefix, candidates, suffix, scored in zip(prefixes, fills, suffixes, together, strict=True):
        for fill, alone in zip(scored, model.score_infill(prefix, candidates, suffix), strict=True):
            assert fill.token_ids == alone.token_ids
            torch.testing.assert_close(torch.tensor(fill.logprobs), torch.tensor(alone.logprobs), atol=1e-4, rtol=0)
    assert model.score_infill([], [], []) == []


def test_a_fill_at_the_beginning_of_a_text_is_tokenized_as_a_beginning(model):
    output = model.infill("", " was a little girl. She was happy.", max_new_tokens=4, return_dict_in_generate=True)
    decoded = output.fills[0][0][0]
    (scored,) = model.score_infill("", [decoded.text], " was a little girl. She was happy.")
    if model.tokenizer(decoded.text, add_special_tokens=False)["input_ids"] == decoded.token_ids:
        assert scored.token_ids == decoded.token_ids
        assert scored.logprob == pytest.approx(decoded.logprob, abs=1e-3)
    assert scored.token_ids == model.tokenizer(decoded.text, add_special_tokens=False)["input_ids"]


def test_end_of_span_rounds_scored_spans_up_as_decoding_does(tiny_model):
    tiny_model.config.magnet["end_of_span"] = 8
    lift_logits(tiny_model, 2, -50.0)
    output = tiny_model.infill("The cat", " mat.", max_new_tokens=5, return_dict_in_generate=True)
    decoded = output.fills[0][0][0]
    (scored,) = tiny_model.score_infill("The cat", [decoded.text], " mat.")
    if scored.token_ids == decoded.token_ids:
        torch.testing.assert_close(torch.tensor(scored.logprobs), torch.tensor(decoded.logprobs), atol=1e-4, rtol=0)
    # Fills of 3 and of 5 tokens share a span of 8 and therefore a row.
    rows = scored_rows(tiny_model, 0, "The cat", ["abc", "abcde"], " mat.")
    assert [len(row.fills) for row in rows] == [2]


def test_nan_logits_raise(tiny_model):
    tiny_model.score_infill("The cat", [" sat"], " mat.")
    with torch.no_grad():
        tiny_model.lm_head.weight[7] = torch.nan
    with pytest.raises(ValueError, match="NaN logits for a token of a fill"):
        tiny_model.score_infill("The cat", [" sat"], " mat.")


@settings(max_examples=15, deadline=None)
@given(words=st.lists(st.sampled_from(["cat", "a dog", "it", "ran and ran", "é"]), min_size=1, max_size=6))
def test_scores_do_not_depend_on_other_candidates(stories260k, words):
    model = _MODEL.setdefault(stories260k, MagnetLlamaForCausalLM.from_pretrained(stories260k))
    fills = [f" {word}" for word in words]
    together = model.score_infill("The", fills, " away.")
    for fill, scored in zip(fills, together, strict=True):
        (alone,) = model.score_infill("The", [fill], " away.")
        torch.testing.assert_close(torch.tensor(scored.logprobs), torch.tensor(alone.logprobs), atol=1e-4, rtol=0)


_MODEL: dict = {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "b", "c"), "`fills` of text 0 are 'b'"),
        (("a", [], "c"), r"`fills` of text 0 are \[\]"),
        (("a", ["b", ""], "c"), "`fills` of text 0 are"),
        (("a", ["b", 3], "c"), r"`fills\[1\]` is int"),
        ((["a"], [["b"], ["c"]], ["d"]), "`fills` has 2 lists for 1 texts"),
        ((["a"], ["b"], ["d"]), "`fills` of text 0 are 'b'"),
        (("", ["b"], ""), "prefix and suffix"),
        (("a", ["b" * 400], "c"), "256"),
    ],
)
def test_invalid_score_arguments_raise(tiny_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.score_infill(*arguments)


def test_scoring_without_healing(space_run_model):
    """As decoding does: the same fill is scored in the tokens that decoding with the same option gives."""
    for heal in ("space", "token", None):
        for prefix, suffix in (("She ate ", " bread."), ("if x:\n    ", "\n    y = x"), ("the c", "t sat")):
            output = space_run_model.infill(prefix, suffix, max_new_tokens=4, heal=heal, return_dict_in_generate=True)
            decoded = output.fills[0][0][0]
            (scored,) = space_run_model.score_infill(prefix, [decoded.text], suffix, heal=heal)
            if scored.token_ids == decoded.token_ids:
                torch.testing.assert_close(
                    torch.tensor(scored.logprobs), torch.tensor(decoded.logprobs), atol=1e-4, rtol=0
                )
    tokenizer = space_run_model.tokenizer
    (healed,), (plain,) = (
        space_run_model.score_infill("She ate ", ["bread"], ".", heal=heal) for heal in ("space", None)
    )
    assert tokenizer.convert_ids_to_tokens(healed.token_ids[:2]) == ["▁b", "r"]
    assert tokenizer.convert_ids_to_tokens(plain.token_ids[:2]) == ["b", "r"]
    with pytest.raises(ValueError, match="`heal` is 'none'"):
        space_run_model.score_infill("She ate ", ["bread"], ".", heal="none")
