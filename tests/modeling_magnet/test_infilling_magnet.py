"""Compare fills with a full-mask forward pass per token: chunks, answers, lengths, embeddings, selections."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList, SuppressTokensLogitsProcessor

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.infill_options_magnet import AUTO_LENGTHS
from modeling_magnet.scoring_magnet import JOIN_TOKENS, scored_rows
from modeling_magnet.spans_magnet import continuation_ids, lay_out
from tests.modeling_magnet.infill_reference import fill_by_loop, next_logprobs
from tests.modeling_magnet.lifting import lift_logits

# Different numbers of blanks, lengths of context, and of blanks; blanks at either end; characters of several bytes.
BLANKED = [
    ("The king lived in [blank] with his daughter.", [5]),
    ("[blank] was born in the city of [blank], and he died there in the year [blank].", [3, 7, 2]),
    ("Once upon a time [blank]. She said: « Où est [blank] », because of [blank] and the [blank]", [4, 1, 6, 9]),
    ("Yes, [blank]", [8]),
    ("A [blank] b [blank] c [blank] d [blank]. [blank] e, [blank]f [blank] the [blank] end", [2, 1, 3, 2, 4, 1, 2, 3]),
]


@pytest.fixture(scope="module", params=["sdpa", pytest.param("eager", marks=pytest.mark.long)])
def model(real_llama, request):
    return MagnetLlamaForCausalLM.from_pretrained(real_llama, attn_implementation=request.param)


def best(output):
    """Return the tokens and log-probabilities of the best answer, for each text and blank."""
    return [[(answers[0].token_ids, answers[0].logprobs) for answers in blanks] for blanks in output.fills]


def check_equal(blanks, expected):
    """Assert equal tokens, and log-probabilities within 1e-4."""
    for (fill, logprobs), (tokens, reference) in zip(blanks, expected, strict=True):
        assert fill == tokens
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(reference), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("text", "lengths"), BLANKED)
def test_blanks_decoded_together_equal_a_loop_of_full_mask_forwards(model, text, lengths):
    output = model.infill_blanks(text, max_new_tokens=lengths, return_dict_in_generate=True)
    ((*blanks,),) = best(output)
    assert [len(fill) for fill, _ in blanks] == lengths
    check_equal(blanks, fill_by_loop(model, text.split("[blank]"), lengths))


def test_a_ragged_batch_equals_a_loop_of_full_mask_forwards(model):
    texts = [text for text, _ in BLANKED]
    output = model.infill_blanks(texts, max_new_tokens=5, return_dict_in_generate=True)
    for text, blanks in zip(texts, best(output), strict=True):
        parts = text.split("[blank]")
        check_equal(blanks, fill_by_loop(model, parts, [5] * (len(parts) - 1)))
    together = [[answers[0].text for answers in blanks] for blanks in output.fills]
    assert together == [model.infill_blanks(text, max_new_tokens=5) for text in texts]
    assert together == model.infill_blanks(texts, max_new_tokens=5, batch_size=3)


def test_samples_equal_a_loop_with_a_generator_for_each_blank(model):
    texts = [text for text, _ in BLANKED]
    torch.manual_seed(7)
    # With thousands of candidates instead of 20, rounding differences of 1e-7 would sometimes change a sample.
    output = model.infill_blanks(texts, max_new_tokens=5, do_sample=True, top_k=20, return_dict_in_generate=True)
    torch.manual_seed(7)
    for text, blanks in zip(texts, best(output), strict=True):
        parts = text.split("[blank]")
        seeds = [int(torch.randint(2**62, ())) for _ in parts[1:]]
        check_equal(blanks, fill_by_loop(model, parts, [5] * len(seeds), seeds=seeds, top_k=20))


def test_infill_equals_infill_blanks_with_one_blank(model):
    prefixes, suffixes = ["Once upon a time,", "She went to the", "Naïve", ""], [" was sad.", "", " 日本.", "the end."]
    fills = model.infill(prefixes, suffixes, max_new_tokens=7)
    assert fills == [model.infill(*pair, max_new_tokens=7) for pair in zip(prefixes, suffixes, strict=True)]
    texts = [f"{prefix}[blank]{suffix}" for prefix, suffix in zip(prefixes, suffixes, strict=True)]
    assert [[fill] for fill in fills] == model.infill_blanks(texts, max_new_tokens=7)
    assert model.infill([], [], max_new_tokens=7) == []


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
def test_a_fill_never_contains_a_special_token(tiny_model, do_sample):
    special = tiny_model.tokenizer.all_special_ids
    assert {0, 1, 2} <= set(special)
    lift_logits(tiny_model, special)
    output = tiny_model.infill(
        "The cat", " mat.", max_new_tokens=12, do_sample=do_sample, return_dict_in_generate=True
    )
    (((fill,),),) = output.fills
    assert len(fill.token_ids) == 12
    assert not set(fill.token_ids) & set(special)
    assert max(fill.logprobs) < -10, "logprobs include special tokens in the distribution"


def test_generation_settings_come_from_the_model_the_config_or_the_call(tiny_model):
    greedy = tiny_model.infill("The cat", " mat.", max_new_tokens=8)
    tiny_model.generation_config = GenerationConfig(do_sample=True, temperature=5.0, top_k=0, eos_token_id=2)
    before = copy.deepcopy(tiny_model.generation_config)
    torch.manual_seed(0)
    assert tiny_model.infill("The cat", " mat.", max_new_tokens=8) != greedy
    assert tiny_model.infill("The cat", " mat.", max_new_tokens=8, do_sample=False) == greedy
    config = GenerationConfig(do_sample=True, top_k=1)
    assert tiny_model.infill("The cat", " mat.", max_new_tokens=8, generation_config=config) == greedy
    assert tiny_model.generation_config == before


def test_bfloat16_fills_whole_spans(tiny_model):
    output = tiny_model.bfloat16().infill("The cat", " mat.", max_new_tokens=6, return_dict_in_generate=True)
    (((fill,),),) = output.fills
    assert len(fill.token_ids) == 6
    assert all(logprob < 0 for logprob in fill.logprobs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.infill("", "", max_new_tokens=4), "prefix and suffix.*`model.generate`"),
        (lambda m: m.infill("a", "b", max_new_tokens=254), r"257 positions .* 256"),
        (
            lambda m: m.infill(["a"], ["b", "c"], max_new_tokens=4),
            "`prefix` is .*1, `suffix` is .*2",
        ),
        (lambda m: m.infill("a", ["b"], max_new_tokens=4), "`prefix` is a str.*1.*`suffix` is a list"),
        (lambda m: m.infill(["a", 3], ["b", "c"], max_new_tokens=4), r"`prefix\[1\]` is int"),
        (lambda m: m.infill("a", "b", max_new_tokens=0), "`max_new_tokens` is 0"),
        (lambda m: m.infill("a", "b", max_new_tokens=True), "`max_new_tokens` is True"),
        (lambda m: m.infill("a", "b", max_new_tokens=[[[4]]]), r"`max_new_tokens` is \[4\]"),
        (lambda m: m.infill("a", "b", max_new_tokens=4.0), "`max_new_tokens` is 4.0"),
        (lambda m: m.infill_blanks("[blank] a [blank]", max_new_tokens=[1, 2, 3]), "3 numbers; text 0 has 2"),
        (lambda m: m.infill_blanks("a [blank][blank] b", max_new_tokens=4), "between two blanks"),
    ],
)
def test_invalid_infill_arguments_raise(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model)


def test_fill_joins_the_text_and_its_fills(model):
    texts = ["Once upon a [blank], she saw [blank].", r"Write \[blank] at the [blank]"]
    fills = model.infill_blanks(texts, max_new_tokens=3)
    around = [["Once upon a ", ", she saw ", "."], ["Write [blank] at the ", ""]]
    joined = [
        parts[0] + "".join(fill + part for fill, part in zip(blanks, parts[1:], strict=True))
        for blanks, parts in zip(fills, around, strict=True)
    ]
    assert model.fill(texts, max_new_tokens=3) == joined
    assert model.fill(texts[0], max_new_tokens=3) == joined[0]
    assert model.fill("Once ___ a time", blank="___", max_new_tokens=2) == (
        "Once " + model.infill("Once ", " a time", max_new_tokens=2) + " a time"
    )
    assert model.fill("Once upon a time", ranges=[(5, 9)], max_new_tokens=2).startswith("Once ")
    assert (
        model.fill("The cat[blank] mat.") == "The cat" + model.infill("The cat", " mat.", num_tokens="auto") + " mat."
    )
    assert model.fill([], max_new_tokens=3) == []


def test_fill_returns_distinct_texts(model):
    text, options = "Once upon a [blank], she saw [blank].", {"max_new_tokens": 2, "num_return_sequences": 3}
    first, second = model.infill_blanks(text, **options)
    expected = [f"Once upon a {a}, she saw {b}." for a, b in zip(first, second, strict=True)]
    assert model.fill(text, **options) == expected
    assert model.fill([text], **options) == [expected]
    assert isinstance(model.fill(text, max_new_tokens=2, num_return_sequences=1), str)
    with pytest.raises(ValueError, match="`return_dict_in_generate`"):
        model.fill(text, max_new_tokens=2, return_dict_in_generate=True)


def test_token_texts_join_to_the_fill(model):
    cases = [
        ("Once upon a [blank] time", {}),
        ("北[blank] (Beijing) 😀[blank]", {"num_return_sequences": 3}),
        ("She went to the the[blank] the park.", {"trim_overlap": True}),
        ("The little gi[blank]l went", {"heal": "token"}),
        ("Once upon a [blank] time", {"stop_strings": ["e", "n", "a"]}),
    ]
    for text, options in cases:
        output = model.infill_blanks(text, max_new_tokens=6, return_dict_in_generate=True, **options)
        for fill in (fill for blank in output.fills[0] for fill in blank):
            assert "".join(fill.tokens) == fill.text
            assert len(fill.tokens) == len(fill.token_ids)


TEXT = "Lily went to the [blank] with her mom. They saw a [blank] and were happy."


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def small_model(stories260k, request):
    return MagnetLlamaForCausalLM.from_pretrained(stories260k, attn_implementation=request.param)


@pytest.mark.parametrize(("lengths", "chunk"), [([7, 3], 3), ([4, 9], 4), ([6, 6], 2)])
def test_a_chunk_sees_earlier_chunks(small_model, lengths, chunk):
    """Compare with a loop in which each round is a separate text whose context contains all earlier chunks."""
    output = small_model.infill_blanks(TEXT, max_new_tokens=lengths, chunk_size=chunk, return_dict_in_generate=True)
    layout = lay_out(
        small_model.tokenizer, TEXT.split("[blank]"), span_lengths=lengths, context_length=512, heal="space"
    )
    assert [healed.start for healed in layout.healed] == [" ", " "]
    filled = [[], []]
    for _ in range(0, max(lengths), chunk):
        current = replace(layout, filled=[list(tokens) for tokens in filled])
        new = [[], []]
        for blank, length in enumerate(lengths):
            while len(filled[blank]) + len(new[blank]) < length and len(new[blank]) < chunk:
                index = len(filled[blank]) + len(new[blank])
                logprobs = next_logprobs(small_model, current, blank, new[blank])
                chosen = output.fills[0][blank][0]
                token = chosen.token_ids[index]
                assert chosen.logprobs[index] == pytest.approx(logprobs[token].item(), abs=1e-4)
                logprobs[small_model.tokenizer.all_special_ids] = -torch.inf
                if index > 0:  # the first token must begin with the space
                    assert token == logprobs.argmax().item()
                new[blank].append(token)
        filled = [[*old, *fresh] for old, fresh in zip(filled, new, strict=True)]
    assert [len(tokens) for tokens in filled] == lengths


def test_greedy_answers_include_the_best_and_begin_differently(small_model):
    output = small_model.infill_blanks(TEXT, max_new_tokens=4, num_return_sequences=5, return_dict_in_generate=True)
    best = small_model.infill_blanks(TEXT, max_new_tokens=4)
    for blank, fills in enumerate(output.fills[0]):
        assert best[blank] in [fill.text for fill in fills]
        assert len({fill.text for fill in fills}) == len(fills)
        assert len({fill.token_ids[0] for fill in fills}) == len(fills)
        totals = [fill.logprob for fill in fills]
        assert totals == sorted(totals, reverse=True)
    assert small_model.infill_blanks(TEXT, max_new_tokens=4, num_return_sequences=5) == [
        [fill.text for fill in blank] for blank in output.fills[0]
    ]


def test_answers_in_one_row_equal_separate_samples(small_model):
    """Sampled answers share a row; each equals the sample of the same seed in a separate row."""
    arguments = {"max_new_tokens": 5, "do_sample": True, "top_k": 20}
    torch.manual_seed(11)
    together = small_model.infill_blanks(TEXT, num_return_sequences=4, **arguments)
    torch.manual_seed(11)
    seeds = [[torch.randint(2**62, ()).item() for _ in range(4)] for _ in range(2)]
    for blank in range(2):
        for seed in seeds[blank]:
            # A call draws the seeds of its spans in order; this one is given the wanted seed at the blank's place.
            drawn = iter([seed, seed])
            original = torch.randint
            torch.randint = lambda *a, drawn=drawn, **k: torch.tensor(next(drawn))
            try:
                alone = small_model.infill_blanks(TEXT, **arguments)
            finally:
                torch.randint = original
            assert alone[blank] in together[blank]


def test_duplicate_samples_are_removed(small_model):
    fills = small_model.infill_blanks(TEXT, max_new_tokens=1, do_sample=True, top_k=2, num_return_sequences=12)
    for blank in fills:
        assert 1 <= len(blank) <= 2
        assert len(set(blank)) == len(blank)


def test_the_chosen_length_has_the_best_score(small_model):
    """Compute the score from separate calls: mean log-probability of the fill, plus that of the text after it."""
    prefix, suffix = "Lily went to the", " with her mom. They were happy."
    lengths = [1, 3, 5, 9]
    output = small_model.infill(prefix, suffix, num_tokens=lengths, return_dict_in_generate=True)
    (scores,) = output.length_scores[0]
    assert list(scores) == lengths
    expected = {}
    for length in lengths:
        (((fill,),),) = small_model.infill(prefix, suffix, max_new_tokens=length, return_dict_in_generate=True).fills
        layout = lay_out(small_model.tokenizer, [prefix, suffix], span_lengths=[length], context_length=512)
        ids = [*layout.parts[0], *fill.token_ids, *layout.parts[1]]
        with torch.no_grad():
            logprobs = torch.log_softmax(small_model(torch.tensor([ids]), mode="causal").logits[0], -1)
        start = len(layout.parts[0]) + length
        behind = range(start, min(start + JOIN_TOKENS, len(ids)))
        join = sum(logprobs[place - 1, ids[place]].item() for place in behind) / len(behind)
        expected[length] = fill.mean_logprob + join
        if length == max(scores, key=scores.get):
            assert output.fills[0][0][0].text == fill.text
    assert scores == pytest.approx(expected, abs=1e-4)


def test_each_blank_of_a_batch_gets_its_own_length(small_model):
    texts = [TEXT, "Once upon a time there was a [blank].", "[blank] the end"]
    output = small_model.infill_blanks(texts, num_tokens="auto", return_dict_in_generate=True)
    for text, blanks, tables in zip(texts, output.fills, output.length_scores, strict=True):
        assert len(blanks) == len(tables) == text.count("[blank]")
        for (fill,), scores in zip(blanks, tables, strict=True):
            assert tuple(scores) == AUTO_LENGTHS
            assert len(fill.token_ids) == max(scores, key=scores.get)
    assert [[answers[0].text for answers in blanks] for blanks in output.fills] == [
        small_model.infill_blanks(text, num_tokens="auto") for text in texts
    ]
    several = small_model.infill_blanks(texts[1], num_tokens=[2, 4], num_return_sequences=3, do_sample=True)
    assert 1 <= len(several[0]) <= 3


def test_the_embedding_is_of_the_text_around_the_blanks_with_an_eos_no_context_sees(small_model):
    output = small_model.infill_blanks([TEXT, "A [blank]."], max_new_tokens=3, return_dict_in_generate=True)
    assert output.embeddings.shape == (2, small_model.config.hidden_size)
    for text, embedding in zip([TEXT, "A [blank]."], output.embeddings, strict=True):
        parts = text.split("[blank]")
        layout = lay_out(
            small_model.tokenizer, parts, span_lengths=[3] * (len(parts) - 1), context_length=512, heal="space"
        )
        ids = torch.tensor([[*layout.token_ids, small_model.tokenizer.eos_token_id]])
        positions = torch.tensor([[*layout.positions, layout.length]])
        segments = torch.tensor([[0] * len(layout.token_ids) + [1]])
        with torch.no_grad():
            states = small_model(ids, position_ids=positions, mode="infill", segment_ids=segments).last_hidden_state[0]
        torch.testing.assert_close(embedding, states[-1], atol=1e-4, rtol=0)
    # Whether an embedding is wanted does not move a fill.
    assert [[g[0].text for g in blanks] for blanks in output.fills][0] == small_model.infill_blanks(
        TEXT, max_new_tokens=3
    )


def test_the_embedding_is_pooled_as_encode_pools(tiny_model):
    last = tiny_model.infill("The cat", " mat.", max_new_tokens=3, return_dict_in_generate=True).embeddings
    tiny_model.config.magnet["pooling"] = "mean"
    mean = tiny_model.infill("The cat", " mat.", max_new_tokens=3, return_dict_in_generate=True).embeddings
    assert np.abs((last - mean).numpy()).max() > 1e-3


def test_rewrite_uses_the_token_count_of_the_selection(small_model):
    text = "Lily went to the park with her mom."
    start = text.index("park")
    count = len(continuation_ids(small_model.tokenizer, " park"))
    fill = small_model.rewrite(text, start, start + 4)
    assert fill == small_model.infill_blanks(text, ranges=[(start, start + 4)], max_new_tokens=count)[0]
    others = small_model.rewrite(text, start, start + 4, num_return_sequences=3)
    assert fill in others
    assert len(others) == 3
    # A processor, as `generate` takes it, keeps a word out.
    chosen = small_model.rewrite(text, start, start + 4, return_dict_in_generate=True).fills[0][0][0].token_ids
    barred = LogitsProcessorList([SuppressTokensLogitsProcessor(chosen[:1])])
    assert small_model.rewrite(text, start, start + 4, logits_processor=barred) != fill
    inserted = small_model.rewrite(text, start, start, max_new_tokens=2)
    assert isinstance(inserted, str)


@pytest.mark.parametrize("heal", ["token", "space", None])
def test_rewrite_makes_room_for_healed_tokens(small_model, heal):
    """Formerly, one token had to spell a whole word, the space before it and the full stop after it."""
    text = "Lily went to the park."
    start = text.index("park")
    layout = lay_out(small_model.tokenizer, [text[:start], "."], span_lengths=[1], context_length=256, heal=heal)
    whole = layout.healed[0].start + "park" + layout.healed[0].end
    (answers,) = small_model.rewrite(text, start, start + 4, heal=heal, return_dict_in_generate=True).fills[0]
    assert len(answers[0].token_ids) == len(continuation_ids(small_model.tokenizer, whole))
    with pytest.raises(ValueError, match=rf"start == end == {start}.*`max_new_tokens`"):
        small_model.rewrite(text, start, start)
    with pytest.raises(ValueError, match=r"`text`.*\(3, 99\)"):
        small_model.rewrite(text, 3, 99)


def test_ranges_are_blanks(small_model):
    text = "Lily went to the park with her mom."
    marked = "Lily went to the [blank] with her [blank]."
    ranges = [(17, 21), (31, 34)]
    assert small_model.infill_blanks(text, ranges=ranges, max_new_tokens=2) == small_model.infill_blanks(
        marked, max_new_tokens=2
    )
    both = small_model.infill_blanks([text, text], ranges=[ranges, ranges[:1]], max_new_tokens=2)
    assert [len(blanks) for blanks in both] == [2, 1]
    with pytest.raises(ValueError, match="`ranges` has 1 lists for 2 texts"):
        small_model.infill_blanks([text, text], ranges=[ranges], max_new_tokens=2)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "repetition_penalty": 1.2},
        {"do_sample": True, "no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.2, "num_return_sequences": 3, "chunk_size": 2},
        {"do_sample": True, "num_return_sequences": 2, "chunk_size": 2, "no_repeat_ngram_size": 2},
    ],
)
def test_ragged_spans_with_processors_equal_single_calls(small_model, options):
    """Full spans stay in the batch because processors may index rows; they must not change other spans."""
    texts = [TEXT, "Once upon a time there was a [blank] dog.", "[blank] the end of the long story"]
    lengths = [[2, 6], [4], [1]]
    torch.manual_seed(3)
    together = small_model.infill_blanks(texts, max_new_tokens=lengths, **options)
    torch.manual_seed(3)
    alone = [
        small_model.infill_blanks(text, max_new_tokens=lengths_of_text, **options)
        for text, lengths_of_text in zip(texts, lengths, strict=True)
    ]
    assert together == alone


def test_processors_cannot_make_a_full_span_impossible(small_model):
    seen = []

    def bar_all_later(input_ids, scores):
        seen.append(len(scores))
        if len(seen) > 2:
            scores[0] = -torch.inf
        return scores

    processors = LogitsProcessorList([bar_all_later])
    output = small_model.infill_blanks(
        TEXT, max_new_tokens=[2, 5], logits_processor=processors, return_dict_in_generate=True
    )
    assert [len(answers[0].token_ids) for answers in output.fills[0]] == [2, 5]
    assert seen == [2] * 5

    def bar_all(input_ids, scores):
        return torch.full_like(scores, -torch.inf)

    with pytest.raises(ValueError, match="processors or penalties"):
        small_model.infill("Lily", " dog", max_new_tokens=2, logits_processor=LogitsProcessorList([bar_all]))


def test_an_impossible_answer_is_not_context_for_other_blanks(small_model):
    """Each answer to the second blank must have a possible answer to the first as its context."""
    text = "Lily saw a do[blank] and they were [blank] happy to play in the park"
    options = {"max_new_tokens": 4, "chunk_size": 2, "num_return_sequences": 40, "heal": "token"}
    output = small_model.infill_blanks(text, return_dict_in_generate=True, **options)
    special = set(small_model.tokenizer.all_special_ids)
    first, second = output.fills[0]
    assert len(first) < 40
    for fill in [*first, *second]:
        assert not special & set(fill.token_ids)
        assert all(value > -60 for value in fill.logprobs)


def test_numpy_integers_are_accepted(small_model):
    for options in ({"max_new_tokens": np.int64(4)}, {"max_new_tokens": 4, "num_return_sequences": np.int64(2)}):
        plain = {name: int(value) for name, value in options.items()}
        assert small_model.infill("Lily", " dog", **options) == small_model.infill("Lily", " dog", **plain)


def test_a_candidate_that_just_fits_is_tried(tiny_model):
    prefix = "a" * 200
    used = len(tiny_model.tokenizer(prefix)["input_ids"]) + len(
        tiny_model.tokenizer(" b", add_special_tokens=False)["input_ids"]
    )
    for end_of_span in (0, 16):
        tiny_model.config.magnet["end_of_span"] = end_of_span
        capacity = (256 - used) // 16 * 16 if end_of_span else 256 - used
        output = tiny_model.infill(prefix, " b", num_tokens=[2, capacity, capacity + 16], return_dict_in_generate=True)
        assert list(output.length_scores[0][0]) == [2, capacity]


def test_without_eos_there_are_fills_but_no_embeddings(tiny_model):
    tokenizer = tiny_model.tokenizer
    bare = type(tokenizer)(tokenizer_object=tokenizer._tokenizer, bos_token="<s>", unk_token="<unk>")
    expected = tiny_model.infill("The cat", " mat.", max_new_tokens=3)
    tiny_model.tokenizer = bare
    output = tiny_model.infill("The cat", " mat.", max_new_tokens=3, return_dict_in_generate=True)
    assert output.embeddings is None
    assert output.fills[0][0][0].text == expected


def test_dropout_is_off_while_a_training_model_fills_and_scores(tiny_model):
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    expected = tiny_model.eval().infill("The cat", " mat.", max_new_tokens=8)
    (score,) = tiny_model.score_infill("The cat", [" on the"], " mat.")
    tiny_model.train()
    assert tiny_model.infill("The cat", " mat.", max_new_tokens=8) == expected
    assert tiny_model.score_infill("The cat", [" on the"], " mat.")[0].logprobs == score.logprobs
    assert tiny_model.training
    assert all(layer.self_attn.training for layer in tiny_model.model.layers)


def test_nan_weights_raise(tiny_model):
    with torch.no_grad():
        tiny_model.lm_head.weight[5] = torch.nan
    with pytest.raises(ValueError, match="NaN logits"):
        tiny_model.infill(["The cat", "A"], [" mat.", " b"], max_new_tokens=3)


def test_a_streamer_with_two_texts_raises(tiny_model):
    with pytest.raises(ValueError, match="`streamer` .* 2"):
        tiny_model.infill(["a", "b"], ["c", "d"], max_new_tokens=2, streamer=object())


def test_context_of_only_special_tokens_raises(tiny_model):
    for prefix, suffix in (("", "</s>"), ("text", "</s>"), ("<s>", "text")):
        with pytest.raises(ValueError, match="special tokens"):
            tiny_model.infill(prefix, suffix, max_new_tokens=2, split_special_tokens=False)


def test_special_tokens_in_a_text_are_characters_by_default(tiny_model):
    as_tokens = {"split_special_tokens": False}
    typed = tiny_model.score_infill("the </s> dog", [" ran"], " home")[0].logprobs
    assert typed != tiny_model.score_infill("the </s> dog", [" ran"], " home", **as_tokens)[0].logprobs
    plain = tiny_model.score_infill("the dog", [" ran"], " home", **as_tokens)[0].logprobs
    assert plain == tiny_model.score_infill("the dog", [" ran"], " home")[0].logprobs
    characters = tiny_model.tokenizer("the </s> dog", split_special_tokens=True)["input_ids"]  # BOS in front
    (row,) = scored_rows(tiny_model, 0, "the </s> dog", [" ran"], "")
    assert row.layout.token_ids == characters
