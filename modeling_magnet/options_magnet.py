"""How gaps are filled: the options that all ways of filling share, checked once."""

import copy
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from transformers import CompileConfig, GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import MaxTimeCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .gaps_magnet import Healing
from .generation_fields_magnet import SUPPORTED
from .processors_magnet import PlaceProcessors, last_processors
from .sampling_magnet import TokenChooser, merge_generation_config
from .stopping_magnet import takes_text

_FLAGS = (
    "stop_at_sentence_end",
    "stop_at_end_of_span",
    "trim_overlap",
    "split_special_tokens",
    "return_dict_in_generate",
)
# The lengths that `num_tokens="auto"` tries.
AUTO_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48)


@dataclass(kw_only=True)
class InfillOptions:
    """Options of `infill`, `infill_blanks` and `rewrite`.

    Args:
        max_new_tokens (`int` or `list[int]`, *optional*): Tokens of each fill, one number for all gaps of a text or
            one for each. Exact, unless a rule ends the fill: the gap keeps that many positions free. A model that was
            taught to end spans ends them within this limit by itself.
        num_tokens (`"auto"` or `list[int]`, *optional*): Instead of `max_new_tokens`: lengths to try, each gap then
            having the one that scores best; see `lengths_magnet`. `"auto"` where neither is given: it fills and reads
            a text once for each of thirteen lengths up to 48, many times the work of one length.
        chunk_size (`int`, defaults to 32): Longer gaps are filled in pieces of so many tokens; each sees all that was
            filled before as context (appendix E).
        stop_at_sentence_end (`bool`, defaults to `False`): End a fill behind its first sentence.
        stop_at_end_of_span (`bool`, *optional*): Let the model end a fill; defaults to whether it was taught to.
        trim_overlap (`bool`, defaults to `False`): Cut off a fill's beginning where it repeats the end of the text in
            front of the gap, and its end where it repeats the beginning of the text behind it.
        heal (`str`, *optional*, defaults to `"space"`): A space in front of a gap becomes part of the fill's first
            token where the tokenizer joins it with the next word; indentation that it keeps apart stays. `"token"`
            lets a gap begin and end inside a word: one token on either side of it is spelt anew, as part of the fill's
            tokens, whose number is then exact. `None` leaves the tokens of the context alone.
        split_special_tokens (`bool`, defaults to `True`): Read control tokens that stand in a text, such as `</s>`, as
            the characters they are written with; `False` reads them as control tokens.
        batch_size (`int`, defaults to 32): Texts decoded together.
        show_progress_bar (`bool`, *optional*): Over the tokens of the gaps; defaults to showing one over many batches.
        generation_config (`GenerationConfig`, *optional*): Defaults to the model's own.
        logits_processor (`LogitsProcessorList`, *optional*): As `generate` takes it.
        stopping_criteria (`StoppingCriteriaList`, *optional*): As `generate` takes it, each span a row.
        streamer (`BaseStreamer`, *optional*): As `generate` takes it, for one text; its gaps come one after another. A
            `TextStreamer` shows exactly the fills, and any other one gets tokens.
        return_dict_in_generate (`bool`, *optional*, defaults to `False`): Return an `InfillOutput` instead of text.

    Beside these, the fields of GenerationConfig that a fill can have, `do_sample`, `temperature` and
    `num_return_sequences` among them; `generation_fields_magnet` lists them, and those that are refused. A config's
    `max_new_tokens` is the length of the fill where the call names none; in the checkpoint's own config it bounds the
    lengths that `"auto"` tries. Without sampling, several answers to one gap begin with its most likely tokens, each
    continued greedily.

    For long fills of single texts on a GPU, `cache_implementation="static"` gives each step the same shapes, so that
    all kernels of one are launched as a CUDA graph, which is recorded anew for every batch and chunk: raise
    `chunk_size` with it. `compile_config=CompileConfig()` beside it fuses the kernels before, which takes as long as
    compiling does, a few times for a model: for one row or gap and for several, and for a second length. From one
    thread at a time.

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
        """The options of a call.

        Args:
            given (`dict`): What the caller passed.
            default_config (`GenerationConfig`): The model's own.
            end_of_span (`int`): The model's setting, 0 for a model that was not taught to end spans.
        """
        own = {field.name for field in fields(cls)}
        given_config = given.get("generation_config")
        if given_config is not None and not isinstance(given_config, GenerationConfig):
            raise ValueError(f"`generation_config` is {given_config!r:.60}; expected a GenerationConfig.")
        for name in given:
            if name not in own and name not in SUPPORTED:
                close = difflib.get_close_matches(name, sorted(own | set(SUPPORTED)), n=1)
                hint = f" Did you mean `{close[0]}`?" if close else ""
                raise ValueError(
                    f"`infill` does not know `{name}`.{hint} It takes {', '.join(sorted(own))}, and of "
                    f"GenerationConfig {', '.join(SUPPORTED)}."
                )
        config = merge_generation_config(
            given_config or default_config, {k: v for k, v in given.items() if k not in own}
        )
        options = cls(**{**{k: v for k, v in given.items() if k in own}, "generation_config": config})
        if options.max_new_tokens is None and options.num_tokens is None:
            options.max_new_tokens = None if given_config is None else given_config.max_new_tokens
            options.num_tokens = "auto" if options.max_new_tokens is None else None
        if options.return_dict_in_generate is None:
            options.return_dict_in_generate = bool(config.return_dict_in_generate)
        for name in _FLAGS:
            if not isinstance(getattr(options, name), bool | None):
                raise ValueError(f"`{name}` is {getattr(options, name)!r:.60}; expected true or false.")
        if options.stop_at_end_of_span and not end_of_span:
            raise ValueError(
                "`stop_at_end_of_span` is true, but this model was not taught to end a span. Adapt it with "
                "`end_of_span`, or leave the option out."
            )
        if options.stop_at_end_of_span is None:
            options.stop_at_end_of_span = end_of_span > 0 and options.heal != "token"
        options._check()
        return options

    def greedy(self) -> "InfillOptions":
        """The same with one greedy answer."""
        config = copy.deepcopy(self.generation_config)
        config.do_sample, config.num_return_sequences = False, None
        return replace(self, generation_config=config)

    @property
    def num_answers(self) -> int:
        """Answers to each gap."""
        return self.generation_config.num_return_sequences or 1

    @property
    def is_static(self) -> bool:
        """Whether every decoding step has the same shapes."""
        return self.generation_config.cache_implementation == "static"

    @property
    def compile_config(self) -> CompileConfig | None:
        """What a static step is compiled with."""
        if not self.is_static or self.generation_config.disable_compile:
            return None
        return self.generation_config.compile_config

    @property
    def stop_strings(self) -> list[str]:
        """Strings that end a fill."""
        given = self.generation_config.stop_strings
        return [given] if isinstance(given, str) else list(given or [])

    def candidate_lengths(self, *, end_of_span: int) -> list[int]:
        """The lengths to try, ascending; multiples of what it was taught with where the model ends spans by itself.

        `max_new_tokens` of the generation config bounds what "auto" tries, and no length is below its
        `min_new_tokens`.

        Args:
            end_of_span (`int`): The model's setting, 0 for a model that was not taught to end spans.
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
        """The caller's criteria, and the time that the generation config allows from now on."""
        criteria = StoppingCriteriaList(self.stopping_criteria or [])
        if self.generation_config.max_time is not None:
            criteria.append(MaxTimeCriteria(float(self.generation_config.max_time)))
        return criteria or None

    def _check(self) -> None:
        """Refuse what is out of range or contradicts itself."""
        if self.max_new_tokens is not None and self.num_tokens is not None:
            raise ValueError(
                f"`max_new_tokens` is {self.max_new_tokens!r} and `num_tokens` {self.num_tokens!r}; pass one of them: "
                "the length of the fill, or the lengths to try ('auto' or a list)."
            )
        if self.num_tokens is not None and not (isinstance(self.num_tokens, str) and self.num_tokens == "auto"):
            lengths = self.num_tokens
            if (
                isinstance(lengths, str)
                or not isinstance(lengths, Sequence)
                or not lengths
                or not all(isinstance(length, Integral) and length >= 1 for length in lengths)
            ):
                raise ValueError(f"`num_tokens` is {lengths!r}; expected 'auto' or a list of lengths of at least 1.")
        for name in ("batch_size", "chunk_size"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"`{name}` is {value!r}; expected a whole number of at least 1.")
        for name, lists in (("logits_processor", LogitsProcessorList), ("stopping_criteria", StoppingCriteriaList)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, list):
                raise ValueError(f"`{name}` is {type(value).__name__}; expected a {lists.__name__}.")
            setattr(self, name, None if value is None else lists(value))
        self._check_lengths()
        if not all(isinstance(stop, str) and stop for stop in self.stop_strings):
            raise ValueError(f"`stop_strings` is {self.generation_config.stop_strings!r}; expected strings with text.")
        # They know the ranges of their knobs.
        TokenChooser(self.generation_config, spans=[], barred_ids=[])
        last_processors(self.generation_config, vocab_size=1, device=torch.device("cpu"))
        PlaceProcessors(self.generation_config, end_of_span_id=0)(torch.zeros(1, 1), indices=[0])
        decay = self.generation_config.exponential_decay_length_penalty
        if decay is not None and not self.stop_at_end_of_span:
            raise ValueError(
                f"`exponential_decay_length_penalty={decay!r:.60}` makes the end of a fill likelier, but these fills "
                "end at their length. Leave it out, or adapt the model with `end_of_span`."
            )
        stops = self.stop_strings or self.stop_at_sentence_end or self.stop_at_end_of_span or self.stopping_criteria
        check_healing(self.heal)
        if self.heal == "token" and stops:
            raise ValueError("`heal` needs fills of exact length, which end where the word behind them goes on. Drop "
                             "`heal`, or the rules that end a fill early.")  # fmt: skip
        if self.streamer is not None and (self.num_answers > 1 or self.num_tokens is not None):
            raise ValueError("`streamer` shows one answer as it is written; pass `max_new_tokens` and one sequence.")
        changes_text = self.heal == "token" or self.trim_overlap
        if self.streamer is not None and changes_text and not takes_text(self.streamer):
            raise ValueError(
                f"`streamer` shows tokens as they come, being {type(self.streamer).__name__}; `heal='token'` and "
                "`trim_overlap` change the text they spell. Pass a `TextStreamer`, or leave them out."
            )

    def _check_lengths(self) -> None:
        """Refuse fills that are shorter than `min_new_tokens`."""
        least = self.generation_config.min_new_tokens or 0
        if least < 0:
            raise ValueError(f"`min_new_tokens` is {least}; expected a whole number of at least 0.")
        asked = self.max_new_tokens if self.num_tokens is None else self.num_tokens
        numbers = _numbers(asked)
        if least and numbers and (min(numbers) if self.num_tokens is None else max(numbers)) < least:
            raise ValueError(
                f"`min_new_tokens` is {least}, more than the length asked for ({asked!r}). Raise the length, or leave "
                "`min_new_tokens` out."
            )


def _numbers(lengths: Any) -> list[int]:
    """The numbers in a length, a list of lengths, or a list of such lists."""
    if isinstance(lengths, Integral):
        return [int(lengths)]
    if isinstance(lengths, Sequence) and not isinstance(lengths, str):
        return [number for one in lengths for number in _numbers(one)]
    return []


def check_healing(heal: Any) -> None:
    """Refuse what is not a kind of healing.

    Raises:
        ValueError: saying which there are.
    """
    if heal is not None and (not isinstance(heal, str) or heal not in get_args(Healing)):
        raise ValueError(f"`heal` is {heal!r}; expected 'space', 'token' or None.")


__all__ = ["AUTO_LENGTHS", "InfillOptions", "check_healing"]
