"""The options of filling blanks, checked once; what each field of a GenerationConfig means for a fill.

`infill` takes the config of the caller or the checkpoint. A field is honoured, refused by name with what to do
instead, or unable to change a fill; none is dropped silently.
"""

import copy
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal

from transformers import GenerationConfig, SynthIDTextWatermarkingConfig
from transformers.generation.configuration_utils import BaseWatermarkingConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import MaxTimeCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .sampling_magnet import check_ranges, watermark_of
from .spans_magnet import Healing, check_healing
from .stopping_magnet import takes_text

# The lengths that `num_tokens="auto"` tries.
AUTO_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48)
# What `generate` uses where no `max_length` is set.
DEFAULT_MAX_LENGTH = 20

# Fields that a call may also pass as arguments, with the types and the words for them: transformers checks some of
# their ranges, but few of their types.
_BOOL: tuple[Any, str] = (bool, "true or false")
_WHOLE: tuple[Any, str] = (Integral, "a whole number")
_NUMBER: tuple[Any, str] = (Real, "a number")
_IDS: tuple[Any, str] = ((list, tuple), "a list of token ids")
_KINDS: dict[str, tuple[Any, str]] = {
    "do_sample": _BOOL,
    "temperature": _NUMBER,
    "top_k": _WHOLE,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "top_h": _NUMBER,
    "typical_p": _NUMBER,
    "epsilon_cutoff": _NUMBER,
    "eta_cutoff": _NUMBER,
    "repetition_penalty": _NUMBER,
    "no_repeat_ngram_size": _WHOLE,
    "bad_words_ids": ((list, tuple), "a list of lists of token ids"),
    "sequence_bias": ((dict, list), "a dict from tuples of token ids to numbers, or a list of such pairs"),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "min_new_tokens": _WHOLE,
    "exponential_decay_length_penalty": ((list, tuple), "a pair (first token, factor)"),
    "renormalize_logits": _BOOL,
    "remove_invalid_values": _BOOL,
    "watermarking_config": ((BaseWatermarkingConfig, dict), "a WatermarkingConfig"),
    "max_time": _NUMBER,
    "num_return_sequences": _WHOLE,
    "stop_strings": ((str, list, tuple), "a string or a list of strings"),
}
SUPPORTED = tuple(_KINDS)
# Honoured in a config; a call has arguments of its own for them, or none.
HONOURED_IN_CONFIG = ("max_new_tokens", "max_length", "return_dict_in_generate", "eos_token_id")
# Fields that cannot change a fill.
IRRELEVANT = (
    "use_cache", "cache_config", "max_cache_len", "disable_compile", "prefill_chunk_size",  # only change the speed
    "early_stopping", "length_penalty", "low_memory",  # belong to searches that are refused
    "pad_token_id", "bos_token_id", "decoder_start_token_id",  # the tokenizer's own are used
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
    "speculation_type", "prompt_lookup_num_tokens", "max_matching_ngram_size", "use_mtp",  # speculative decoding
    "continuous_batching_config", "transformers_version",
)  # fmt: skip
_USE_LOGPROBS = "pass `return_dict_in_generate=True`, whose fills have log-probabilities"
_NO_BEAMS = "fills are not found by beam search; leave it out, and ask for several answers by `num_return_sequences`"
_OTHER_CACHES = ("dynamic", "dynamic_full", "offloaded", "sliding_window", "hybrid", "hybrid_chunked",
                 "offloaded_hybrid", "offloaded_hybrid_chunked")  # fmt: skip
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
    "forced_bos_token_id": ((), "write the token's text at the end of the text before the blank"),
    "forced_eos_token_id": ((), "a fill ends at its length, and EOS is not part of it; leave it out"),
    "guidance_scale": ((1.0, 1), "a fill has no negative prompt; leave it out"),
    "token_healing": ((False,), "pass `heal='token'`"),
    "output_attentions": ((False,), "call the model with `mode='infill'` for attentions"),
    "output_hidden_states": ((False,), "call the model with `mode='infill'` for hidden states"),
    "output_scores": ((False,), _USE_LOGPROBS),
    "output_logits": ((False,), _USE_LOGPROBS),
    "cache_implementation": (_OTHER_CACHES, "fills are decoded with a cache of their own; leave it out"),
    "compile_config": ((), "decoding steps are not compiled; leave it out"),
}


