"""Fill blanks: `infill`, `infill_blanks`, `fill` and `rewrite`, which are methods of a model, too.

A call goes through `fill_parts`: it chooses lengths if none is given (`fill_best_lengths`), decodes all spans in
rounds of chunks (`fill_texts`), and turns spans into answers. `InfillOptions` are the options of a call.
"""

import copy
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import MaxTimeCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import tqdm

from .adapters_magnet import adapters_for
from .batching_magnet import (
    PROGRESS_FROM_BATCHES,
    evaluating,
    is_progress_hidden,
    pad_token_id,
    target_logprobs,
    to_device,
)
from .configuration_magnet import MagnetSettings
from .decoding_magnet import SpanStream, StopRules, decode
from .probe_magnet import probe_attention
from .sampling_magnet import CharacterRule, TokenChooser, byte_tokens
from .spans_magnet import (
    Fill,
    Healed,
    Healing,
    Span,
    SpanLayout,
    SpanRow,
    fill_ids,
    fill_text,
    lay_out,
    round_up,
    space_to_heal,
    split_at_marks,
    split_at_ranges,
    token_texts,
    trim_overlap,
)
from .tokenization_magnet import check_texts, check_whole_number, pad_token_rows, special_ids

Ranges = Sequence[tuple[int, int]]
# Tokens after a span that count for the score of its length.
JOIN_TOKENS = 8
# The lengths that `num_tokens="auto"` tries.
AUTO_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48)
# What `generate` uses where no `max_length` is set.
DEFAULT_MAX_LENGTH = 20


# --- Options. A field of a GenerationConfig is honoured, cannot change a fill, or is refused.

