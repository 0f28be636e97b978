"""What each field of a GenerationConfig means for a fill: honoured, without meaning, or refused by name.

`infill` takes the config of the caller or the checkpoint. No field is dropped in silence: what a fill cannot have is
refused with what to do instead, and for
what cannot change a fill a reason is given.
"""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from transformers import CompileConfig, GenerationConfig, SynthIDTextWatermarkingConfig, WatermarkingConfig
from transformers.generation.configuration_utils import BaseWatermarkingConfig

# Options of a call; `generate` takes them as well.
SUPPORTED = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "min_new_tokens",
    "exponential_decay_length_penalty",
    "renormalize_logits",
    "remove_invalid_values",
    "watermarking_config",
    "max_time",
    "num_return_sequences",
    "stop_strings",
    "cache_implementation",
    "compile_config",
)
# Honoured where a config has them; a call has arguments of its own for them, or none.
HONOURED_IN_CONFIG = ("max_new_tokens", "max_length", "return_dict_in_generate", "eos_token_id", "disable_compile")

_SAME_OUTPUT = "only how fast `generate` is"
_ENCODER_DECODER = "encoder-decoder models only"
_BEAMS = "beam search only, which `num_beams` asks for"
# Fields that cannot change a fill, and why.
IRRELEVANT: dict[str, str] = {
    "use_cache": "a fill is the same with and without one",
    "cache_config": "belongs to quantized caches, which are refused",
    "max_cache_len": "the cache of a fill is as long as the text",
    "early_stopping": _BEAMS,
    "length_penalty": _BEAMS,
    "pad_token_id": "no padding gets into a fill",
    "bos_token_id": "the tokenizer's BOS stands in front of the text",
    "decoder_start_token_id": _ENCODER_DECODER,
    "is_assistant": _SAME_OUTPUT,
    "num_assistant_tokens": _SAME_OUTPUT,
    "num_assistant_tokens_schedule": _SAME_OUTPUT,
    "assistant_confidence_threshold": _SAME_OUTPUT,
    "assistant_early_exit": _SAME_OUTPUT,
    "assistant_lookbehind": _SAME_OUTPUT,
    "target_lookbehind": _SAME_OUTPUT,
    "assistant_ensemble_weight": _SAME_OUTPUT,
    "speculation_type": _SAME_OUTPUT,
    "prompt_lookup_num_tokens": _SAME_OUTPUT,
    "max_matching_ngram_size": _SAME_OUTPUT,
    "use_mtp": _SAME_OUTPUT,
    "continuous_batching_config": "`generate_batch` only",
    "prefill_chunk_size": "only how `generate` reads a prompt",
    "low_memory": "contrastive search only, which `penalty_alpha` asks for",
    "transformers_version": "a note",
}
_USE_LOGPROBS = "pass `return_dict_in_generate=True`, whose fills have log-probabilities"
_NO_BEAMS = "a gap is not filled by beam search; leave it out, and ask for several answers by `num_return_sequences`"
# Fields that ask for what a fill cannot have: values that ask for nothing, and what to do instead.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), _NO_BEAMS),
    "num_beam_groups": ((1,), _NO_BEAMS),
    "diversity_penalty": ((0.0,), _NO_BEAMS),
    "constraints": ((), _NO_BEAMS),
    "force_words_ids": ((), _NO_BEAMS),
    "penalty_alpha": ((0.0,), "there is no contrastive search here; leave it out"),
    "dola_layers": ((), "logits come from the last layer; leave it out"),
    "min_length": ((0,), "pass `min_new_tokens`, which counts the tokens of the fill"),
    "encoder_repetition_penalty": ((1.0,), "pass `repetition_penalty`"),
    "encoder_no_repeat_ngram_size": ((0,), "pass `no_repeat_ngram_size`"),
    "forced_bos_token_id": ((), "write the token's text at the end of the text in front of the blank"),
    "forced_eos_token_id": ((), "a fill ends at its length, and EOS is not part of it; leave it out"),
    "guidance_scale": ((1.0, 1), "a fill has no negative prompt; leave it out"),
    "token_healing": ((False,), "pass `heal='token'`"),
    "output_attentions": ((False,), "call the model with `mode='infill'` for attentions"),
    "output_hidden_states": ((False,), "call the model with `mode='infill'` for hidden states"),
    "output_scores": ((False,), _USE_LOGPROBS),
    "output_logits": ((False,), _USE_LOGPROBS),
}
# `generate` sets this one where nobody says anything.
DEFAULT_MAX_LENGTH = 20