@dataclass(kw_only=True)
class InfillOptions:
    """Options of `infill`, `infill_blanks`, `fill` and `rewrite`.

    Args:
        max_new_tokens (`int` or `list[int]`, *optional*): Tokens of each fill, one number for all blanks of a text or
            one for each. Exact unless a rule ends the fill: that many positions are reserved. A model that was trained
            to end spans ends them by itself within this limit.
        num_tokens (`"auto"` or `list[int]`, *optional*): Lengths to try instead of `max_new_tokens`; each blank gets
            the one with the best score. Defaults to `"auto"` if neither is given: thirteen lengths up to 48, each
            filled and read once, which costs many times as much as one length.
        chunk_size (`int`, defaults to 32): Longer fills are decoded in chunks of so many tokens; each sees everything
            filled before as context (appendix E).
        stop_at_sentence_end (`bool`, defaults to `False`): End a fill after its first sentence.
        stop_at_end_of_span (`bool`, *optional*): Let the model end a fill; defaults to whether it was trained to.
        trim_overlap (`bool`, defaults to `False`): Remove what repeats the end of the text before a fill from its
            beginning, and what repeats the beginning of the text after it from its end.
        heal (`str`, *optional*, defaults to `"space"`): Token healing. `"space"` makes a space before a blank part of
            the first token of the fill where the tokenizer joins it with the next word. `"token"` lets a blank begin
            and end inside a word: one token on either side is spelt again by the fill, whose length is then exact.
            `None` leaves the tokens of the context alone.
        split_special_tokens (`bool`, defaults to `True`): Read control tokens in a text, such as `</s>`, as
            characters; `False` reads them as control tokens.
        batch_size (`int`, defaults to 32): Texts decoded together.
        show_progress_bar (`bool`, *optional*): Defaults to showing one over many batches.
        generation_config (`GenerationConfig`, *optional*): Defaults to the model's own.
        logits_processor (`LogitsProcessorList`, *optional*): As `generate` takes it.
        stopping_criteria (`StoppingCriteriaList`, *optional*): As `generate` takes it; each span is a row.
        streamer (`BaseStreamer`, *optional*): As `generate` takes it, for one text, whose fills come one after
            another. A `TextStreamer` shows exactly the fills; any other one gets tokens.
        return_dict_in_generate (`bool`, *optional*, defaults to `False`): Return an `InfillOutput` instead of text.

    A call also takes the fields of GenerationConfig listed in `SUPPORTED`, `do_sample`, `temperature` and
    `num_return_sequences` among them. Without sampling, several answers to one blank begin with its most likely tokens
    and go on greedily. `max_new_tokens` of a config that is passed is the length of the fill if the call names none;
    in the checkpoint's own config it bounds the lengths that `"auto"` tries.

    Raises:
        ValueError: an option that does not exist, is out of range, or contradicts another.
    """

    max_new_tokens: int | Sequence[int] | None = None
    num_tokens: Literal["auto"] | Sequence[int] | None = None
    chunk_size: int = 32
    stop_at_sentence_end: bool = False
    stop_at_end_of_span: bool | None = None
    trim_overlap: bool = False
    heal: Healing | None = "space"
    split_special_tokens: bool = True
    batch_size: int = 32
    show_progress_bar: bool | None = None
    generation_config: GenerationConfig
    logits_processor: LogitsProcessorList | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    streamer: BaseStreamer | None = None
    return_dict_in_generate: bool | None = None

    @classmethod
    def of_call(cls, given: dict[str, Any], *, default_config: GenerationConfig, end_of_span: int) -> "InfillOptions":
        """Read and check the options of a call.

        Args:
            given (`dict`): What the caller passed.
            default_config (`GenerationConfig`): The model's own.
            end_of_span (`int`): The model's setting, 0 for a model that was not trained to end spans.
        """
        own = {field.name for field in fields(cls)}
        given_config = given.get("generation_config")
        if given_config is not None and not isinstance(given_config, GenerationConfig):
            raise ValueError(f"`generation_config` is {given_config!r:.60}; expected a GenerationConfig.")
        for name in given:
            if name not in own and name not in SUPPORTED:
                close = difflib.get_close_matches(name, sorted(own | set(SUPPORTED)), n=1)
                hint = f" Did you mean `{close[0]}`?" if close else ""
                hint = f" Instead: {REFUSED[name][1]}." if name in REFUSED else hint
                raise ValueError(
                    f"`infill` does not know `{name}`.{hint} It takes {', '.join(sorted(own))}, and of "
                    f"GenerationConfig {', '.join(SUPPORTED)}."
                )
        overrides = {name: value for name, value in given.items() if name not in own}
        config = merge_generation_config(given_config or default_config, overrides)
        options = cls(**{**{k: v for k, v in given.items() if k in own}, "generation_config": config})
        options._check_values()
        if options.max_new_tokens is None and options.num_tokens is None:
            options.max_new_tokens = None if given_config is None else given_config.max_new_tokens
            options.num_tokens = "auto" if options.max_new_tokens is None else None
        if options.return_dict_in_generate is None:
            options.return_dict_in_generate = bool(config.return_dict_in_generate)
        if options.stop_at_end_of_span and not end_of_span:
            raise ValueError(
                "`stop_at_end_of_span` is true, but this model was not trained to end a span. Adapt it with "
                "`end_of_span`, or leave the option out."
            )
        if options.stop_at_end_of_span is None:
            options.stop_at_end_of_span = end_of_span > 0 and options.heal != "token"
        options._check_lengths()
        check_ranges(config)
        options._check_combinations()
        return options

    def greedy(self) -> "InfillOptions":
        """Return the same options with one greedy answer."""
        config = copy.deepcopy(self.generation_config)
        config.do_sample, config.num_return_sequences = False, None
        return replace(self, generation_config=config)

    @property
    def num_answers(self) -> int:
        """Answers to each blank."""
        return self.generation_config.num_return_sequences or 1

    @property
    def stop_strings(self) -> list[str]:
        """Strings that end a fill."""
        given = self.generation_config.stop_strings
        return [given] if isinstance(given, str) else list(given or [])

    @property
    def max_length(self) -> int:
        """Positions that a text and its fills may have by the generation config."""
        length = self.generation_config.max_length
        return sys.maxsize if length in (None, DEFAULT_MAX_LENGTH) else int(length)

    def candidate_lengths(self, *, end_of_span: int) -> list[int]:
        """Return the lengths to try, ascending; multiples of `end_of_span` if the model ends spans by itself.

        `max_new_tokens` of the generation config bounds what "auto" tries; `min_new_tokens` bounds all from below.

        Args:
            end_of_span (`int`): The model's setting, 0 for a model that was not trained to end spans.
        """
        least = self.generation_config.min_new_tokens or 1
        if self.num_tokens != "auto":
            return sorted(length for length in {*(self.num_tokens or [])} if length >= least)
        most = self.generation_config.max_new_tokens or sys.maxsize
        lengths: Sequence[int] = AUTO_LENGTHS
        if self.stop_at_end_of_span:
            lengths = range(end_of_span, AUTO_LENGTHS[-1] + end_of_span, end_of_span)
        return [length for length in lengths if least <= length <= most] or [max(least, min(most, lengths[0]))]

    def all_criteria(self) -> StoppingCriteriaList | None:
        """Return the caller's criteria, and the time limit of the generation config from now on."""
        criteria = StoppingCriteriaList(self.stopping_criteria or [])
        if self.generation_config.max_time is not None:
            criteria.append(MaxTimeCriteria(float(self.generation_config.max_time)))
        return criteria or None

    def _check_values(self) -> None:
        """Refuse options of another type or out of range."""
        for name in ("stop_at_sentence_end", "stop_at_end_of_span", "trim_overlap", "split_special_tokens",
                     "return_dict_in_generate"):  # fmt: skip
            if not isinstance(getattr(self, name), bool | None):
                raise ValueError(f"`{name}` is {getattr(self, name)!r:.60}; expected true or false.")
        for name in ("batch_size", "chunk_size"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"`{name}` is {value!r}; expected a whole number of at least 1.")
        for name, lists in (("logits_processor", LogitsProcessorList), ("stopping_criteria", StoppingCriteriaList)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, list):
                raise ValueError(f"`{name}` is {type(value).__name__}; expected a {lists.__name__}.")
            setattr(self, name, None if value is None else lists(value))
        if not all(isinstance(stop, str) and stop for stop in self.stop_strings):
            raise ValueError(f"`stop_strings` is {self.generation_config.stop_strings!r}; expected strings with text.")
        check_healing(self.heal)

    def _check_lengths(self) -> None:
        """Refuse two lengths, invalid candidates, and fills shorter than `min_new_tokens`."""
        asked: Any = self.max_new_tokens if self.num_tokens is None else self.num_tokens
        if self.max_new_tokens is not None and self.num_tokens is not None:
            raise ValueError(
                f"`max_new_tokens` is {self.max_new_tokens!r} and `num_tokens` {self.num_tokens!r}; pass one of them: "
                "the length of the fill, or the lengths to try ('auto' or a list)."
            )
        if self.num_tokens is not None and not (isinstance(asked, str) and asked == "auto"):
            is_list = isinstance(asked, Sequence) and not isinstance(asked, str) and len(asked)
            if not is_list or not all(isinstance(length, Integral) and int(length) >= 1 for length in asked):
                raise ValueError(f"`num_tokens` is {asked!r}; expected 'auto' or a list of lengths of at least 1.")
        least = self.generation_config.min_new_tokens or 0
        if least < 0:
            raise ValueError(f"`min_new_tokens` is {least}; expected a whole number of at least 0.")
        numbers = _numbers(asked)
        if least and numbers and (min(numbers) if self.num_tokens is None else max(numbers)) < least:
            raise ValueError(f"`min_new_tokens` is {least}, more than the length asked for ({asked!r}). Raise the "
                             "length, or leave `min_new_tokens` out.")  # fmt: skip

    def _check_combinations(self) -> None:
        """Refuse options that contradict each other."""
        decay = self.generation_config.exponential_decay_length_penalty
        if decay is not None and not self.stop_at_end_of_span:
            raise ValueError(
                f"`exponential_decay_length_penalty={decay!r:.60}` makes the end of a fill likelier, but these fills "
                "end at their length. Leave it out, or adapt the model with `end_of_span`."
            )
        stops = self.stop_strings or self.stop_at_sentence_end or self.stop_at_end_of_span or self.stopping_criteria
        if self.heal == "token" and stops:
            raise ValueError("`heal='token'` needs fills of exact length: the word after them goes on where they end; "
                             "drop it, or the rules that end a fill early.")  # fmt: skip
        if self.streamer is not None and (self.num_answers > 1 or self.num_tokens is not None):
            raise ValueError("`streamer` shows one answer as it is written; pass `max_new_tokens` and one sequence.")
        changes_text = self.heal == "token" or self.trim_overlap
        if self.streamer is not None and changes_text and not takes_text(self.streamer):
            raise ValueError(
                f"`streamer` is a {type(self.streamer).__name__}, which shows tokens as they come; `heal='token'` and "
                "`trim_overlap` change the text they spell. Pass a `TextStreamer`, or leave them out."
            )