# Fields that a call may also pass as arguments.
SUPPORTED = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "suppress_tokens",
    "begin_suppress_tokens", "min_new_tokens", "max_time", "num_return_sequences", "stop_strings",
)  # fmt: skip
# Honoured in a config; a call has arguments of its own for them, or none.
HONOURED_IN_CONFIG = ("max_new_tokens", "max_length", "return_dict_in_generate", "eos_token_id")
# Fields that cannot change a fill.
IRRELEVANT = (
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "disable_compile", "compile_config",
    "prefill_chunk_size", "low_memory",  # only change the speed
    "early_stopping", "length_penalty",  # belong to beam search, which is refused
    "pad_token_id", "bos_token_id", "decoder_start_token_id",  # the tokenizer's own are used
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
    "speculation_type", "prompt_lookup_num_tokens", "max_matching_ngram_size", "use_mtp",  # speculative decoding
    "continuous_batching_config", "transformers_version",
)  # fmt: skip
# Values of other fields that ask for nothing, besides `None` and `False`.
NEUTRAL = {
    "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0, "min_length": 0,
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "guidance_scale": 1.0,
}  # fmt: skip
# What to pass instead of fields that are often set.
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
            `None` changes no token of the context.
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
    `num_return_sequences` among them; transformers checks their values. Without sampling, several answers to one blank
    begin with its most likely tokens and go on greedily. `max_new_tokens` of a config that is passed is the length of
    the fill if the call names none; in the checkpoint's own config it bounds the lengths that `"auto"` tries.

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
    def of_call(cls, model: Any, given: dict[str, Any]) -> "InfillOptions":
        """Read and check the options of a call.

        Args:
            model: One of our models, whose generation config is the default.
            given (`dict`): What the caller passed.
        """
        end_of_span = MagnetSettings.of(model.config).end_of_span or 0
        own = {field.name for field in fields(cls)}
        _check_names(given, own)
        given_config = given.get("generation_config")
        overrides = {name: value for name, value in given.items() if name not in own}
        config = merge_generation_config(given_config or model.generation_config, overrides)
        options = cls(**{**{k: v for k, v in given.items() if k in own}, "generation_config": config})
        if options.max_new_tokens is None and options.num_tokens is None:
            options.max_new_tokens = None if given_config is None else given_config.max_new_tokens
            options.num_tokens = "auto" if options.max_new_tokens is None else None
        if options.return_dict_in_generate is None:
            options.return_dict_in_generate = bool(config.return_dict_in_generate)
        if options.stop_at_end_of_span is None:
            options.stop_at_end_of_span = end_of_span > 0 and options.heal != "token"
        options._check(end_of_span)
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

    def candidate_lengths(self, *, end_of_span: int) -> list[int]:
        """Return the lengths to try, ascending; multiples of `end_of_span` if the model ends spans by itself.

        `max_new_tokens` of the generation config bounds what "auto" tries; `min_new_tokens` bounds all from below.

        Args:
            end_of_span (`int`): The model's setting, 0 for a model that was not trained to end spans.
        """
        least = self.generation_config.min_new_tokens or 1
        if self.num_tokens != "auto":
            lengths = sorted({*(self.num_tokens or [])})
            return [length for length in lengths if length >= least] or lengths
        most = self.generation_config.max_new_tokens or sys.maxsize
        auto: Sequence[int] = AUTO_LENGTHS
        if self.stop_at_end_of_span:
            auto = range(end_of_span, AUTO_LENGTHS[-1] + end_of_span, end_of_span)
        return [length for length in auto if least <= length <= most] or [max(least, min(most, auto[0]))]

    def all_criteria(self) -> StoppingCriteriaList | None:
        """Return the caller's criteria, and the time limit of the generation config from now on."""
        criteria = StoppingCriteriaList(self.stopping_criteria or [])
        if self.generation_config.max_time is not None:
            criteria.append(MaxTimeCriteria(float(self.generation_config.max_time)))
        return criteria or None

    def _check(self, end_of_span: int) -> None:
        """Refuse values that would otherwise be misread, and options that contradict each other."""
        lengths = self.num_tokens
        if self.max_new_tokens is not None and lengths is not None:
            raise ValueError("`max_new_tokens` and `num_tokens` are both given. Pass a length, or lengths to try.")
        if not all(isinstance(stop, str) and stop for stop in self.stop_strings):
            raise ValueError(f"`stop_strings` is {self.stop_strings!r}; expected strings with text.")
        if self.stop_at_end_of_span and not end_of_span:
            raise ValueError("`stop_at_end_of_span` needs a model that was adapted with `end_of_span`. Leave it out.")
        stops = self.stop_strings or self.stop_at_sentence_end or self.stop_at_end_of_span or self.stopping_criteria
        if self.heal == "token" and stops:
            raise ValueError("`heal='token'` needs fills of exact length. Leave out the rules that end a fill early.")
        if self.streamer is not None and (self.num_answers > 1 or lengths is not None or self.trim_overlap):
            raise ValueError(
                "`streamer` shows one answer as it is written. Pass `max_new_tokens` and one sequence, without "
                "`trim_overlap`."
            )
        for name in ("batch_size", "chunk_size"):
            check_whole_number(getattr(self, name), name=name, least=1)
        if lengths is not None and lengths != "auto":
            if not lengths:
                raise ValueError("`num_tokens` is empty. Pass the lengths to try, or 'auto'.")
            for length in lengths:
                check_whole_number(length, name="num_tokens", least=1)


def _check_names(given: dict[str, Any], own: set[str]) -> None:
    """Refuse arguments that do not exist."""
    for name in given:
        if name not in own and name not in SUPPORTED:
            close = [INSTEAD[name]] if name in INSTEAD else difflib.get_close_matches(name, [*own, *SUPPORTED], n=1)
            hint = f"Did you mean `{close[0]}`? " if close else ""
            raise ValueError(
                f"`infill` does not know `{name}`. {hint}It takes {', '.join(sorted(own))}, and of GenerationConfig "
                f"{', '.join(SUPPORTED)}."
            )


