"""Rounds of chunks, several answers, candidate lengths, embeddings and selections."""

import copy

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import LogitsProcessorList, SuppressTokensLogitsProcessor

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.gaps_magnet import continuation_ids, lay_out
from modeling_magnet.lengths_magnet import JOIN_TOKENS
from modeling_magnet.options_magnet import AUTO_LENGTHS
from tests.modeling_magnet.infill_reference import next_logprobs

TEXT = "Lily went to the [blank] with her mom. They saw a [blank] and were happy."


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(stories260k, request):
    return MagnetLlamaForCausalLM.from_pretrained(stories260k, attn_implementation=request.param)


@pytest.mark.parametrize(("lengths", "chunk"), [([7, 3], 3), ([4, 9], 4), ([6, 6], 2)])
def test_a_chunk_sees_what_was_filled_before(model, lengths, chunk):
    """Against a loop in which each round is a text of its own, whose context holds the earlier chunks of all gaps."""
    output = model.infill_blanks(TEXT, max_new_tokens=lengths, chunk_size=chunk, return_dict_in_generate=True)
    layout = lay_out(model.tokenizer, TEXT.split("[blank]"), gap_lengths=lengths, context_length=512, heal="space")
    pieces, starts = layout.pieces, [seam.start for seam in layout.seams]
    assert starts == [" ", " "]
    filled = [[], []]
    for _ in range(0, max(lengths), chunk):
        current = copy.copy(layout)
        object.__setattr__(current, "__dict__", {"pieces": pieces, "gap_lengths": lengths, "seams": layout.seams,
                                                 "filled": [list(tokens) for tokens in filled]})  # fmt: skip
        new = [[], []]
        for gap, length in enumerate(lengths):
            while len(filled[gap]) + len(new[gap]) < length and len(new[gap]) < chunk:
                index = len(filled[gap]) + len(new[gap])
                logprobs = next_logprobs(model, current, gap, new[gap])
                chosen = output.fills[0][gap][0]
                token = chosen.token_ids[index]
                assert chosen.logprobs[index] == pytest.approx(logprobs[token].item(), abs=1e-4)
                logprobs[model.tokenizer.all_special_ids] = -torch.inf
                if index > 0:  # the first has to begin with the space
                    assert token == logprobs.argmax().item()
                new[gap].append(token)
        filled = [[*old, *fresh] for old, fresh in zip(filled, new, strict=True)]
    assert [len(tokens) for tokens in filled] == lengths


def test_one_chunk_that_holds_all_is_no_chunk(model):
    whole = model.infill_blanks(TEXT, max_new_tokens=9, chunk_size=9)
    assert model.infill_blanks(TEXT, max_new_tokens=9) == whole
    assert model.infill_blanks(TEXT, max_new_tokens=9, chunk_size=4) != whole


def test_several_greedy_answers_are_single_ones_that_begin_differently(model):
    output = model.infill_blanks(TEXT, max_new_tokens=4, num_return_sequences=5, return_dict_in_generate=True)
    best = model.infill_blanks(TEXT, max_new_tokens=4)
    for gap, fills in enumerate(output.fills[0]):
        assert best[gap] in [fill.text for fill in fills]
        assert len({fill.text for fill in fills}) == len(fills)
        assert len({fill.token_ids[0] for fill in fills}) == len(fills)
        totals = [fill.logprob for fill in fills]
        assert totals == sorted(totals, reverse=True)
    assert model.infill_blanks(TEXT, max_new_tokens=4, num_return_sequences=5) == [
        [fill.text for fill in gap] for gap in output.fills[0]
    ]


def test_answers_side_by_side_are_what_they_are_alone(model):
    """Sampled answers share a row; each equals the sample of the same stream in a row of its own."""
    arguments = {"max_new_tokens": 5, "do_sample": True, "top_k": 20}
    torch.manual_seed(11)
    together = model.infill_blanks(TEXT, num_return_sequences=4, **arguments)
    torch.manual_seed(11)
    seeds = [[torch.randint(2**62, ()).item() for _ in range(4)] for _ in range(2)]
    for gap in range(2):
        for seed in seeds[gap]:
            # A call draws the seeds of its spans in order; this one is given the wanted seed at the gap's place.
            drawn = iter([seed, seed])
            original = torch.randint
            torch.randint = lambda *a, drawn=drawn, **k: torch.tensor(next(drawn))
            try:
                alone = model.infill_blanks(TEXT, **arguments)
            finally:
                torch.randint = original
            assert alone[gap] in together[gap]


