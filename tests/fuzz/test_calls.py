"""Call public functions with hostile texts, options and tensors: a right result, or a clear error."""

import dataclasses
import functools
import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_magnet.spans_magnet import split_at_marks
from tests.trainer.tiny import tiny_model
from trainer import LoraArguments, MagnetTrainingArguments
from trainer.corruption import MntpShift
from trainer.files import json_bytes, parse_json
from trainer.metrics import repetition_n, repetition_sentences, split_sentences

from .odd_tokenizers import SIZE, TOKENIZERS, tokenizer
from .strategies import any_text, clear_errors, fuzz, json_values, mostly, options, unicode_text, values

some_tokenizer = st.integers(0, TOKENIZERS - 1)


@functools.cache
def kept_model(**changes):
    return tiny_model(**changes).eval()


def odd_model(number):
    """Return a tiny model with an odd tokenizer; a quarter of those with EOS end their spans by a token."""
    made = kept_model(vocab_size=SIZE, num_hidden_layers=1)
    made.tokenizer = tokenizer(number)
    made.config.magnet["end_of_span"] = 4 if number % 4 == 0 and made.tokenizer.eos_token_id is not None else 0
    return made


# ---- Encoding ----

KEPT = "sentence_embedding"
ENCODING = {
    "prompt": ("", "the", "find: ", None),
    "batch_size": (1, 2),
    "batch_tokens": (1, 8, 100),
    "max_length": (3, 5, 64),
    "pooling": ("last", "mean", "weighted_mean"),
    "truncate_dim": (1, 16),
    "normalize_embeddings": (True, False),
    "precision": ("float32", "ubinary", "binary"),
    "output_value": (KEPT, "token_embeddings", None),
}
BAD_ENCODING = {
    "prompt_name": ("sentence", "STS", "x"),
    "batch_size": (0,),
    "batch_tokens": (-1,),
    "max_length": (2, 65),
    "pooling": ("cls",),
    "truncate_dim": (0, 17),
    "precision": ("int8", "x"),
}
some_texts = st.lists(unicode_text, max_size=3)
odd_texts = values | st.lists(any_text | st.just(3)) | some_texts.map(np.array)


@fuzz(150)
@given(some_tokenizer, mostly(some_texts, odd_texts), options(ENCODING, BAD_ENCODING))
def test_texts_have_finite_vectors_that_do_not_depend_on_company(number, texts, chosen):
    model, chosen = odd_model(number), {**({} if chosen.get("prompt_name") else {"prompt": ""}), **chosen}
    with clear_errors():
        made = model.encode(texts, **chosen)
        if isinstance(texts, str):
            return
        assert len(made) == len(texts)
        if chosen.get("output_value", KEPT) != KEPT or chosen.get("precision") == "int8" or not len(texts):
            return
        assert np.isfinite(made).all()
        alone = model.encode(texts[-1], **chosen)
        assert made.dtype != np.float32 or np.allclose(alone, made[-1], atol=1e-4)


WORDS = {
    "prompt": ("", "the", "a: "),
    "shift": ("next", "same"),
    "mode": ("bidirectional", "causal"),
    "max_length": (8, 64),
    "batch_tokens": (8, 1),
}
BAD_WORDS = {"shift": ("x",), "mode": ("infill",), "max_length": (0, 4, 65)}


@fuzz(60)
@given(some_tokenizer, unicode_text, st.booleans(), options(WORDS, BAD_WORDS))
def test_words_and_tokens_have_ordered_offsets_and_finite_vectors(number, text, in_words, chosen):
    with clear_errors():
        if not in_words:
            made = odd_model(number).encode_tokens(text, **chosen)
            assert all(0 <= start <= end <= len(text) for start, end in made.offsets.tolist())
        else:
            made = odd_model(number).encode_words(text, **chosen)
            assert [text[start:end] for start, end in made.offsets.tolist()] == text.split()
        assert len(made.vectors) == len(made.offsets) and np.isfinite(made.vectors).all()


# ---- Infilling ----