def merge_generation_config(base: GenerationConfig, overrides: dict[str, Any]) -> GenerationConfig:
    """Return a copy of a generation config with the arguments of a call, all in `SUPPORTED`, on top.

    Raises:
        ValueError: a field of the config that a fill cannot have, or a number of answers below one.
    """
    for name, value in vars(base).items():
        is_known = name in (*SUPPORTED, *HONOURED_IN_CONFIG, *IRRELEVANT) or name.startswith("_")
        if is_known or value is None or value is False or not hasattr(GenerationConfig(), name):
            continue
        if name not in NEUTRAL or value != NEUTRAL[name]:
            remedy = f"Pass `{INSTEAD[name]}` instead." if name in INSTEAD else "Leave it out."
            raise ValueError(f"`{name}={value!r:.60}` in the generation config has no meaning for a fill. {remedy}")
    config = copy.deepcopy(base)
    # The config's own check allows several answers only for sampling and beams.
    config.update(**{name: value for name, value in overrides.items() if name != "num_return_sequences"})
    answers = config.num_return_sequences = overrides.get("num_return_sequences", config.num_return_sequences)
    if answers is not None:
        check_whole_number(answers, name="num_return_sequences", least=1)
    return config


# --- The public calls.


@dataclass
class InfillOutput:
    """What filling returns with `return_dict_in_generate=True`.

    Args:
        fills (`list[list[list[Fill]]]`): Per text and blank the answers, the most probable first, no text twice.
        embeddings (`torch.FloatTensor` of shape `(num_texts, hidden_size)`, *optional*): Embedding of each text *with
            its blanks*, by the model's own pooling, from the same forward that reads the context: an EOS follows the
            text that no context token sees. `encode` shows that EOS to the context, so its vectors differ a little.
            `None` if the tokenizer has no EOS.
        length_scores (`list[list[dict[int, float]]]`, *optional*): Per text and blank the score of each candidate
            length, if several were tried.
    """

    fills: list[list[list[Fill]]]
    embeddings: torch.Tensor | None
    length_scores: list[list[dict[int, float]]] | None = None


def infill(model: Any, prefix: str | Sequence[str], suffix: str | Sequence[str], **options: Any) -> Any:
    """Write the text between a prefix and a suffix.

    Args:
        model: One of our models.
        prefix (`str` or `list[str]`): Text before the blank; may be empty.
        suffix (`str` or `list[str]`): Text after it, joined without an added space; may be empty.
        options: Those of `InfillOptions`: `max_new_tokens` or `num_tokens`, and `do_sample`, `temperature`,
            `num_return_sequences` and others as `generate` takes them. Without a length `num_tokens="auto"` finds
            one, which costs many times as much as a given one.

    Returns:
        The fill, so that `prefix + fill + suffix` is the text: `str` for strings, a list for lists. With
        `num_return_sequences`, a list of different answers in place of each fill, the most probable first; fewer
        if answers are equal.

    Raises:
        ValueError: no text around the blank, lists of different lengths, a text beyond the context, or an option
            that does not exist or fit.

    Source: Khosla et al. 2025, section 3.3.
    """
    single, prefixes, suffixes = check_pairs(prefix, suffix)
    output = _fill(model, [list(pair) for pair in zip(prefixes, suffixes, strict=True)], options)
    if isinstance(output, InfillOutput):
        return output
    fills = [blanks[0] for blanks in output]
    return fills[0] if single else fills


def infill_blanks(
    model: Any,
    text: str | Sequence[str],
    *,
    blank: str = "[blank]",
    ranges: Ranges | Sequence[Ranges] | None = None,
    **options: Any,
) -> Any:
    r"""Fill every blank of a text, all of them in one decoding loop.

    Args:
        model: One of our models.
        text (`str` or `list[str]`): Texts with blanks.
        blank (`str`, defaults to `"[blank]"`): The mark of a blank; after a backslash, `"\[blank]"`, it is text.
        ranges (`list[tuple[int, int]]`, or one such list per text, *optional*): Ranges of characters to replace,
            instead of marks.
        options: As in `infill`.

    Returns:
        For each blank what `infill` returns, in order: a list for a string, a list of lists for a list.

    Raises:
        ValueError: a text without a blank, adjacent blanks, ranges that do not fit, or as in `infill`.
    """
    output = _fill(model, _split_texts(text, blank=blank, ranges=ranges), options)
    return output[0] if isinstance(text, str) and isinstance(output, list) else output