def test_duplicate_samples_are_removed(model):
    fills = model.infill_blanks(TEXT, max_new_tokens=1, do_sample=True, top_k=2, num_return_sequences=12)
    for gap in fills:
        assert 1 <= len(gap) <= 2
        assert len(set(gap)) == len(gap)


def test_the_best_length_is_the_best_scored(model):
    """The score against separate calls: the fill's mean log-probability, plus that of what follows it causally."""
    prefix, suffix = "Lily went to the", " with her mom. They were happy."
    lengths = [1, 3, 5, 9]
    output = model.infill(prefix, suffix, num_tokens=lengths, return_dict_in_generate=True)
    (scores,) = output.length_scores[0]
    assert list(scores) == lengths
    expected = {}
    for length in lengths:
        (((fill,),),) = model.infill(prefix, suffix, max_new_tokens=length, return_dict_in_generate=True).fills
        layout = lay_out(model.tokenizer, [prefix, suffix], gap_lengths=[length], context_length=512)
        ids = [*layout.pieces[0], *fill.token_ids, *layout.pieces[1]]
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([ids]), mode="causal").logits[0], -1)
        start = len(layout.pieces[0]) + length
        behind = range(start, min(start + JOIN_TOKENS, len(ids)))
        join = sum(logprobs[place - 1, ids[place]].item() for place in behind) / len(behind)
        expected[length] = fill.mean_logprob + join
        if length == max(scores, key=scores.get):
            assert output.fills[0][0][0].text == fill.text
    assert scores == pytest.approx(expected, abs=1e-4)


def test_each_gap_of_a_batch_gets_its_own_length(model):
    texts = [TEXT, "Once upon a time there was a [blank].", "[blank] the end"]
    output = model.infill_blanks(texts, num_tokens="auto", return_dict_in_generate=True)
    for text, gaps, tables in zip(texts, output.fills, output.length_scores, strict=True):
        assert len(gaps) == len(tables) == text.count("[blank]")
        for (fill,), scores in zip(gaps, tables, strict=True):
            assert tuple(scores) == AUTO_LENGTHS
            assert len(fill.token_ids) == max(scores, key=scores.get)
    assert [[gap[0].text for gap in gaps] for gaps in output.fills] == [
        model.infill_blanks(text, num_tokens="auto") for text in texts
    ]
    several = model.infill_blanks(texts[1], num_tokens=[2, 4], num_return_sequences=3, do_sample=True)
    assert 1 <= len(several[0]) <= 3


def test_candidates_that_leave_the_context_are_left_out(tiny_model):
    prefix = "a" * 200
    room = 256 - len(tiny_model.tokenizer(prefix)["input_ids"]) - 2
    output = tiny_model.infill(prefix, " b", num_tokens=[2, room + 50], return_dict_in_generate=True)
    assert list(output.length_scores[0][0]) == [2]


def test_the_embedding_is_of_the_gapped_text_with_an_eos_no_context_sees(model):
    output = model.infill_blanks([TEXT, "A [blank]."], max_new_tokens=3, return_dict_in_generate=True)
    assert output.embeddings.shape == (2, model.config.hidden_size)
    for text, embedding in zip([TEXT, "A [blank]."], output.embeddings, strict=True):
        pieces = text.split("[blank]")
        layout = lay_out(
            model.tokenizer, pieces, gap_lengths=[3] * (len(pieces) - 1), context_length=512, heal="space"
        )
        ids = torch.tensor([[*layout.token_ids, model.tokenizer.eos_token_id]])
        positions = torch.tensor([[*layout.positions, layout.length]])
        segments = torch.tensor([[0] * len(layout.token_ids) + [1]])
        with torch.no_grad():
            states = model(ids, position_ids=positions, mode="infill", segment_ids=segments).last_hidden_state[0]
        torch.testing.assert_close(embedding, states[-1], atol=1e-4, rtol=0)
    # Whether an embedding is wanted does not move a fill.
    assert [[g[0].text for g in gaps] for gaps in output.fills][0] == model.infill_blanks(TEXT, max_new_tokens=3)


