"""Which token a distribution gives: the most likely one, or a draw from a generator that belongs to one span."""

import copy
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from transformers import CompileConfig, GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .batching_magnet import pad_token_rows
from .drawing_magnet import draw_tokens
from .gaps_magnet import Seam
from .seams_magnet import SeamHealer
from .spans_magnet import Span

# Scores that exist at once, in float32: those of 64 spans with a vocabulary of 262,144 on a CPU, of 256 elsewhere.
_CPU_SCORES, _DEVICE_SCORES = 2**24, 2**26
# What generate uses where neither the caller nor the checkpoint says anything.
DEFAULT_TOP_K = 50
SUPPORTED = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "num_return_sequences",
    "stop_strings",
    "cache_implementation",
    "compile_config",
)
# What an option is, where it is given: transformers looks at some of their ranges, and at few of their types.
_KINDS: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("do_sample", (bool,), "true or false"),
    *((name, (Integral,), "a whole number") for name in ("top_k", "no_repeat_ngram_size", "num_return_sequences")),
    *((name, (Real,), "a number") for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
    ("stop_strings", (str, list, tuple), "a string or a list of strings"),
    ("cache_implementation", (str,), "'dynamic' or 'static'"),
    ("compile_config", (CompileConfig,), "a CompileConfig"),
)


def merge_generation_config(base: GenerationConfig, overrides: dict[str, Any]) -> GenerationConfig:
    """The checkpoint's or caller's generation config with the call's own arguments on top.

    Raises:
        ValueError: an argument that filling a gap does not have or that is of another kind, or a number of answers
            below one.
    """
    unknown = sorted(set(overrides) - set(SUPPORTED))
    for name, kinds, expected in _KINDS:
        value = overrides.get(name)
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise ValueError(f"`{name}` is {value!r:.60}; expected {expected}.")
    if unknown:
        raise ValueError(f"`infill` does not know {unknown}. It takes {', '.join(SUPPORTED)} of GenerationConfig.")
    if base.num_beams not in (None, 1):
        raise ValueError(f"`num_beams={base.num_beams}` in the generation config: a gap is not filled by beam search.")
    cache = overrides.get("cache_implementation")
    if cache not in (None, "dynamic", "static"):  # what a checkpoint prefers for `generate` is no concern of ours
        raise ValueError(f"`cache_implementation` is {cache!r}; `infill` has 'dynamic' and 'static'.")
    if overrides.get("compile_config") is not None and (cache or base.cache_implementation) != "static":
        raise ValueError("`compile_config` needs steps of one shape. Pass `cache_implementation='static'` with it.")
    config = copy.deepcopy(base)
    # Its own check allows several answers for sampling and beams alone.
    config.update(**{name: value for name, value in overrides.items() if name != "num_return_sequences"})
    answers = config.num_return_sequences = overrides.get("num_return_sequences", config.num_return_sequences)
    if answers is not None and (not isinstance(answers, Integral) or answers < 1):
        raise ValueError(f"`num_return_sequences` is {answers!r}; expected a whole number of at least 1.")
    return config


class Choice(NamedTuple):
    """One token for each of N spans."""

    tokens: torch.Tensor  # (N,)
    logprobs: torch.Tensor  # (N,): under the model's own distribution, before anything is barred or warped
    is_possible: torch.Tensor  # (N,): false where everything was barred, and the token means nothing
    is_nan: torch.Tensor  # (): whether the model gave something that is no number
    scores: torch.Tensor | None = None  # (N, V): what the token was chosen by, where it was asked for

    @classmethod
    def join(cls, parts: Sequence["Choice"]) -> "Choice":
        """The choices of several groups of spans as one, without their scores."""
        if len(parts) == 1:
            return parts[0]
        tokens, logprobs, is_possible = (torch.cat(column) for column in list(zip(*parts, strict=True))[:3])
        return cls(tokens, logprobs, is_possible, torch.stack([part.is_nan for part in parts]).any())