# What a value has to be: transformers looks at some of their ranges, and at few of their types.
_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "max_time",
)
_WHOLE_NUMBERS = ("top_k", "no_repeat_ngram_size", "num_return_sequences", "min_new_tokens")
_KINDS: tuple[tuple[str, tuple[type, ...], str], ...] = (
    *((name, (bool,), "true or false") for name in ("do_sample", "renormalize_logits", "remove_invalid_values")),
    *((name, (Integral,), "a whole number") for name in _WHOLE_NUMBERS),
    *((name, (Real,), "a number") for name in _NUMBERS),
    ("stop_strings", (str, list, tuple), "a string or a list of strings"),
    *((name, (list, tuple), "a list of token ids") for name in ("suppress_tokens", "begin_suppress_tokens")),
    ("bad_words_ids", (list, tuple), "a list of lists of token ids"),
    ("sequence_bias", (dict, list), "a dict from tuples of token ids to numbers, or a list of such pairs"),
    ("exponential_decay_length_penalty", (list, tuple), "a pair (first token, factor)"),
    ("watermarking_config", (BaseWatermarkingConfig, dict), "a WatermarkingConfig"),
    ("cache_implementation", (str,), "'dynamic' or 'static'"),
    ("compile_config", (CompileConfig,), "a CompileConfig"),
)


def check_kinds(values: dict[str, Any]) -> None:
    """Refuse options whose values are of another kind.

    Raises:
        ValueError: naming the option, what it is, and what was expected.
    """
    for name, kinds, expected in _KINDS:
        value = values.get(name)
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise ValueError(f"`{name}` is {value!r:.60}; expected {expected}.")
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if not all(_is_id(token_id) for token_id in values.get(name) or ()):
            raise ValueError(f"`{name}` is {values[name]!r:.60}; expected a list of token ids.")
    bias = values.get("sequence_bias") or []
    for pair in list(bias.items()) if isinstance(bias, dict) else bias:
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], list | tuple)
        if not is_pair or not all(map(_is_id, pair[0])) or not isinstance(pair[1], Real):
            raise ValueError(
                f"`sequence_bias` has {pair!r:.60}; expected token ids, as a tuple, and a number for each sequence."
            )
    decay = values.get("exponential_decay_length_penalty")
    if decay is not None and (len(decay) != 2 or not all(isinstance(number, Real) for number in decay)):
        raise ValueError(
            f"`exponential_decay_length_penalty` is {decay!r:.60}; expected a pair (first token, factor)."
        )


def check_config(config: GenerationConfig) -> None:
    """Refuse a config that asks for what a fill cannot have; values that ask for nothing are fine.

    Raises:
        ValueError: naming the field, its value, and what to do.
    """
    default = GenerationConfig()
    for name, (neutral, remedy) in REFUSED.items():
        value = getattr(config, name, None)
        if value is None or value in neutral or value == getattr(default, name, None):
            continue
        raise ValueError(f"`{name}={value!r:.60}` in the generation config: {remedy}.")
    for name, value in vars(config).items():
        known = name in SUPPORTED or name in HONOURED_IN_CONFIG or name in IRRELEVANT or name in REFUSED
        if known or name.startswith("_") or name not in vars(default) or value == getattr(default, name):
            continue
        raise ValueError(f"`{name}={value!r:.60}` in the generation config is new to `infill`. Leave it out.")
    if config.cache_implementation == "quantized":
        raise ValueError("`cache_implementation='quantized'` in the generation config; `infill` has 'dynamic' and "
                         "'static'.")  # fmt: skip
    watermark = config.watermarking_config
    if isinstance(watermark, SynthIDTextWatermarkingConfig):
        raise ValueError("`watermarking_config` is a SynthIDTextWatermarkingConfig, which remembers rows that a fill "
                         "does not keep. Pass a WatermarkingConfig.")  # fmt: skip
    check_kinds({name: getattr(config, name, None) for name in SUPPORTED if name not in ("compile_config",)})


def watermark_of(settings: dict[str, Any]) -> WatermarkingConfig:
    """Read the settings of a watermark.

    Raises:
        ValueError: naming what a WatermarkingConfig does not take.
    """
    try:
        return WatermarkingConfig(**settings)
    except TypeError as error:
        names = ", ".join(vars(WatermarkingConfig()))
        raise ValueError(f"`watermarking_config` is {settings!r:.60}; expected some of {names}.") from error


def max_length(config: GenerationConfig) -> int | None:
    """Positions that a text with its fills may have, or `None` where the config does not say."""
    length = config.max_length
    return None if length in (None, DEFAULT_MAX_LENGTH) else int(length)


def eos_ids(config: Any) -> Sequence[int]:
    """The EOS tokens of a config, none, one or several."""
    value = getattr(config, "eos_token_id", None)
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


__all__ = [
    "HONOURED_IN_CONFIG",
    "IRRELEVANT",
    "REFUSED",
    "SUPPORTED",
    "check_config",
    "check_kinds",
    "eos_ids",
    "max_length",
    "watermark_of",
]