FILLING = {
    "heal": ("space", "token", None),
    "chunk_size": (1, 2, 32),
    "temperature": (0.1, 5.0),
    "top_k": (1, 5, 0),
    "top_p": (0.5, 1.0),
    "min_p": (0.1,),
    "num_return_sequences": (1, 2, 3),
    "repetition_penalty": (1.5,),
    "no_repeat_ngram_size": (1, 2),
    "trim_overlap": (True,),
    "batch_size": (1, 2),
    "return_dict_in_generate": (True, False),
}
BAD_FILLING = {
    "stop_strings": ("a", ".", "", ["the", " "]),  # not together with heal="token", like the next two
    "stop_at_sentence_end": (True,),
    "stop_at_end_of_span": (True,),
    "chunk_size": (0,),
    "temperature": (0.0, -1.0),
    "top_k": (-1,),
    "top_p": (0.0, 2.0),
    "num_return_sequences": (0,),
    "cache_implementation": ("x",),
}
some_length = st.fixed_dictionaries({"max_new_tokens": mostly(st.sampled_from((1, 2, 3, 5, 8)), values)})
odd_length = st.sampled_from(("auto", [1, 3], [0], [])).map(lambda number: {"num_tokens": number}) | st.sampled_from(
    (0, [1, 2], 100)
).map(lambda number: {"max_new_tokens": number})


def check_fills(fills, length=None):
    for fill in fills:
        assert len(fill.token_ids) == len(fill.logprobs)
        assert not isinstance(length, int) or len(fill.token_ids) <= length
        assert all(score <= 1e-6 for score in fill.logprobs)


@fuzz(300)
@given(
    some_tokenizer,
    *(unicode_text, unicode_text, st.sampled_from(("infill", "infill_blanks", "rewrite", "a list"))),
    *(options(FILLING, BAD_FILLING), mostly(some_length, odd_length), st.data()),
)
def test_each_blank_is_filled(number, before, after, kind, chosen, length, data):
    model, text, blanks, chosen = odd_model(number), f"{before}[blank]{after}", 1, chosen | length
    torch.manual_seed(0)
    chosen["do_sample"] = number % 2 == 0
    with clear_errors():
        if kind == "infill":
            made = [model.infill(before, after, **chosen)]
        elif kind == "infill_blanks":
            made, blanks = model.infill_blanks(text, **chosen), len(split_at_marks(text, "[blank]", name="")) - 1
        elif kind == "rewrite":
            start = data.draw(st.integers(0, len(text)))
            made = [model.rewrite(text, start, data.draw(st.integers(start, len(text))), **chosen)]
        else:
            suffixes = data.draw(mostly(st.tuples(unicode_text, st.just(after)).map(list), values))
            made, blanks = model.infill([before, "the cat"], suffixes, **chosen), 2
        if chosen.get("return_dict_in_generate"):
            fills = (made[0] if isinstance(made, list) else made).fills
            check_fills([one for row in fills for own in row for one in own], chosen.get("max_new_tokens"))
            return
        answers = [own if isinstance(own, list) else [own] for own in made]
        assert len(made) == blanks and all(isinstance(one, str) for own in answers for one in own)
        most = chosen.get("num_return_sequences") or 1
        assert all(1 <= len(own) == len(set(own)) <= most for own in answers)


@fuzz(60)
@given(
    some_tokenizer,
    *(unicode_text, unicode_text),
    mostly(st.lists(unicode_text.map(lambda text: text or "a"), min_size=1, max_size=3), values | st.lists(any_text)),
    options({"batch_tokens": (1, 16)}, {"batch_tokens": (0,)}),
)
def test_scores_are_log_probabilities_in_the_order_of_the_fills(number, before, after, fills, chosen):
    with clear_errors():
        made = odd_model(number).score_infill(before, fills, after, **chosen)
        assert [fill.text for fill in made] == list(fills)
        check_fills(made)


# ---- The forward ----

DTYPES = (torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.float32, torch.complex64)
some_mode = st.sampled_from(("causal", "bidirectional", "infill", "infill"))
odd_mode = st.lists(some_mode, max_size=3) | st.sampled_from(("Causal", "", ["infill"]))


@st.composite
def tables(draw, shape, *choices):
    """Draw a tensor of about this shape: occasionally of another shape or type."""
    others = (shape[:-1], (*shape, 1), shape[::-1], (shape[0], 0), (0, shape[-1]), (shape[0], 70))
    size, held = draw(mostly(st.just(shape), st.sampled_from(others))), draw(st.sampled_from(choices))
    count = math.prod(size)
    rows = torch.tensor(draw(st.lists(st.sampled_from(held), min_size=count, max_size=count)), dtype=torch.long)
    return rows.reshape(size).to(draw(mostly(st.just(torch.int64), st.sampled_from(DTYPES))))


