"""Cached decoding of gaps against one forward under the full mask, and what may be asked of `infill`."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.gaps_magnet import lay_out
from tests.modeling_magnet.infill_reference import fill_by_loop

# Different numbers of blanks, lengths of context, and of gaps; blanks at either end; characters of several bytes.
BLANKED = [
    ("The king lived in [blank] with his daughter.", [5]),
    ("[blank] was born in the city of [blank], and he died there in the year [blank].", [3, 7, 2]),
    ("Once upon a time [blank]. She said: « Où est [blank] », because of [blank] and the [blank]", [4, 1, 6, 9]),
    ("Yes, [blank]", [8]),
    ("A [blank] b [blank] c [blank] d [blank]. [blank] e, [blank]f [blank] the [blank] end", [2, 1, 3, 2, 4, 1, 2, 3]),
]
BEAMS = GenerationConfig(num_beams=4)


@pytest.fixture(scope="module", params=["sdpa", pytest.param("eager", marks=pytest.mark.long)])
def model(real_llama, request):
    return MagnetLlamaForCausalLM.from_pretrained(real_llama, attn_implementation=request.param)


def best(output):
    """Per text and gap, the tokens and the log-probabilities of the best answer."""
    return [[(gap[0].token_ids, gap[0].logprobs) for gap in gaps] for gaps in output.fills]


def check_equal(gaps, expected):
    """The same tokens, and log-probabilities to 1e-4."""
    for (fill, logprobs), (tokens, reference) in zip(gaps, expected, strict=True):
        assert fill == tokens
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(reference), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("text", "lengths"), BLANKED)
def test_blanks_decoded_together_equal_a_loop_of_full_mask_forwards(model, text, lengths):
    output = model.infill_blanks(text, max_new_tokens=lengths, return_dict_in_generate=True)
    ((*gaps,),) = best(output)
    assert [len(fill) for fill, _ in gaps] == lengths
    check_equal(gaps, fill_by_loop(model, text.split("[blank]"), lengths))


def test_a_ragged_batch_equals_a_loop_of_full_mask_forwards(model):
    texts = [text for text, _ in BLANKED]
    output = model.infill_blanks(texts, max_new_tokens=5, return_dict_in_generate=True)
    for text, gaps in zip(texts, best(output), strict=True):
        pieces = text.split("[blank]")
        check_equal(gaps, fill_by_loop(model, pieces, [5] * (len(pieces) - 1)))
    together = [[gap[0].text for gap in gaps] for gaps in output.fills]
    assert together == [model.infill_blanks(text, max_new_tokens=5) for text in texts]
    assert together == model.infill_blanks(texts, max_new_tokens=5, batch_size=3)


def test_samples_equal_a_loop_with_a_generator_for_each_blank(model):
    texts = [text for text, _ in BLANKED]
    torch.manual_seed(7)
    # Few tokens to draw from: with thousands, a difference of 1e-7 in the last digits would now and then move a draw.
    output = model.infill_blanks(texts, max_new_tokens=5, do_sample=True, top_k=20, return_dict_in_generate=True)
    torch.manual_seed(7)
    for text, gaps in zip(texts, best(output), strict=True):
        pieces = text.split("[blank]")
        seeds = [int(torch.randint(2**62, ())) for _ in pieces[1:]]
        check_equal(gaps, fill_by_loop(model, pieces, [5] * len(seeds), seeds=seeds, top_k=20))


def test_infill_is_the_text_with_one_blank(model):
    prefixes, suffixes = ["Once upon a time,", "She went to the", "Naïve", ""], [" was sad.", "", " 日本.", "the end."]
    fills = model.infill(prefixes, suffixes, max_new_tokens=7)
    assert fills == [model.infill(*pair, max_new_tokens=7) for pair in zip(prefixes, suffixes, strict=True)]
    texts = [f"{prefix}[blank]{suffix}" for prefix, suffix in zip(prefixes, suffixes, strict=True)]
    assert [[fill] for fill in fills] == model.infill_blanks(texts, max_new_tokens=7)
    assert model.infill_blanks(texts[0].replace("[blank]", "___"), blank="___", max_new_tokens=7) == [fills[0]]
    assert model.infill([], [], max_new_tokens=7) == []


def test_prefix_fill_and_suffix_are_the_text_of_the_tokens(model):
    for prefix, suffix in (("Once upon a time", " was sad."), ("The naïve", "ly said “日本”"), ("", "y the end.")):
        output = model.infill(prefix, suffix, max_new_tokens=6, return_dict_in_generate=True)
        layout = lay_out(model.tokenizer, [prefix, suffix], gap_lengths=[6], context_length=512)
        split = layout.predictors[0] + 1
        ids = layout.token_ids[1:split] + output.fills[0][0][0].token_ids + layout.token_ids[split:]
        text = model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert prefix + output.fills[0][0][0].text + suffix == text


def test_a_sample_does_not_depend_on_its_batch(model):
    texts = [text for text, _ in BLANKED]
    arguments = {"max_new_tokens": 8, "do_sample": True, "temperature": 1.3, "top_k": 0}
    torch.manual_seed(5)
    together = model.infill_blanks(texts, **arguments)
    torch.manual_seed(5)
    assert model.infill_blanks(texts, batch_size=2, **arguments) == together
    torch.manual_seed(5)
    assert [model.infill_blanks(text, **arguments) for text in texts] == together
    torch.manual_seed(6)
    assert model.infill_blanks(texts, **arguments) != together


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_fill_never_holds_a_special_token(tiny_model, do_sample):
    special = tiny_model.tokenizer.all_special_ids
    assert {0, 1, 2} <= set(special)

    def push_special_tokens(module, inputs, output):
        output = output.clone()
        output[..., special] += 50.0
        return output

    tiny_model.lm_head.register_forward_hook(push_special_tokens)
    output = tiny_model.infill(
        "The cat", " mat.", max_new_tokens=12, do_sample=do_sample, return_dict_in_generate=True
    )
    (((fill,),),) = output.fills
    assert len(fill.token_ids) == 12
    assert not set(fill.token_ids) & set(special)
    assert max(fill.logprobs) < -10, "scored as the model has it, special tokens included"


def test_every_further_end_of_sequence_token_is_barred(tiny_model):
    output = tiny_model.infill("The cat", " mat.", max_new_tokens=1, return_dict_in_generate=True)
    (greedy,) = output.fills[0][0][0].token_ids
    tiny_model.generation_config.eos_token_id = [2, greedy]
    output = tiny_model.infill("The cat", " mat.", max_new_tokens=8, return_dict_in_generate=True)
    assert greedy not in output.fills[0][0][0].token_ids


def test_generation_knobs_come_from_the_model_the_caller_or_the_call(tiny_model):
    greedy = tiny_model.infill("The cat", " mat.", max_new_tokens=8)
    tiny_model.generation_config = GenerationConfig(do_sample=True, temperature=5.0, top_k=0, eos_token_id=2)
    before = copy.deepcopy(tiny_model.generation_config)
    torch.manual_seed(0)
    assert tiny_model.infill("The cat", " mat.", max_new_tokens=8) != greedy
    assert tiny_model.infill("The cat", " mat.", max_new_tokens=8, do_sample=False) == greedy
    config = GenerationConfig(do_sample=True, top_k=1)
    assert tiny_model.infill("The cat", " mat.", max_new_tokens=8, generation_config=config) == greedy
    assert tiny_model.generation_config == before


def test_a_model_opened_as_an_encoder_infills_the_same(tiny_model):
    expected = tiny_model.infill("The cat", " mat.", max_new_tokens=6)
    tiny_model.default_mode = "bidirectional"
    assert tiny_model.infill("The cat", " mat.", max_new_tokens=6) == expected


def test_bfloat16_fills_whole_gaps(tiny_model):
    output = tiny_model.bfloat16().infill("The cat", " mat.", max_new_tokens=6, return_dict_in_generate=True)
    (((fill,),),) = output.fills
    assert len(fill.token_ids) == 6
    assert all(logprob < 0 for logprob in fill.logprobs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.infill("", "", max_new_tokens=4), r"no text around the gap.*`model.generate`"),
        (lambda m: m.infill("a", "b", max_new_tokens=0), r"Gaps of \[0\] tokens"),
        (lambda m: m.infill("a", "b", max_new_tokens=254), r"need 257 positions .* the model has 256"),
        (lambda m: m.infill(["a"], ["b", "c"], max_new_tokens=4), "1 prefixes and 2 suffixes"),
        (lambda m: m.infill("a", ["b"], max_new_tokens=4), "`prefix` is str and `suffix` list"),
        (lambda m: m.infill(["a", 3], ["b", "c"], max_new_tokens=4), r"`prefix\[1\]` is int"),
        (lambda m: m.infill(None, None, max_new_tokens=4), "`prefix` is NoneType"),
        (lambda m: m.infill("a", "b", max_new_tokens=4, num_beams=4), "does not know `num_beams`"),
        (
            lambda m: m.infill("a", "b", max_new_tokens=4, generation_config=GenerationConfig(num_beams=4)),
            "num_beams=4",
        ),
        (lambda m: m.infill("a", "b", max_new_tokens=4, batch_size=0), "`batch_size` is 0"),
        (lambda m: m.infill("a", "b", max_new_tokens=[[[4]]]), r"Gaps of \[\[4\]\] tokens.*an integer"),
        (lambda m: m.infill("a", "b", max_new_tokens=4.0), r"Gaps of \[4.0\] tokens.*an integer"),
        (lambda m: m.infill_blanks("no mark", max_new_tokens=4), r"`text` has no blank '\[blank\]'"),
        (lambda m: m.infill_blanks("a [blank]", blank="", max_new_tokens=4), "`blank` is ''"),
        (
            lambda m: m.infill_blanks("[blank] a [blank]", max_new_tokens=[1, 2, 3]),
            "3 numbers; text 0 has 2 gaps",
        ),
        (lambda m: m.infill_blanks("a [blank][blank] b", max_new_tokens=4), "Nothing stands between gap 1"),
        (lambda m: m.infill_blanks(["a [blank]", 7], max_new_tokens=4), r"`text\[1\]` is int"),
    ],
)
def test_what_cannot_be_filled_is_named(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model)


def test_a_text_that_fills_the_context_to_its_end_is_filled(tiny_model):
    output = tiny_model.infill("a", "b", max_new_tokens=253, chunk_size=253, return_dict_in_generate=True)
    assert len(output.fills[0][0][0].token_ids) == 253


def test_a_filled_text_comes_in_one_call(model):
    texts = ["Once upon a [blank], she saw [blank].", r"Write \[blank] at the [blank]"]
    fills = model.infill_blanks(texts, max_new_tokens=3)
    pieces = [["Once upon a ", ", she saw ", "."], ["Write [blank] at the ", ""]]
    joined = [
        parts[0] + "".join(fill + part for fill, part in zip(own, parts[1:], strict=True))
        for own, parts in zip(fills, pieces, strict=True)
    ]
    assert model.fill(texts, max_new_tokens=3) == joined
    assert model.fill(texts[0], max_new_tokens=3) == joined[0]
    assert model.fill("Once ___ a time", blank="___", max_new_tokens=2) == (
        "Once " + model.infill("Once ", " a time", max_new_tokens=2) + " a time"
    )
    assert model.fill("Once upon a time", ranges=[(5, 9)], max_new_tokens=2).startswith("Once ")
    assert model.fill([], max_new_tokens=3) == []


def test_several_filled_texts_are_different_ones(model):
    text, options = "Once upon a [blank], she saw [blank].", {"max_new_tokens": 2, "num_return_sequences": 3}
    first, second = model.infill_blanks(text, **options)
    expected = [f"Once upon a {a}, she saw {b}." for a, b in zip(first, second, strict=True)]
    assert model.fill(text, **options) == expected
    assert model.fill([text], **options) == [expected]
    assert isinstance(model.fill(text, max_new_tokens=2, num_return_sequences=1), str)
    with pytest.raises(ValueError, match="`fill` returns text. Call `infill_blanks`"):
        model.fill(text, max_new_tokens=2, return_dict_in_generate=True)
    with pytest.raises(ValueError, match="`text` has no blank"):
        model.fill("none")


def test_without_a_length_the_best_one_is_taken(tiny_model):
    assert tiny_model.infill("The cat", " mat.") == tiny_model.infill("The cat", " mat.", num_tokens="auto")
    assert tiny_model.fill("The cat[blank] mat.") == "The cat" + tiny_model.infill("The cat", " mat.") + " mat."


def test_the_texts_of_tokens_join_to_the_fill(model):
    cases = [
        ("Once upon a [blank] time", {}),
        ("北[blank] (Beijing) 😀[blank]", {"num_return_sequences": 3}),
        ("She went to the the[blank] the park.", {"trim_overlap": True}),
        ("The little gi[blank]l went", {"heal": "token"}),
        ("Once upon a [blank] time", {"stop_strings": ["e", "n", "a"]}),
    ]
    for text, options in cases:
        output = model.infill_blanks(text, max_new_tokens=6, return_dict_in_generate=True, **options)
        for fill in (fill for gap in output.fills[0] for fill in gap):
            assert "".join(fill.tokens) == fill.text
            assert len(fill.tokens) == len(fill.token_ids)
