"""The options of `infill`, `infill_blanks`, `fill` and `rewrite`, and how they follow from a GenerationConfig."""

import copy
import difflib
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import MaxTimeCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .configuration_magnet import MagnetSettings
from .spans_magnet import Healing
from .tokenization_magnet import check_whole_number

# The lengths that `num_tokens="auto"` tries.
AUTO_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48)

# Each field of a GenerationConfig either changes a fill, cannot change it, or raises an error.

# Fields that a call also accepts as arguments.
SUPPORTED = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "suppress_tokens",
    "begin_suppress_tokens", "min_new_tokens", "max_time", "num_return_sequences", "stop_strings",
)  # fmt: skip
# Fields that are accepted in a config but not as arguments.
ACCEPTED_IN_CONFIG = (
    "max_new_tokens", "max_length", "return_dict_in_generate", "eos_token_id",  # have an effect
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "disable_compile", "compile_config",
    "prefill_chunk_size", "low_memory",  # only change the speed
    "early_stopping", "length_penalty",  # belong to beam search, which raises an error
    "pad_token_id", "bos_token_id", "decoder_start_token_id",  # those of the tokenizer are used
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
    "speculation_type", "prompt_lookup_num_tokens", "max_matching_ngram_size", "use_mtp",  # speculative decoding
    "continuous_batching_config", "transformers_version",
)  # fmt: skip
# Values that have no effect in `generate`, besides `None` and `False`. A `max_length` of 20 is its default.
NEUTRAL = {
    "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0, "min_length": 0,
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "guidance_scale": 1.0, "max_length": 20,
}  # fmt: skip
# Alternatives to unsupported fields that users often set.
INSTEAD = {
    "num_beams": "num_return_sequences",
    "min_length": "min_new_tokens",
    "token_healing": "heal='token'",
    "output_scores": "return_dict_in_generate",
    "output_logits": "return_dict_in_generate",
}


@dataclass(kw_only=True)
class InfillOptions:
    """Options of `infill`, `infill_blanks`, `fill` and `rewrite`.

    Args:
        max_new_tokens (`int` or `list[int]`, *optional*): Number of tokens of each fill, either one number or one per
            blank of a text. The number is exact unless a rule ends the fill, because that many positions are
            reserved. A model that was trained to end spans may end them earlier.
        num_tokens (`"auto"` or `list[int]`, *optional*): Lengths to try instead of `max_new_tokens`; each blank gets
            the length with the best score. Defaults to `"auto"` if neither is set: thirteen lengths up to 48, each
            filled and scored once, which costs many times as much as one length.
        chunk_size (`int`, defaults to 32): Longer fills are decoded in chunks of this many tokens; each chunk sees all
            earlier chunks as context (appendix E).
        stop_at_sentence_end (`bool`, defaults to `False`): End a fill after its first sentence.
        stop_at_end_of_span (`bool`, *optional*): Let the model end a fill. Defaults to `True` if it was trained to.
        trim_overlap (`bool`, defaults to `False`): Remove words of a fill that repeat the end of the text before it or
            the beginning of the text after it.
        heal (`str`, *optional*, defaults to `"space"`): Token healing. `"space"` moves a space before a blank into the
            first token of the fill if the tokenizer joins spaces with the next word. `"token"` lets a blank begin and
            end inside a word: the fill generates one token on either side again, and its length is exact. `None`
            leaves the tokens of the context unchanged.
        split_special_tokens (`bool`, defaults to `True`): Read special tokens in a text, such as `</s>`, as
            characters; `False` reads them as special tokens.
        batch_size (`int`, defaults to 32): Number of texts decoded together.
        show_progress_bar (`bool`, *optional*): Whether to show a progress bar. Defaults to `True` for many batches.
        generation_config (`GenerationConfig`): Generation settings. Calls that pass none use those of the model.
        logits_processor (`LogitsProcessorList`, *optional*): As in `generate`.
        stopping_criteria (`StoppingCriteriaList`, *optional*): As in `generate`; each span is a row.
        streamer (`BaseStreamer`, *optional*): As in `generate`, for a single text, whose fills are streamed one after
            another. A `TextStreamer` receives exactly the text of the fills, any other streamer receives tokens.
        return_dict_in_generate (`bool`, *optional*, defaults to `False`): Return an `InfillOutput` instead of text.

    A call also accepts the fields of GenerationConfig listed in `SUPPORTED`, such as `do_sample`, `temperature` and
    `num_return_sequences`; transformers checks their values. Without sampling, several answers to one blank begin with
    its most likely tokens and continue greedily. If the call sets no length, `max_new_tokens` of a passed
    `generation_config` is used; in the checkpoint's own config, it bounds the lengths that `"auto"` tries.

    Raises:
        ValueError: If an option does not exist, is out of range, or contradicts another option.
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
    def from_arguments(cls, model: Any, arguments: dict[str, Any]) -> "InfillOptions":
        """Read and check the arguments of a call; the generation config of the model is the default."""
        end_of_span = MagnetSettings.from_config(model.config).end_of_span or 0
        names = {field.name for field in fields(cls)}
        _check_names(arguments, names)
        passed_config = arguments.get("generation_config")
        overrides = {name: value for name, value in arguments.items() if name not in names}
        config = merge_generation_config(passed_config or model.generation_config, overrides)
        known = {name: value for name, value in arguments.items() if name in names}
        options = cls(**{**known, "generation_config": config})
        if options.max_new_tokens is None and options.num_tokens is None:
            options.max_new_tokens = None if passed_config is None else passed_config.max_new_tokens
            options.num_tokens = "auto" if options.max_new_tokens is None else None
        if options.return_dict_in_generate is None:
            options.return_dict_in_generate = bool(config.return_dict_in_generate)
        if options.stop_at_end_of_span is None:
            options.stop_at_end_of_span = end_of_span > 0 and options.heal != "token"
        options._check(end_of_span)
        return options

    def greedy(self) -> "InfillOptions":
        """Return a copy of the options that asks for one greedy answer."""
        config = copy.deepcopy(self.generation_config)
        config.do_sample, config.num_return_sequences = False, 1
        return replace(self, generation_config=config)

    @property
    def stop_strings(self) -> list[str]:
        """Strings that end a fill."""
        stops = self.generation_config.stop_strings
        return [stops] if isinstance(stops, str) else list(stops or [])

    def candidate_lengths(self, *, end_of_span: int) -> list[int]:
        """Return the lengths to try in ascending order.

        `max_new_tokens` of the generation config bounds the lengths of `"auto"`; `min_new_tokens` bounds all lengths
        from below. If the model ends spans, `"auto"` tries multiples of `end_of_span`, the model's setting.
        """
        shortest = self.generation_config.min_new_tokens or 1
        if self.num_tokens != "auto":
            lengths = sorted({*(self.num_tokens or [])})
            return [length for length in lengths if length >= shortest] or lengths
        longest = self.generation_config.max_new_tokens or sys.maxsize
        auto: Sequence[int] = AUTO_LENGTHS
        if self.stop_at_end_of_span:
            auto = range(end_of_span, AUTO_LENGTHS[-1] + end_of_span, end_of_span)
        return [length for length in auto if shortest <= length <= longest] or [max(shortest, min(longest, auto[0]))]

    def all_criteria(self) -> StoppingCriteriaList | None:
        """Return the caller's criteria and the time limit of the generation config, which starts now."""
        criteria = StoppingCriteriaList(self.stopping_criteria or [])
        if self.generation_config.max_time is not None:
            criteria.append(MaxTimeCriteria(float(self.generation_config.max_time)))
        return criteria or None

    def _check(self, end_of_span: int) -> None:
        """Raise on values that would be misread and on options that contradict each other."""
        lengths, num_answers = self.num_tokens, self.generation_config.num_return_sequences
        if self.max_new_tokens is not None and lengths is not None:
            raise ValueError("`max_new_tokens` and `num_tokens` are both set. Pass one of them.")
        if not all(isinstance(stop, str) and stop for stop in self.stop_strings):
            raise ValueError(f"`stop_strings` is {self.stop_strings!r}; expected non-empty strings.")
        if self.stop_at_end_of_span and not end_of_span:
            raise ValueError("`stop_at_end_of_span` requires a model that was trained with `end_of_span`. Omit it.")
        stops = self.stop_strings or self.stop_at_sentence_end or self.stop_at_end_of_span or self.stopping_criteria
        if self.heal == "token" and stops:
            raise ValueError("`heal='token'` requires fills of exact length. Omit the options that end a fill early.")
        if self.streamer is not None and (num_answers > 1 or lengths is not None or self.trim_overlap):
            raise ValueError(
                "`streamer` shows one answer while it is generated. Pass `max_new_tokens` and one sequence, without "
                "`trim_overlap`."
            )
        for name in ("batch_size", "chunk_size"):
            check_whole_number(getattr(self, name), name=name, minimum=1)
        if lengths is not None and lengths != "auto":
            if isinstance(lengths, str) or not isinstance(lengths, Collection) or not len(lengths):
                raise ValueError(f"`num_tokens` is {lengths!r}; expected a list of lengths to try, or 'auto'.")
            for length in lengths:
                check_whole_number(length, name="num_tokens", minimum=1)