def fill(
    model: Any,
    text: str | Sequence[str],
    *,
    blank: str = "[blank]",
    ranges: Ranges | Sequence[Ranges] | None = None,
    **options: Any,
) -> Any:
    """Return a text with its blanks filled.

    Args:
        model: One of our models.
        text (`str` or `list[str]`): Texts with blanks.
        blank, ranges: As in `infill_blanks`.
        options: As in `infill`.

    Returns:
        The filled text: `str` for a string, a list for a list. With `num_return_sequences` above one, a list of
        different texts in place of each: the first with the most probable answer to each blank, the next with the
        second ones; a blank without a further answer keeps its best.

    Raises:
        ValueError: `return_dict_in_generate`, or as in `infill_blanks`.
    """
    if options.get("return_dict_in_generate"):
        raise ValueError("`return_dict_in_generate` is set, but `fill` returns text. Call `infill_blanks`.")
    texts = _split_texts(text, blank=blank, ranges=ranges)
    checked = InfillOptions.of_call(model, {**options, "return_dict_in_generate": True})
    filled: list[Any] = []
    for parts, blanks in zip(texts, fill_parts(model, texts, checked).fills, strict=True):
        number = max(map(len, blanks))
        chosen = [[answers[rank if rank < len(answers) else 0].text for answers in blanks] for rank in range(number)]
        filled.append([parts[0] + "".join(map("".join, zip(own, parts[1:], strict=True))) for own in chosen])
    if checked.num_answers == 1:
        filled = [best for best, *_ in filled]
    return filled[0] if isinstance(text, str) else filled


def rewrite(model: Any, text: str, start: int, end: int, **options: Any) -> Any:
    """Replace a selection by a new text, of as many tokens unless a length is given.

    The model does not see the old text; its most likely fill may be the same words.

    Args:
        model: One of our models.
        text (`str`): The text.
        start (`int`): First character of the selection.
        end (`int`): The character after it.
        options: As in `infill`.

    Returns:
        The fill or fills, as `infill` returns them: `text[:start] + fill + text[end:]` is the new text.

    Raises:
        ValueError: a selection that does not fit the text, an empty one without a length, or as in `infill`.
    """
    (text,) = check_texts([text], name="text")
    parts = split_at_ranges(text, [(start, end)], name="`text`")
    if options.get("max_new_tokens") is None and options.get("num_tokens") is None:
        if start == end:
            raise ValueError(f"Nothing is selected at {start}. Say how much to write: `max_new_tokens=`.")
        tokenizer, read = model.tokenizer, {"split_special_tokens": options.get("split_special_tokens", True)}
        heals = options.get("heal", "space") is not None
        space = space_to_heal(tokenizer, parts[0], is_first=True, **read) if heals else ""
        selected = fill_ids(tokenizer, space + text[start:end], prefix=parts[0], **read)
        options = {**options, "max_new_tokens": max(len(selected), 1)}
    output = _fill(model, [parts], options)
    return output if isinstance(output, InfillOutput) else output[0][0]


def check_pairs(prefix: Any, suffix: Any) -> tuple[bool, list[str], list[str]]:
    """Return whether two strings were given, and the prefixes and suffixes.

    Raises:
        ValueError: a string and a list, lists of different lengths, or what is not text.
    """
    single = isinstance(prefix, str) and isinstance(suffix, str)
    prefixes = check_texts([prefix] if isinstance(prefix, str) else prefix, name="prefix")
    suffixes = check_texts([suffix] if isinstance(suffix, str) else suffix, name="suffix")
    if len(prefixes) != len(suffixes) or (not single and isinstance(prefix, str) | isinstance(suffix, str)):
        raise ValueError(
            f"`prefix` is {type(prefix).__name__} of {len(prefixes)}, `suffix` {type(suffix).__name__} of "
            f"{len(suffixes)}. Pass two strings, or two lists of the same length."
        )
    return single, prefixes, suffixes


def _split_texts(
    text: str | Sequence[str], *, blank: str, ranges: Ranges | Sequence[Ranges] | None
) -> list[list[str]]:
    """Return the parts of each text around its marks or ranges."""
    single = isinstance(text, str)
    texts = check_texts([text] if single else text, name="text")
    names = ["`text`"] if single else [f"`text[{index}]`" for index in range(len(texts))]
    if ranges is None:
        return [split_at_marks(one, blank, name=name) for one, name in zip(texts, names, strict=True)]
    given: Any = [ranges] if single else ranges
    if len(given) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(given)} lists of ranges were given; expected as many.")
    return [split_at_ranges(one, own, name=name) for one, own, name in zip(texts, given, names, strict=True)]