def test_the_embedding_is_pooled_as_encode_pools(tiny_model):
    last = tiny_model.infill("The cat", " mat.", max_new_tokens=3, return_dict_in_generate=True).embeddings
    tiny_model.config.magnet["pooling"] = "mean"
    mean = tiny_model.infill("The cat", " mat.", max_new_tokens=3, return_dict_in_generate=True).embeddings
    assert np.abs((last - mean).numpy()).max() > 1e-3


def test_a_selection_is_rewritten_in_as_many_tokens(model):
    text = "Lily went to the park with her mom."
    start = text.index("park")
    count = len(continuation_ids(model.tokenizer, " park"))
    fill = model.rewrite(text, start, start + 4)
    assert fill == model.infill_blanks(text, ranges=[(start, start + 4)], max_new_tokens=count)[0]
    others = model.rewrite(text, start, start + 4, num_return_sequences=3)
    assert fill in others
    assert len(others) == 3
    # A processor, as `generate` takes it, keeps a word out.
    chosen = model.rewrite(text, start, start + 4, return_dict_in_generate=True).fills[0][0][0].token_ids
    barred = LogitsProcessorList([SuppressTokensLogitsProcessor(chosen[:1])])
    assert model.rewrite(text, start, start + 4, logits_processor=barred) != fill
    inserted = model.rewrite(text, start, start, max_new_tokens=2)
    assert isinstance(inserted, str)
    with pytest.raises(ValueError, match=f"Nothing is selected at {start}"):
        model.rewrite(text, start, start)
    with pytest.raises(ValueError, match=r"Range \(3, 99\) does not fit `text`"):
        model.rewrite(text, 3, 99)


def test_ranges_are_blanks(model):
    text = "Lily went to the park with her mom."
    marked = "Lily went to the [blank] with her [blank]."
    ranges = [(17, 21), (31, 34)]
    assert model.infill_blanks(text, ranges=ranges, max_new_tokens=2) == model.infill_blanks(marked, max_new_tokens=2)
    both = model.infill_blanks([text, text], ranges=[ranges, ranges[:1]], max_new_tokens=2)
    assert [len(gaps) for gaps in both] == [2, 1]
    with pytest.raises(ValueError, match="`ranges` is int"):
        model.infill_blanks([text], ranges=5, max_new_tokens=2)
    with pytest.raises(ValueError, match="2 texts and 1 lists of ranges"):
        model.infill_blanks([text, text], ranges=[ranges], max_new_tokens=2)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "repetition_penalty": 1.2},
        {"do_sample": True, "no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.2, "num_return_sequences": 3, "chunk_size": 2},
        {"do_sample": True, "num_return_sequences": 2, "chunk_size": 2, "no_repeat_ngram_size": 2},
    ],
)
def test_ragged_gaps_with_processors_are_filled_as_alone(model, options):
    """Full spans stay beside the others where processors know rows by number, and change nothing."""
    texts = [TEXT, "Once upon a time there was a [blank] dog.", "[blank] the end of the long story"]
    lengths = [[2, 6], [4], [1]]
    torch.manual_seed(3)
    together = model.infill_blanks(texts, max_new_tokens=lengths, **options)
    torch.manual_seed(3)
    alone = [
        model.infill_blanks(text, max_new_tokens=own, **options) for text, own in zip(texts, lengths, strict=True)
    ]
    assert together == alone


def test_what_a_processor_says_of_a_full_span_does_not_count(model):
    seen = []

    def bar_all_later(input_ids, scores):
        seen.append(len(scores))
        if len(seen) > 2:
            scores[0] = -torch.inf
        return scores

    processors = LogitsProcessorList([bar_all_later])
    output = model.infill_blanks(
        TEXT, max_new_tokens=[2, 5], logits_processor=processors, return_dict_in_generate=True
    )
    assert [len(gap[0].token_ids) for gap in output.fills[0]] == [2, 5]
    assert seen == [2] * 5

    def bar_all(input_ids, scores):
        return torch.full_like(scores, -torch.inf)

    with pytest.raises(ValueError, match="the processors or penalties leave none"):
        model.infill("Lily", " dog", max_new_tokens=2, logits_processor=LogitsProcessorList([bar_all]))


