"""Test the options of infilling and the fields of a GenerationConfig."""

import time

import pytest
import torch
from transformers import GenerationConfig, WatermarkingConfig

from modeling_magnet.infill_options_magnet import ACCEPTED_IN_CONFIG, SUPPORTED
from modeling_magnet.sampling_magnet import text_processors, warpers
from modeling_magnet.spelling_magnet import byte_tokens

from .lifting import lift_logits

PREFIX, SUFFIX = "The cat sat on the mat", " the dog."
# Unsupported fields, each with a value that would have an effect.
REFUSED = {
    "num_beams": 2,
    "diversity_penalty": 0.5,
    "force_words_ids": [[5]],
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "min_length": 3,
    "encoder_repetition_penalty": 1.5,
    "forced_bos_token_id": 0,
    "guidance_scale": 1.5,
    "token_healing": True,
    "output_scores": True,
    "exponential_decay_length_penalty": (3, 2.0),
    "watermarking_config": WatermarkingConfig(),
}


def tokens_of(model, *, suffix=SUFFIX, **options):
    """Return the tokens of the best fill."""
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, **options}
    return model.infill(PREFIX, suffix, **options).fills[0][0][0].token_ids


def test_no_field_is_in_two_groups():
    groups = [*SUPPORTED, *ACCEPTED_IN_CONFIG, *REFUSED]
    assert len(groups) == len({*groups})


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_config_fields_raise(tiny_model, name):
    config = GenerationConfig()
    setattr(config, name, REFUSED[name])
    with pytest.raises(ValueError, match=rf"`{name}="):
        tiny_model.infill(PREFIX, SUFFIX, max_new_tokens=2, generation_config=config)
    tiny_model.generation_config = config
    with pytest.raises(ValueError, match=rf"`{name}="):
        tiny_model.infill(PREFIX, SUFFIX, max_new_tokens=2)
    with pytest.raises(ValueError, match=rf"`{name}`"):
        tiny_model.infill(PREFIX, SUFFIX, max_new_tokens=2, **{name: REFUSED[name]})


def test_neutral_config_values_are_accepted(tiny_model):
    """Set all fields to the defaults of `generate`."""
    expected = tokens_of(tiny_model)
    config = GenerationConfig()
    for name, value in GenerationConfig._get_default_generation_params().items():
        setattr(config, name, value)
    assert tokens_of(tiny_model, generation_config=config) == expected
    tiny_model.generation_config = config
    assert tokens_of(tiny_model) == expected
    assert tiny_model.infill(PREFIX, SUFFIX, num_tokens=[2, 30]) is not None, (
        "20 is the default of max_length, not a limit"
    )


def test_irrelevant_fields_change_nothing(tiny_model):
    expected = tokens_of(tiny_model)
    values = {"use_cache": False, "early_stopping": True, "length_penalty": 2.0, "pad_token_id": 7, "bos_token_id": 9}
    values |= {"prompt_lookup_num_tokens": 3, "max_cache_len": 4, "cache_implementation": "static"}
    config = GenerationConfig()
    for name, value in values.items():
        setattr(config, name, value)
    assert tokens_of(tiny_model, generation_config=config) == expected