def _numbers(lengths: Any) -> list[int]:
    """Return the numbers in a length, a list of lengths, or a list of such lists."""
    if isinstance(lengths, Integral):
        return [int(lengths)]
    if isinstance(lengths, Sequence) and not isinstance(lengths, str):
        return [number for one in lengths for number in _numbers(one)]
    return []


def merge_generation_config(base: GenerationConfig, overrides: dict[str, Any]) -> GenerationConfig:
    """Return a copy of a generation config with the arguments of a call, all in `SUPPORTED`, on top.

    Raises:
        ValueError: an argument of another type, a field of the config that a fill cannot have, or a number of answers
            below one.
    """
    _check_kinds(overrides)
    check_config(base)
    if "watermarking_config" in overrides:
        overrides = {**overrides, "watermarking_config": watermark_of(overrides["watermarking_config"])}
    config = copy.deepcopy(base)
    # The config's own check allows several answers only for sampling and beams.
    config.update(**{name: value for name, value in overrides.items() if name != "num_return_sequences"})
    answers = config.num_return_sequences = overrides.get("num_return_sequences", config.num_return_sequences)
    if answers is not None and (not isinstance(answers, Integral) or answers < 1):
        raise ValueError(f"`num_return_sequences` is {answers!r}; expected a whole number of at least 1.")
    check_config(config)
    return config