def test_an_impossible_answer_is_no_context_of_another_gap(model):
    """Every answer to the second gap is scored beside a possible answer to the first."""
    text = "Lily saw a do[blank] and they were [blank] happy to play in the park"
    options = {"max_new_tokens": 4, "chunk_size": 2, "num_return_sequences": 40, "heal": "token"}
    output = model.infill_blanks(text, return_dict_in_generate=True, **options)
    special = set(model.tokenizer.all_special_ids)
    first, second = output.fills[0]
    assert len(first) < 40
    for fill in [*first, *second]:
        assert not special & set(fill.token_ids)
        assert all(value > -60 for value in fill.logprobs)


def test_indentation_and_characters_are_filled(model, babyllama):
    assert isinstance(model.infill("def f():\n    ", "return x", max_new_tokens=3), str)
    assert isinstance(model.infill("Lily saw  ", " dog", max_new_tokens=1), str)
    characters = MagnetLlamaForCausalLM.from_pretrained(babyllama, mask_token="~")
    output = characters.infill("The ", " sat.", max_new_tokens=3, return_dict_in_generate=True)
    (((fill,),),) = output.fills
    assert len(fill.text) == 3, "no position is spent on a space that is there already"


def test_numbers_of_numpy_are_numbers(model):
    for options in ({"max_new_tokens": np.int64(4)}, {"max_new_tokens": 4, "num_return_sequences": np.int64(2)}):
        plain = {name: int(value) for name, value in options.items()}
        assert model.infill("Lily", " dog", **options) == model.infill("Lily", " dog", **plain)
    model.config.magnet["end_of_span"] = 8
    try:
        five = model.infill("Lily", " dog", max_new_tokens=5)
        assert model.infill("Lily", " dog", max_new_tokens=np.int64(5)) == five
        for wrong, shown in ((True, "True"), (-5, "-5")):
            with pytest.raises(ValueError, match=rf"Gaps of \[{shown}\] tokens"):
                model.infill("Lily", " dog", max_new_tokens=wrong)
    finally:
        model.config.magnet["end_of_span"] = 0


def test_a_candidate_that_just_fits_is_tried(tiny_model):
    prefix = "a" * 200
    used = len(tiny_model.tokenizer(prefix)["input_ids"]) + len(
        tiny_model.tokenizer(" b", add_special_tokens=False)["input_ids"]
    )
    for end_of_span in (0, 16):
        tiny_model.config.magnet["end_of_span"] = end_of_span
        room = (256 - used) // 16 * 16 if end_of_span else 256 - used
        output = tiny_model.infill(prefix, " b", num_tokens=[2, room, room + 16], return_dict_in_generate=True)
        assert list(output.length_scores[0][0]) == [2, room]


def test_a_tokenizer_without_eos_fills_but_embeds_nothing(tiny_model):
    tokenizer = tiny_model.tokenizer
    bare = type(tokenizer)(tokenizer_object=tokenizer._tokenizer, bos_token="<s>", unk_token="<unk>")
    expected = tiny_model.infill("The cat", " mat.", max_new_tokens=3)
    tiny_model.tokenizer = bare
    output = tiny_model.infill("The cat", " mat.", max_new_tokens=3, return_dict_in_generate=True)
    assert output.embeddings is None
    assert output.fills[0][0][0].text == expected


def test_a_model_in_training_fills_and_scores_without_dropout(tiny_model):
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    expected = tiny_model.eval().infill("The cat", " mat.", max_new_tokens=8)
    (score,) = tiny_model.score_infill("The cat", [" on the"], " mat.")
    tiny_model.train()
    assert tiny_model.infill("The cat", " mat.", max_new_tokens=8) == expected
    assert tiny_model.score_infill("The cat", [" on the"], " mat.")[0].logprobs == score.logprobs
    assert tiny_model.training
    assert all(layer.self_attn.training for layer in tiny_model.model.layers)