# --- Parts of texts to answers.


@dataclass(frozen=True)
class _InfillCall:
    """What filling needs everywhere, read once for each call."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    options: InfillOptions
    special_ids: frozenset[int]
    pad_token_id: int
    end_of_span: int  # the multiple that reserved positions are, 0 if fills do not end by themselves
    max_positions: int  # of a text and its fills

    @classmethod
    def of(cls, model: Any, options: InfillOptions) -> "_InfillCall":
        probe_attention(model)
        filler, tokenizer = pad_token_id(model), model.tokenizer
        end_of_span = MagnetSettings.of(model.config).end_of_span if options.stop_at_end_of_span else 0
        positions, longest = model.config.max_position_embeddings, options.generation_config.max_length
        if longest not in (None, DEFAULT_MAX_LENGTH):
            positions = min(positions, longest)
        return cls(model, tokenizer, options, special_ids(tokenizer), filler, end_of_span, positions)

    def lay_out(self, parts: Sequence[str], lengths: Sequence[int], *, max_positions: int) -> SpanLayout:
        """Lay out a text with positions for spans of some lengths."""
        return lay_out(
            self.tokenizer,
            parts,
            span_lengths=[round_up(length, self.end_of_span or 1) for length in lengths],
            context_length=max_positions,
            heal=self.options.heal,
            split_special_tokens=self.options.split_special_tokens,
        )


@torch.no_grad()
def fill_parts(model: Any, texts: Sequence[Sequence[str]], options: InfillOptions) -> InfillOutput:
    """Fill the blanks between the parts of texts, by checked options."""
    length_scores, lengths = None, []
    if options.num_tokens is None:
        asked = options.max_new_tokens
        lengths = [_span_lengths(asked, index, parts, num_texts=len(texts)) for index, parts in enumerate(texts)]
    with evaluating(model):
        call = _InfillCall.of(model, options)
        if options.num_tokens is None:
            filled = fill_texts(call, texts, span_lengths=lengths)
        else:
            filled, length_scores = fill_best_lengths(call, texts)
    fills = [
        [
            _answers(call.tokenizer, spans, before=before, after=after, options=options)
            for spans, before, after in zip(one.spans, parts[:-1], parts[1:], strict=True)
        ]
        for one, parts in zip(filled, texts, strict=True)
    ]
    found = [one.embedding for one in filled if one.embedding is not None]
    return InfillOutput(fills, torch.stack(found) if found else None, length_scores)


def _fill(model: Any, texts: Sequence[Sequence[str]], given: dict[str, Any]) -> InfillOutput | list[list[Any]]:
    """Fill the blanks between the parts of texts; per text and blank a string or several, or an `InfillOutput`."""
    options = InfillOptions.of_call(model, given)
    output = fill_parts(model, texts, options)
    if options.return_dict_in_generate:
        return output
    if options.num_answers == 1:
        return [[best.text for best, *_ in blanks] for blanks in output.fills]
    return [[[one.text for one in answers] for answers in blanks] for blanks in output.fills]


def _span_lengths(asked: Any, index: int, parts: Sequence[str], *, num_texts: int) -> list[int]:
    """Return the requested length of each span of a text."""
    num_spans = len(parts) - 1
    if isinstance(asked, list | tuple):
        if len(asked) == num_texts and all(isinstance(own, list | tuple) for own in asked):
            asked = asked[index]  # a list for each text
        if len(asked) != num_spans:
            raise ValueError(f"`max_new_tokens` has {len(asked)} numbers; text {index} has {num_spans} blanks.")
    lengths = list(asked) if isinstance(asked, list | tuple) else [asked] * num_spans
    for length in lengths:
        check_whole_number(length, name="max_new_tokens", least=1)
    return lengths


def _answers(
    tokenizer: PreTrainedTokenizerBase, spans: Sequence[Span], *, before: str, after: str, options: InfillOptions
) -> list[Fill]:
    """Return the different answers to one blank, the most probable first."""
    possible = [span for span in spans if span.is_possible]
    if not possible:
        healed = spans[0].healed
        if healed == Healed():
            raise ValueError("Every token of a fill was barred: the processors or penalties leave none. Relax them.")
        raise ValueError(
            f"No {spans[0].length} tokens begin with {healed.start!r} and end with {healed.end!r}, which token "
            "healing requires. Allow more tokens, or pass another `heal`."
        )
    fills: dict[str, Fill] = {}
    for span in possible:
        text, start = fill_text(tokenizer, span), 0
        if options.trim_overlap:
            start = len(text) - len(trim_overlap(text, before=before, after=""))
            text = trim_overlap(text, before=before, after=after)
        one = Fill(text, span.token_ids, span.logprobs)
        if options.return_dict_in_generate:
            one.tokens = token_texts(tokenizer, span, text, start=start)
        if text not in fills or one.logprob > fills[text].logprob:
            fills[text] = one
    return sorted(fills.values(), key=lambda one: -one.logprob)


# --- Spans of known lengths, in rounds of chunks.


@dataclass
class FilledText:
    """A text whose blanks were filled."""

    layout: SpanLayout  # before anything was filled
    spans: list[list[Span]]  # for each blank its answers
    embedding: torch.Tensor | None = None  # (hidden_size,): of the text with its blanks


def fill_texts(
    call: _InfillCall, texts: Sequence[Sequence[str]], *, span_lengths: Sequence[Sequence[int]]
) -> list[FilledText]:
    """Fill the blanks between the parts of texts with spans of given lengths.

    In the first round all answers of a text are decoded side by side in one row. In later rounds each answer has a row
    of its own, in which what was filled before is context.
    """
    model, options = call.model, call.options
    filled = _lay_out_texts(call, texts, span_lengths)
    spans = [span for text in filled for answers in text.spans for span in answers]
    chooser, rules = _chooser(call, spans), _stop_rules(call, filled, texts)
    embeds = bool(options.return_dict_in_generate) and call.tokenizer.eos_token_id is not None
    rows = [(text, SpanRow(text.layout, [s for answers in text.spans for s in answers])) for text in filled]
    is_first, settled = True, 0  # counted here: a bar that `disable_progress_bar` took away keeps no count
    num_batches = -(-len(rows) // options.batch_size)
    hide = is_progress_hidden(options.show_progress_bar, num_batches, least=PROGRESS_FROM_BATCHES)
    bar = tqdm(total=sum(span.length for span in spans), desc="Filling", unit="token", disable=hide)
    with bar, adapters_for(model, "infill"):  # the head may have an adapter, too
        while rows:
            by_length = sorted(range(len(rows)), key=lambda index: -rows[index][1].layout.length)
            for start in range(0, len(rows), options.batch_size):
                batch = [rows[index] for index in sorted(by_length[start : start + options.batch_size])]
                batch_rows, embed = [row for _, row in batch], is_first and embeds
                embeddings = decode(
                    model, batch_rows, chooser=chooser, rules=rules, max_steps=options.chunk_size, embed=embed
                )
                if embeddings is not None:
                    for (text, _), embedding in zip(batch, embeddings, strict=True):
                        text.embedding = embedding
                before, settled = settled, sum(map(_settled, spans))
                bar.update(settled - before)
            rows, is_first = [(text, row) for text in filled for row in _next_rows(text)], False
    return filled


def _lay_out_texts(
    call: _InfillCall, texts: Sequence[Sequence[str]], span_lengths: Sequence[Sequence[int]]
) -> list[FilledText]:
    """Lay out all texts, with empty spans numbered in the order of texts, blanks and answers."""
    answers, vocab_size = call.options.num_answers, call.model.config.vocab_size
    if answers > vocab_size:
        raise ValueError(
            f"`num_return_sequences` is {answers}; a vocabulary of {vocab_size} tokens begins at most as many "
            "different answers."
        )
    least, numbers, filled = call.options.generation_config.min_new_tokens or 0, count(), []
    for parts, lengths in zip(texts, span_lengths, strict=True):
        if min(lengths) < least:
            raise ValueError(f"`min_new_tokens` is {least}, more than the length of a fill ({min(lengths)}).")
        layout, spans = call.lay_out(parts, lengths, max_positions=call.max_positions), []
        for blank, length in enumerate(lengths):
            before = layout.token_ids[: layout.predictors[blank] + 1]
            before = [token for token in before if token not in call.special_ids]
            shared: dict[str, Any] = {"blank": blank, "before": before, "healed": layout.healed[blank]}
            ranks = range(answers)
            spans.append([Span(length=int(length), number=next(numbers), rank=rank, **shared) for rank in ranks])
        filled.append(FilledText(layout, spans))
    return filled


def _chooser(call: _InfillCall, spans: Sequence[Span]) -> TokenChooser:
    """Make what chooses the tokens of all spans of a call."""
    barred = _ids_outside_text(call)
    in_bytes = byte_tokens(call.tokenizer, call.model.config.vocab_size)
    return TokenChooser(
        call.options.generation_config,
        spans=spans,
        barred_ids=barred,
        pad_token_id=call.pad_token_id,
        end_of_span_id=call.tokenizer.eos_token_id if call.options.stop_at_end_of_span else None,
        processors=call.options.logits_processor,
        tokenizer=call.tokenizer,
        characters=CharacterRule(in_bytes, spans=spans, barred_ids=barred) if in_bytes.token_ids else None,
    )


def _stop_rules(call: _InfillCall, filled: Sequence[FilledText], texts: Sequence[Sequence[str]]) -> StopRules | None:
    """Make what ends spans early and streams their tokens, if anything does."""
    options, streamer = call.options, call.options.streamer
    stop_strings, criteria = options.stop_strings, options.all_criteria()
    if not (stop_strings or options.stop_at_sentence_end or criteria or streamer is not None):
        return None
    in_bytes = byte_tokens(call.tokenizer, call.model.config.vocab_size)
    rules = StopRules(call.tokenizer, in_bytes, stop_strings, options.stop_at_sentence_end, criteria)
    if streamer is not None:
        if len(texts) != 1:
            raise ValueError(f"`streamer` takes one text; {len(texts)} were given. Call once for each.")
        spans = [answers[0] for answers in filled[0].spans]
        rules.stream = SpanStream(streamer, filled[0].layout.parts, texts[0], spans)
    return rules


def _ids_outside_text(call: _InfillCall) -> list[int]:
    """Return the ids that no fill has: EOS, other special tokens, suppressed tokens, and ids without a token."""
    ids = {*call.special_ids, *(call.options.generation_config.suppress_tokens or ())}
    for config in (call.options.generation_config, call.model.generation_config, call.model.config):
        eos = getattr(config, "eos_token_id", None)
        ids.update(eos if isinstance(eos, list | tuple) else [] if eos is None else [eos])
    size = call.model.config.vocab_size
    beyond = range(min(len(call.tokenizer), size), size)
    tokens = call.tokenizer.convert_ids_to_tokens(list(beyond))
    ids.update(token_id for token_id, token in zip(beyond, tokens, strict=True) if token is None)
    return sorted(token_id for token_id in ids if 0 <= token_id < size)


def _next_rows(text: FilledText) -> list[SpanRow]:
    """Return a row for each answer whose spans are not all full; what was filled is its context."""
    rows = []
    for spans in zip(*text.spans, strict=True):  # one span of each blank
        growing = [span for span in spans if not span.is_full and span.is_possible]
        if growing:
            # An impossible answer must not be context: the first possible answer to its blank takes its place.
            seen = [
                span if span.is_possible else next((one for one in text.spans[span.blank] if one.is_possible), span)
                for span in spans
            ]
            rows.append(SpanRow(replace(text.layout, filled=[span.token_ids for span in seen]), growing))
    return rows


def _settled(span: Span) -> int:
    """Return how many tokens of a span are decided: all of them once nothing more comes."""
    return len(span.token_ids) if span.is_possible and not span.is_full else span.length


# --- Spans of unknown lengths. The score of a length is the mean log-probability of the fill's tokens, plus that of
# the first tokens after it when the filled text is read from left to right: a fill has to be likely in its place, and
# what follows has to be likely after it. Means, because sums would always prefer the shortest.


def fill_best_lengths(
    call: _InfillCall, texts: Sequence[Sequence[str]]
) -> tuple[list[FilledText], list[list[dict[int, float]]]]:
    """Try every candidate length greedily for all blanks of a text at once, then fill each blank at its best.

    Returns the filled texts, and per text and blank the score of each candidate length.
    """
    options = call.options
    fitting = [_fitting(call, parts) for parts in texts]
    trials = fill_texts(
        replace(call, options=options.greedy()),
        [parts for parts, lengths in zip(texts, fitting, strict=True) for _ in lengths],
        span_lengths=[
            [length] * (len(parts) - 1) for parts, lengths in zip(texts, fitting, strict=True) for length in lengths
        ],
    )
    scored = iter(zip(trials, _length_scores(call, trials), strict=True))
    tables: list[list[dict[int, float]]] = []
    best: list[FilledText] = []
    for parts, lengths in zip(texts, fitting, strict=True):
        own = [next(scored) for _ in lengths]
        tables.append(
            [{n: scores[b] for n, (_, scores) in zip(lengths, own, strict=True)} for b in range(len(parts) - 1)]
        )
        best.append(max(own, key=lambda trial: trial[1][0])[0])
    is_final = options.num_answers == 1 and not options.generation_config.do_sample
    if is_final and all(len(table) == 1 for table in tables):
        return best, tables
    chosen = [[max(table, key=table.__getitem__) for table in blanks] for blanks in tables]
    return fill_texts(call, texts, span_lengths=chosen), tables


def _fitting(call: _InfillCall, parts: Sequence[str]) -> list[int]:
    """Return the candidates that fit the context; if none does, the shortest, which is then refused."""
    candidates, num_spans = call.options.candidate_lengths(end_of_span=call.end_of_span), len(parts) - 1
    layout = call.lay_out(parts, [1] * num_spans, max_positions=sys.maxsize)
    capacity = call.max_positions - len(layout.token_ids)
    multiple = call.end_of_span or 1
    return [one for one in candidates if num_spans * round_up(one, multiple) <= capacity] or [min(candidates)]


def _length_scores(call: _InfillCall, texts: Sequence[FilledText]) -> list[list[float]]:
    """Return the score of each blank of texts with one answer to each."""
    scores: list[list[float]] = [[] for _ in texts]
    batch_size = call.options.batch_size
    by_length = sorted(range(len(texts)), key=lambda index: -texts[index].layout.length)
    for start in range(0, len(texts), batch_size):
        batch = by_length[start : start + batch_size]
        joins = _join_logprobs(call, [texts[index] for index in batch])
        for index, of_text in zip(batch, joins, strict=True):
            for (span,), join in zip(texts[index].spans, of_text, strict=True):
                has_text = span.is_possible and len(span.logprobs) > 0
                mean = sum(span.logprobs) / len(span.logprobs) if has_text else -torch.inf
                scores[index].append(mean + join)
    return scores


def _join_logprobs(call: _InfillCall, texts: Sequence[FilledText]) -> list[list[float]]:
    """Return the causal mean log-probability of the first tokens after each span; 0 at the end of a text."""
    rows: list[list[int]] = []
    joins: list[list[range]] = []
    for text in texts:
        ids = list(text.layout.parts[0])
        after = []
        for (span,), part in zip(text.spans, text.layout.parts[1:], strict=True):
            ids += span.token_ids
            after.append(range(len(ids), len(ids) + min(JOIN_TOKENS, len(part))))
            ids += part
        rows.append(ids)
        joins.append(after)
    batch = to_device(call.model, pad_token_rows(rows, pad_token_id=call.pad_token_id))
    targets = [
        (0, row, index - 1, rows[row][index])
        for row, after in enumerate(joins)
        for indices in after
        for index in indices
    ]
    remaining = iter(target_logprobs(call.model, batch, targets, mode="causal"))
    return [[sum(next(remaining) for _ in indices) / max(len(indices), 1) for indices in after] for after in joins]