def check_config(config: GenerationConfig) -> None:
    """Refuse a config that asks for what a fill cannot have.

    Raises:
        ValueError: naming the field, its value, and what to do.
    """
    default = GenerationConfig()
    for name, (neutral, remedy) in REFUSED.items():
        value = getattr(config, name, None)
        if value is not None and value not in neutral and value != getattr(default, name, None):
            raise ValueError(f"`{name}={value!r:.60}` in the generation config: {remedy}.")
    for name, value in vars(config).items():
        known = name in SUPPORTED or name in HONOURED_IN_CONFIG or name in IRRELEVANT or name in REFUSED
        if known or name.startswith("_") or name not in vars(default) or value == getattr(default, name):
            continue
        raise ValueError(f"`{name}={value!r:.60}` in the generation config is new to `infill`. Leave it out.")
    if isinstance(config.watermarking_config, SynthIDTextWatermarkingConfig):
        raise ValueError("`watermarking_config` is a SynthIDTextWatermarkingConfig, which remembers rows that a fill "
                         "does not keep. Pass a WatermarkingConfig.")  # fmt: skip
    _check_kinds(vars(config))


def _check_kinds(values: dict[str, Any]) -> None:
    """Refuse values of another type."""
    for name, (kinds, expected) in _KINDS.items():
        value = values.get(name)
        is_right = isinstance(value, kinds) and not (isinstance(value, bool) and kinds is not bool)
        if is_right and name in ("suppress_tokens", "begin_suppress_tokens"):
            is_right = all(map(_is_id, value))  # type: ignore[arg-type]
        if is_right and name == "exponential_decay_length_penalty":
            is_right = len(value) == 2 and all(isinstance(number, Real) for number in value)  # type: ignore
        if value is not None and not is_right:
            raise ValueError(f"`{name}` is {value!r:.60}; expected {expected}.")
    bias = values.get("sequence_bias") or []
    for pair in list(bias.items()) if isinstance(bias, dict) else bias:
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], list | tuple)
        if not is_pair or not all(map(_is_id, pair[0])) or not isinstance(pair[1], Real):
            raise ValueError(
                f"`sequence_bias` has {pair!r:.60}; expected token ids, as a tuple, and a number for each sequence."
            )


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


__all__ = ["AUTO_LENGTHS", "HONOURED_IN_CONFIG", "IRRELEVANT", "REFUSED", "SUPPORTED", "InfillOptions",
           "merge_generation_config"]  # fmt: skip
