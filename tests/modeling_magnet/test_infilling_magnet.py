"""Cached decoding of gaps against one forward under the full mask, and what may be asked of `infill`."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.gaps_magnet import lay_out

# Different numbers of blanks, lengths of context, and of gaps; blanks at either end; characters of several bytes.
BLANKED = [
    ("The king lived in [blank] with his daughter.", [5]),
    ("[blank] was born in the city of [blank], and he died there in the year [blank].", [3, 7, 2]),
    ("Once upon a time [blank]. She said: « Où est [blank] », because of [blank] and the [blank]", [4, 1, 6, 9]),
    ("Yes, [blank]", [8]),
]
BEAMS = GenerationConfig(num_beams=4)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(real_llama, request):
    return MagnetLlamaForCausalLM.from_pretrained(real_llama, attn_implementation=request.param)


@torch.no_grad()
def full_mask_logprobs(model, text, fills):
    """Log-probabilities `(T, V)` of each gap from one forward over the filled text, in the order of the text."""
    pieces = text.split("[blank]")
    layout = lay_out(model.tokenizer, pieces, gap_lengths=[len(fill) for fill in fills], context_length=10**6)
    cells = [(position, token, 0) for position, token in zip(layout.positions, layout.token_ids, strict=True)]
    for gap, (start, fill) in enumerate(zip(layout.gap_starts, fills, strict=True), start=1):
        cells += [(start + step, token, gap) for step, token in enumerate(fill)]
    positions, tokens, segments = zip(*sorted(cells), strict=True)
    assert positions == tuple(range(layout.length))
    logits = model(torch.tensor([tokens]), mode="infill", segment_ids=torch.tensor([segments])).logits[0]
    # The output before a token predicts it.
    return [
        torch.log_softmax(logits[start - 1 : start - 1 + len(fill)], dim=-1)
        for start, fill in zip(layout.gap_starts, fills, strict=True)
    ]


def best(output):
    """Per text, the tokens and the log-probabilities of the best answer to each gap."""
    return [([gap[0].token_ids for gap in gaps], [gap[0].logprobs for gap in gaps]) for gaps in output.fills]


def check_against_full_mask(model, text, fills, logprobs):
    special = model.tokenizer.all_special_ids
    for fill, given, expected in zip(fills, logprobs, full_mask_logprobs(model, text, fills), strict=True):
        own = expected.gather(-1, torch.tensor(fill)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(given), own, atol=1e-4, rtol=0)
        expected[:, special] = -torch.inf
        assert fill == expected.argmax(-1).tolist()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(("text", "lengths"), BLANKED)
def test_blanks_decoded_together_equal_one_full_mask_forward(model, text, lengths, batch_size):
    output = model.infill_blanks(text, max_new_tokens=lengths, batch_size=batch_size, return_dict_in_generate=True)
    ((fills, logprobs),) = best(output)
    assert [len(fill) for fill in fills] == lengths
    check_against_full_mask(model, text, fills, logprobs)


def test_a_ragged_batch_equals_full_mask_forwards(model):
    texts = [text for text, _ in BLANKED]
    output = model.infill_blanks(texts, max_new_tokens=6, return_dict_in_generate=True)
    for text, (fills, logprobs) in zip(texts, best(output), strict=True):
        check_against_full_mask(model, text, fills, logprobs)
    together = [[gap[0].text for gap in gaps] for gaps in output.fills]
    assert together == [model.infill_blanks(text, max_new_tokens=6) for text in texts]
    assert together == model.infill_blanks(texts, max_new_tokens=6, batch_size=3)


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


def test_samples_are_scored_under_the_models_own_distribution(model):
    text = BLANKED[1][0]
    torch.manual_seed(0)
    output = model.infill_blanks(
        text, max_new_tokens=5, do_sample=True, temperature=2.0, top_p=0.9, return_dict_in_generate=True
    )
    ((fills, logprobs),) = best(output)
    expected = full_mask_logprobs(model, text, fills)
    for fill, given, table in zip(fills, logprobs, expected, strict=True):
        own = table.gather(-1, torch.tensor(fill)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(given), own, atol=1e-4, rtol=0)


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
        (lambda m: m.infill("a", "b", max_new_tokens=[[4]]), r"Gaps of \[\[4\]\] tokens.*an integer"),
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