def test_nan_weights_give_no_fill(tiny_model):
    with torch.no_grad():
        tiny_model.lm_head.weight[5] = torch.nan
    with pytest.raises(ValueError, match="NaN logits"):
        tiny_model.infill(["The cat", "A"], [" mat.", " b"], max_new_tokens=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 3, "num_tokens": "auto"}, "pass one of them"),
        ({"num_tokens": "any"}, "`num_tokens` is 'any'"),
        ({"num_tokens": []}, r"`num_tokens` is \[\]"),
        ({"num_tokens": [2, 0]}, r"`num_tokens` is \[2, 0\]"),
        ({"max_new_tokens": 3, "num_return_sequence": 2}, "Did you mean `num_return_sequences`"),
        ({"max_new_tokens": 3, "chunk_size": 0}, "`chunk_size` is 0"),
        ({"max_new_tokens": 3, "stop_strings": [""]}, r"`stop_strings` is \[''\]"),
        ({"max_new_tokens": 3, "heal": True}, "`heal` is True; expected 'space', 'token' or None"),
        ({"max_new_tokens": 3, "stop_at_end_of_span": True}, "was not taught to end a span"),
        ({"max_new_tokens": 3, "streamer": object(), "num_return_sequences": 2}, "`streamer` shows one answer"),
        ({"num_tokens": "auto", "streamer": object()}, "`streamer` shows one answer"),
        ({"num_tokens": np.ones(2)}, r"`num_tokens` is array\(.*; expected 'auto' or a list"),
        ({"max_new_tokens": 3, "heal": np.ones(2)}, r"`heal` is array\(.*; expected 'space', 'token' or None"),
        ({"max_new_tokens": 3, "trim_overlap": np.ones(2)}, r"`trim_overlap` is array\(.*; expected true or false"),
        ({"max_new_tokens": 3, "generation_config": np.ones(2)}, "expected a GenerationConfig"),
        ({"max_new_tokens": True}, r"Gaps of \[True\] tokens"),
        ({"max_new_tokens": 3, "num_return_sequences": 10**6}, "`num_return_sequences` is 1000000; a vocabulary of"),
        ({"max_new_tokens": 3, "logits_processor": len}, "expected a LogitsProcessorList"),
        ({"max_new_tokens": 3, "stopping_criteria": len}, "expected a StoppingCriteriaList"),
        ({"max_new_tokens": 3, "generation_config": {"do_sample": True}}, "expected a GenerationConfig"),
        ({"max_new_tokens": 3, "streamer": object(), "trim_overlap": True}, "`streamer` shows tokens as they come"),
    ],
)
def test_options_that_cannot_be_are_named(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.infill("The cat", " mat.", **options)


def test_a_streamer_takes_one_text(tiny_model):
    with pytest.raises(ValueError, match="`streamer` takes one text; 2 were given"):
        tiny_model.infill(["a", "b"], ["c", "d"], max_new_tokens=2, streamer=object())


def test_context_of_special_tokens_alone_is_refused(tiny_model):
    for prefix, suffix in (("", "</s>"), ("text", "</s>"), ("<s>", "text")):
        with pytest.raises(ValueError, match="beside a gap has special tokens alone"):
            tiny_model.infill(prefix, suffix, max_new_tokens=2, split_special_tokens=False)


def test_control_tokens_that_were_typed_are_text_unless_they_are_asked_for(tiny_model):
    as_tokens = {"split_special_tokens": False}
    typed = tiny_model.score_infill("the </s> dog", [" ran"], " home")[0].logprobs
    assert typed != tiny_model.score_infill("the </s> dog", [" ran"], " home", **as_tokens)[0].logprobs
    plain = tiny_model.score_infill("the dog", [" ran"], " home", **as_tokens)[0].logprobs
    assert plain == tiny_model.score_infill("the dog", [" ran"], " home")[0].logprobs
    characters = tiny_model.tokenizer("the </s> dog", split_special_tokens=True)["input_ids"]  # BOS in front
    (row,) = tiny_model._scored_rows(0, "the </s> dog", [" ran"], "")
    assert row.layout.token_ids == characters
    with pytest.raises(ValueError, match="`split_special_tokens` is 'no'"):
        tiny_model.infill("a", "b", max_new_tokens=1, split_special_tokens="no")