def _check_names(arguments: dict[str, Any], names: set[str]) -> None:
    """Raise on arguments that do not exist."""
    for name in arguments:
        if name not in names and name not in SUPPORTED:
            close = difflib.get_close_matches(name, [*names, *SUPPORTED], n=1)
            close = [INSTEAD[name]] if name in INSTEAD else close
            hint = f"Did you mean `{close[0]}`? " if close else ""
            raise ValueError(
                f"`infill` has no argument `{name}`. {hint}It accepts {', '.join(sorted(names))}, and the fields "
                f"{', '.join(SUPPORTED)} of GenerationConfig."
            )


def merge_generation_config(base: GenerationConfig, overrides: dict[str, Any]) -> GenerationConfig:
    """Return a copy of a generation config, updated with arguments of a call that are all in `SUPPORTED`.

    In the copy, `num_return_sequences` is set, and `max_length` is `None` unless the caller chose a limit.

    Raises:
        ValueError: If the config sets a field that infilling does not support, or the number of answers is below one.
    """
    for name, value in vars(base).items():
        is_known = name in SUPPORTED or name in ACCEPTED_IN_CONFIG or name.startswith("_")
        if is_known or value is None or value is False or not hasattr(GenerationConfig(), name):
            continue
        if name not in NEUTRAL or value != NEUTRAL[name]:
            remedy = f"Pass `{INSTEAD[name]}` instead." if name in INSTEAD else "Remove it."
            raise ValueError(f"Infilling does not support `{name}={value!r:.60}` in the generation config. {remedy}")
    config = copy.deepcopy(base)
    # `update` validates the config and allows several answers only for sampling and beam search.
    config.update(**{name: value for name, value in overrides.items() if name != "num_return_sequences"})
    answers = overrides.get("num_return_sequences", config.num_return_sequences)
    if answers is not None:
        check_whole_number(answers, name="num_return_sequences", minimum=1)
    config.num_return_sequences = answers or 1
    if config.max_length == NEUTRAL["max_length"]:
        config.max_length = None
    return config