@pytest.mark.parametrize("as_argument", [True, False])
@pytest.mark.parametrize("kind", ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"])
def test_tokens_can_be_excluded(tiny_model, kind, as_argument):
    first, second, *_ = plain = tokens_of(tiny_model)
    value = {
        "suppress_tokens": [first, second],
        "begin_suppress_tokens": [first],
        "bad_words_ids": [[first, second]],
        "sequence_bias": {(first,): -1e4},
    }[kind]
    options = {kind: value} if as_argument else {"generation_config": GenerationConfig(**{kind: value})}
    fill = tokens_of(tiny_model, **options)
    assert fill != plain
    pairs = list(zip(fill, fill[1:], strict=False))
    assert {
        "suppress_tokens": not {first, second} & {*fill},
        "begin_suppress_tokens": fill[0] != first,
        "bad_words_ids": fill[0] == first and (first, second) not in pairs,
        "sequence_bias": first not in fill,
    }[kind]


def test_fields_of_the_checkpoints_config_take_effect(tiny_model):
    first = tokens_of(tiny_model)[0]
    tiny_model.generation_config.suppress_tokens = [first]
    tiny_model.generation_config.max_new_tokens = 3
    assert first not in tokens_of(tiny_model)
    output = tiny_model.infill(PREFIX, SUFFIX, return_dict_in_generate=True)
    assert list(output.length_scores[0][0]) == [1, 2, 3], "the config bounds the lengths tried"
    tiny_model.generation_config.max_length = 12
    with pytest.raises(ValueError, match="`max_length`.* 12"):
        tokens_of(tiny_model)


def test_max_new_tokens_of_a_passed_config_is_the_length(tiny_model):
    config = GenerationConfig(max_new_tokens=5)
    output = tiny_model.infill(PREFIX, SUFFIX, generation_config=config, return_dict_in_generate=True)
    assert len(output.fills[0][0][0].token_ids) == 5
    assert len(tokens_of(tiny_model, generation_config=config, max_new_tokens=2)) == 2
    config = GenerationConfig(max_new_tokens=2, return_dict_in_generate=True)
    assert len(tiny_model.infill(PREFIX, SUFFIX, generation_config=config).fills[0][0][0].token_ids) == 2


def test_eos_of_a_config_is_excluded_from_fills(tiny_model):
    first = tokens_of(tiny_model)[0]
    assert first not in tokens_of(tiny_model, generation_config=GenerationConfig(eos_token_id=[2, first]))
    tiny_model.generation_config.eos_token_id = [2, first]
    assert first not in tokens_of(tiny_model)


def test_processors_equal_those_of_generate(tiny_model):
    """Compare the classes and their order; rules that depend on the prompt length are applied by index instead."""
    knobs = {"temperature": 0.7, "top_h": 0.4, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8}
    knobs |= {"epsilon_cutoff": 3e-4, "eta_cutoff": 1e-3, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2}
    knobs |= {"bad_words_ids": [[5, 6]], "sequence_bias": [[[7], 1.0]]}
    config = GenerationConfig(do_sample=True, **knobs)
    config._eos_token_tensor = None
    theirs = tiny_model._get_logits_processor(config, input_ids_seq_length=4, device="cpu")
    ours = [*text_processors(config), *warpers(config)]
    assert [*map(type, ours)] == [*map(type, theirs)]
    ids, scores = torch.tensor([[5, 7, 8, 5]]), torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    expected = theirs(ids, scores.clone())
    result = scores.clone()
    for processor in ours:
        result = processor(ids, result)
    torch.testing.assert_close(result, expected)


def test_max_time_ends_a_fill(tiny_model):
    start = time.perf_counter()
    fill = tokens_of(tiny_model, max_new_tokens=200, max_time=1e-6)
    assert len(fill) == 1
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("do_sample", [False, True])
def test_min_new_tokens_bounds_a_fill_that_the_model_ends(tiny_model, do_sample):
    tiny_model.config.magnet["end_of_span"] = 8
    lift_logits(tiny_model, tiny_model.tokenizer.eos_token_id)
    # Exclude parts of characters, which would have to be completed first.
    parts = list(byte_tokens(tiny_model.tokenizer, tiny_model.config.vocab_size).token_ids)
    options = {"do_sample": do_sample, "suppress_tokens": parts}
    assert len(tokens_of(tiny_model, **options)) == 1
    assert len(tokens_of(tiny_model, min_new_tokens=4, **options)) == 4
    with pytest.raises(ValueError, match="`min_new_tokens` is 9"):
        tokens_of(tiny_model, min_new_tokens=9)
    output = tiny_model.infill(
        PREFIX, SUFFIX, num_tokens=[2, 4, 6], min_new_tokens=4, stop_at_end_of_span=False, return_dict_in_generate=True
    )
    assert list(output.length_scores[0][0]) == [4, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 3, "num_tokens": "auto"}, "`max_new_tokens` and `num_tokens`"),
        ({"num_tokens": "any"}, "`num_tokens` is 'any'"),
        ({"num_tokens": 5}, "`num_tokens` is 5"),
        ({"num_tokens": []}, r"`num_tokens` is \[\]"),
        ({"num_tokens": [2, 0]}, "`num_tokens` is 0"),
        ({"max_new_tokens": 3, "num_return_sequence": 2}, "Did you mean `num_return_sequences`"),
        ({"max_new_tokens": 3, "num_return_sequences": 0}, "`num_return_sequences` is 0"),
        ({"max_new_tokens": 3, "num_return_sequences": 10**6}, "`num_return_sequences` is 1000000"),
        ({"max_new_tokens": 3, "chunk_size": 0}, "`chunk_size` is 0"),
        ({"max_new_tokens": 3, "batch_size": 0}, "`batch_size` is 0"),
        ({"max_new_tokens": 3, "stop_strings": [""]}, r"`stop_strings` is \[''\]"),
        ({"max_new_tokens": 3, "heal": "words"}, "`heal` is 'words'"),
        ({"max_new_tokens": 3, "stop_at_end_of_span": True}, "`stop_at_end_of_span`"),
        ({"max_new_tokens": 3, "streamer": object(), "num_return_sequences": 2}, "`streamer`"),
        ({"num_tokens": "auto", "streamer": object()}, "`streamer`"),
        ({"max_new_tokens": 3, "streamer": object(), "trim_overlap": True}, "`streamer` .*`trim_overlap`"),
        ({"max_new_tokens": 3, "do_sample": True, "top_p": 7.0}, "top_p"),
    ],
)
def test_invalid_options_raise(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.infill("The cat", " mat.", **options)