@fuzz(250)
@given(some_tokenizer, mostly(some_mode, odd_mode), st.data())
def test_forward_gives_finite_states_that_no_span_changes(seed, mode, data):
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 8)))
    # torch refuses invalid ids, and causal mode passes other input on to the parent class.
    ids = torch.randint(4, 44, shape, generator=torch.Generator().manual_seed(seed))
    given = {}
    if "infill" in mode or data.draw(st.integers(0, 9)) == 0:
        given["segment_ids"] = data.draw(tables(shape, (0, 1, 2), (0, 0, 1, 3, 7), (0, -1)))
    if "causal" not in mode:
        if data.draw(st.booleans()):
            given["attention_mask"] = data.draw(tables(shape, (0, 1, 1, 1), (1,), (0,), (-1, 2)))
        if data.draw(st.integers(0, 4)) == 0:
            given["position_ids"] = data.draw(tables(shape, (0, 1, 2, 5), (63,), (100_000,), (-1,)))
    if data.draw(st.integers(0, 6)) == 0:
        given["target_ids"] = data.draw(tables(shape, (-100, 4, 43), (-100,), (44,), (-1,)))
        given["num_targets"] = data.draw(st.sampled_from((None, None, 0, 1, 1000, -1)))
    with torch.no_grad(), clear_errors():
        states = kept_model()(ids, **given, mode=mode).last_hidden_state
        assert states.shape[:2] == shape and torch.isfinite(states).all()
        if mode != "infill" or "attention_mask" in given or not int((segments := given["segment_ids"]).max()):
            return
        hidden = segments == segments.max()
        other = kept_model()(torch.where(hidden, 47 - ids, ids), **given, mode="infill").last_hidden_state
        assert torch.allclose(states[~hidden], other[~hidden], atol=1e-5), "a span is seen from outside"


# ---- Training, measuring, JSON ----

OF_TYPE = {
    float: (0, 1, 8, -1, 2**40, 0.0, 0.5, 1.0, 1.5, -0.1, 1e308, math.nan, math.inf, -math.inf),
    int: (0, 1, 4, 128, -1, 2**40),
    bool: (True, False),
    MntpShift: ("same", "token", ""),
}
FIELDS = [
    field for field in dataclasses.fields(MagnetTrainingArguments) if field.name in vars(MagnetTrainingArguments)
]
some_argument = st.sampled_from([(field.name, value) for field in FIELDS for value in OF_TYPE.get(field.type, ())])
some_weights = st.sampled_from(("0", "1", "9", "0.5", "1e-3", "-1", "nan", "1e999", "", " 1", "1_0", "٣", "x", "-0"))
some_steps = st.sampled_from(("1", "3", "800", "0", "-2", "1.5", "1e3", "", "9" * 400, "9" * 5000, "٣"))
some_phase = st.builds("{}:{}".format, some_steps, st.lists(some_weights, min_size=2, max_size=4).map(",".join))
some_phases = st.sampled_from((["2:1,0,1"], ["1:1,1,1", "1:1,9,1"], ["1:0,1,0"], ["0:1,1,1"], [], ["x"]))
odd_phases = some_phase.map(lambda phase: ["2:1,0,1", phase]) | st.lists(some_phase) | any_text | values


@fuzz(100)
@given(st.lists(some_argument, max_size=2).map(dict), mostly(some_phases, odd_phases))
def test_training_arguments_are_consistent_or_refused(chosen, phases):
    with clear_errors():
        made = MagnetTrainingArguments(
            output_dir="out", use_cpu=True, report_to="none", **{"loss_phases": phases, **chosen}
        )
        assert made.max_steps == sum(phase.steps for phase in made.phases) >= 1
        assert 0 <= made.corruption_settings.mask_ratio <= 1 and made.temperature > 0


@fuzz(20)
@given(st.sampled_from(("lora_r", "lora_dropout")), st.sampled_from((0, 1, 8, -1, 2**40, 0.5, -0.1, 1.0, math.nan)))
def test_adapter_arguments_are_in_range_or_refused(name, value):
    with clear_errors():
        made = LoraArguments(**{name: value})
        assert made.lora_r >= 0 and 0 <= made.lora_dropout < 1


@fuzz(200)
@given(any_text, st.integers(1, 5))
def test_sentences_lose_no_character_and_repetition_is_a_share(text, n):
    parts = split_sentences(text)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert 0 <= repetition_sentences(text) < 1 and 0 <= repetition_n([text, ""], n=n) < 1


@fuzz(60)
@given(json_values)
def test_json_round_trips(value):
    assert repr(parse_json(json_bytes(value))) == repr(value)  # NaN differs from itself
    assert repr(parse_json(json_bytes(value, indent=2))) == repr(value)