class TokenChooser:
    """Greedy or sampled choice, with one stream of random numbers per span.

    The seeds of the streams are drawn from torch's global generator in the order of the spans, before anything is
    batched: after `torch.manual_seed`, a span gets the same sample alone or in any batch, and one call with many texts
    gives what as many calls with one text give.

    Args:
        config (`GenerationConfig`): `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty` and
            `no_repeat_ngram_size` count.
        spans (`Sequence[Span]`): All spans of the call, in the order of their streams.
        barred_ids (`Sequence[int]`): Tokens that never stand in a fill.
        pad_token_id (`int`): Pads what processors are shown; a barred one, so that penalties for it change nothing.
        end_of_span_id (`int`, *optional*): Token that may end a span, but not be its first. A sample ends where it
            is drawn. A greedy span ends where the model gives more than half of a chance that it has ended by then,
            the median of its length: the end is hardly ever the likeliest token of a single step.
        processors (`LogitsProcessorList`, *optional*): As `generate` takes them, applied in front of the config's.
            Their rows are the spans of a batch, see `TokenChooser.left_contexts`.
        healer (`SeamHealer`, *optional*): Says what fits a healed seam.
    """

    def __init__(
        self,
        config: GenerationConfig,
        *,
        spans: Sequence[Span],
        barred_ids: Sequence[int],
        pad_token_id: int = 0,
        end_of_span_id: int | None = None,
        processors: LogitsProcessorList | None = None,
        healer: SeamHealer | None = None,
    ) -> None:
        self.barred = torch.tensor([i for i in barred_ids if i != end_of_span_id], dtype=torch.long)
        self.pad_token_id = pad_token_id
        self.end_of_span_id = end_of_span_id
        self.goes_on = [1.0] * len(spans)  # by stream, the model's chance that the span has not ended
        self.healer = healer if any(span.seam != Seam() for span in spans) else None
        self.spells = any(len(span.seam.start) > 1 for span in spans)
        self.processors = LogitsProcessorList(processors or [])
        if config.repetition_penalty not in (None, 1.0):
            self.processors.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
        if config.no_repeat_ngram_size:
            self.processors.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
        self.uniforms: list[torch.Tensor] | None = None
        self.warpers = LogitsProcessorList()
        if not config.do_sample:
            return
        if config.temperature not in (None, 1.0):
            self.warpers.append(TemperatureLogitsWarper(config.temperature))
        top_k = DEFAULT_TOP_K if config.top_k is None else config.top_k
        if top_k > 0:
            self.warpers.append(TopKLogitsWarper(top_k))
        if config.top_p not in (None, 1.0):
            self.warpers.append(TopPLogitsWarper(config.top_p))
        if config.min_p is not None:
            self.warpers.append(MinPLogitsWarper(config.min_p))
        self.uniforms = []
        for span in spans:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            self.uniforms.append(torch.rand(span.gap_length, generator=generator, dtype=torch.float64))

    @property
    def reads_tokens(self) -> bool:
        """Whether a choice depends on what the spans hold."""
        return bool(self.processors) or self.spells

    def left_contexts(self, spans: Sequence[Span]) -> torch.Tensor:
        """What `generate` would call the input ids of each span: the tokens in front of its gap, then its own.

        Returns:
            `torch.LongTensor` of shape `(N, longest)`, padded on the left.
        """
        rows = [[*span.before, *span.token_ids] or [self.pad_token_id] for span in spans]
        return pad_token_rows(rows, pad_token_id=self.pad_token_id, padding_side="left")["input_ids"]

    def spans_at_once(self, num_spans: int, *, vocab_size: int, device: torch.device) -> int:
        """How many of some spans are to be chosen for at once, so that the memory for their scores is bounded.

        Args:
            num_spans (`int`): Spans that a token is chosen for.
            vocab_size (`int`): V.
            device (`torch.device`): Where the scores are made.
        """
        if self.processors:
            return num_spans  # they may remember rows by their number
        most = max(1, (_CPU_SCORES if device.type == "cpu" else _DEVICE_SCORES) // vocab_size)
        return -(-num_spans // -(-num_spans // most))  # groups of one size

    def choose(
        self, logits: torch.Tensor, spans: Sequence[Span], *, indices: Sequence[int], with_scores: bool = False
    ) -> Choice:
        """One token for each of some spans; beside the logits there is one copy of them in float32.

        Args:
            logits (`torch.FloatTensor` of shape `(N, V)`): One row per span.
            spans (`Sequence[Span]`): The spans.
            indices (`Sequence[int]`): Which token of its gap each of them gets, from 0.
            with_scores (`bool`, defaults to `False`): Whether `Choice.scores` is wanted.
        """
        # The one copy first becomes exp(logit - highest), for the model's own distribution, and then the scores.
        scores = torch.empty(logits.shape, dtype=torch.float32, device=logits.device).copy_(logits)
        highest = scores.amax(-1, keepdim=True)
        log_total = scores.sub_(highest).exp_().sum(-1, keepdim=True).log_()  # (N, 1), beyond the highest
        scores.copy_(logits)
        if self.processors:
            scores = self.processors(self.left_contexts(spans).to(scores.device), scores)  # type: ignore[arg-type]
        end_chances = None
        if self.end_of_span_id is not None and self.uniforms is None:
            end_chances = (scores[:, self.end_of_span_id] - _log_totals(scores)).exp()
        if self.barred.device != scores.device:
            self.barred = self.barred.to(scores.device)  # once, and not at every step
        scores.index_fill_(1, self.barred, -torch.inf)
        if self.end_of_span_id is not None:
            never = [row for row, index in enumerate(indices) if index == 0 or self.uniforms is None]
            scores[never, self.end_of_span_id] = -torch.inf
        if self.healer is not None:
            for row, (span, index) in enumerate(zip(spans, indices, strict=True)):
                fits = self.healer.fits(span, index=index)
                if fits is not None:
                    scores[row].masked_fill_(~fits.to(scores.device), -torch.inf)
        if self.uniforms is None:
            tokens = self._most_likely(scores, spans, indices=indices)
            if end_chances is not None:
                tokens = self._end_at_median(tokens, end_chances, spans, indices=indices)
        else:
            # A span that is full stays beside the others where processors know rows by number; its token is not used.
            places = (min(index, span.gap_length - 1) for span, index in zip(spans, indices, strict=True))
            drawn = [self.uniforms[span.stream][place] for span, place in zip(spans, places, strict=True)]
            tokens = draw_tokens(scores, torch.stack(drawn).to(scores.device), warpers=self.warpers)
            if with_scores:
                for part in scores.split(1):
                    part.copy_(self.warpers(torch.empty(0, dtype=torch.long), part))  # type: ignore[arg-type]
        is_possible = scores.gather(-1, tokens[:, None])[:, 0] > -torch.inf
        if self.end_of_span_id is not None:
            is_possible |= tokens == self.end_of_span_id
        logprobs = logits.gather(-1, tokens[:, None]).float() - highest - log_total
        is_nan = ~log_total.isfinite().all()
        return Choice(tokens, logprobs[:, 0], is_possible, is_nan, scores if with_scores else None)

    def _end_at_median(
        self, tokens: torch.Tensor, end_chances: torch.Tensor, spans: Sequence[Span], *, indices: Sequence[int]
    ) -> torch.Tensor:
        """The tokens, or the end where the chance that a span still goes on falls below one half."""
        chosen = tokens.clone()
        for row, (span, index, chance) in enumerate(zip(spans, indices, end_chances.tolist(), strict=True)):
            if index > 0:
                self.goes_on[span.stream] *= 1.0 - chance
            if self.goes_on[span.stream] < 0.5:
                chosen[row] = int(self.end_of_span_id or 0)
        return chosen

    def _most_likely(self, scores: torch.Tensor, spans: Sequence[Span], *, indices: Sequence[int]) -> torch.Tensor:
        """The likeliest tokens; where several answers to one gap begin, each the next likely one."""
        ranks = [span.rank if index == 0 else 0 for span, index in zip(spans, indices, strict=True)]
        if not any(ranks):
            return scores.argmax(-1)
        ordered = scores.topk(max(ranks) + 1, dim=-1).indices  # (N, ranks)
        return ordered.gather(-1, torch.tensor(ranks, device=scores.device)[:, None])[:, 0]


def _log_totals(scores: torch.Tensor) -> torch.Tensor:
    """Logarithms `(N,)` of the sums of exp(scores), a few rows at a time: this makes a copy of them."""
    rows = max(1, _CPU_SCORES // scores.shape[-1])
    return torch.cat([part.logsumexp(-1) for part in scores.split(rows)])


__all__ = ["Choice", "TokenChooser", "merge_generation_config"]
