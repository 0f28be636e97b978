"""Which token a distribution gives: the most likely one, or a draw from a generator that belongs to one span."""

import copy
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList

from .characters_magnet import CharacterRule
from .drawing_magnet import draw_tokens
from .gaps_magnet import Seam
from .generation_fields_magnet import REFUSED, SUPPORTED, check_config, check_kinds, watermark_of
from .processors_magnet import PlaceProcessors, last_processors, remove_invalid, text_processors, warpers
from .seams_magnet import SeamHealer
from .spans_magnet import Span
from .tokenization_magnet import pad_token_rows

# Scores that exist at once, in float32: those of 64 spans with a vocabulary of 262,144 on a CPU, of 256 elsewhere.
_CPU_SCORES, _DEVICE_SCORES = 2**24, 2**26
# Warpers do not look at the tokens so far.
_NO_IDS = torch.empty(0, dtype=torch.long)


def merge_generation_config(base: GenerationConfig, overrides: dict[str, Any]) -> GenerationConfig:
    """The checkpoint's or caller's generation config with the call's own arguments on top.

    Raises:
        ValueError: an argument that filling a gap does not have or that is of another kind, a field of the config that
            a fill cannot have, or a number of answers below one.
    """
    unknown = sorted(set(overrides) - set(SUPPORTED))
    check_kinds(overrides)
    if unknown:
        remedies = "".join(f" Instead of `{name}`: {REFUSED[name][1]}." for name in unknown if name in REFUSED)
        raise ValueError(
            f"`infill` does not know {unknown}. It takes {', '.join(SUPPORTED)} of GenerationConfig.{remedies}"
        )
    check_config(base)
    if isinstance(watermark := overrides.get("watermarking_config"), dict):
        overrides = {**overrides, "watermarking_config": watermark_of(watermark)}
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
    check_config(config)
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
        config (`GenerationConfig`): What `generation_fields_magnet` lists as supported counts.
        spans (`Sequence[Span]`): All spans of the call, in the order of their streams.
        barred_ids (`Sequence[int]`): Tokens that never stand in a fill, `suppress_tokens` of the config among them.
        pad_token_id (`int`): Pads what processors are shown; a barred one, so that penalties for it change nothing.
        end_of_span_id (`int`, *optional*): Token that may end a span, but not be its first. A sample ends where it
            is drawn. A greedy span ends where the model gives more than half of a chance that it has ended by then,
            the median of its length: the end is hardly ever the likeliest token of a single step.
        processors (`LogitsProcessorList`, *optional*): As `generate` takes them, applied in front of the config's.
            Their rows are the spans of a batch, see `TokenChooser.left_contexts`.
        healer (`SeamHealer`, *optional*): Says what fits a healed seam.
        characters (`CharacterRule`, *optional*): Keeps spans on whole characters.
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
        characters: CharacterRule | None = None,
    ) -> None:
        self.never_ends = end_of_span_id in (config.suppress_tokens or ())
        barred = [one for one in barred_ids if one != end_of_span_id or self.never_ends]
        self.barred = torch.tensor(barred, dtype=torch.long)
        self.characters = characters
        self.least = max(config.min_new_tokens or 0, 1)  # tokens before a span may end
        self.pad_token_id = pad_token_id
        self.end_of_span_id = end_of_span_id
        self.goes_on = [1.0] * len(spans)  # by stream, the model's chance that the span has not ended
        self.healer = healer if any(span.seam != Seam() for span in spans) else None
        self.spells = any(len(span.seam.start) > 1 for span in spans)
        self.remembers_rows = bool(processors)  # the caller's; our own look at each span by itself
        self.processors = LogitsProcessorList(processors or [])
        self.processors += text_processors(config)
        self.place_processors = PlaceProcessors(config, end_of_span_id=end_of_span_id)
        self.config = config
        self.last: LogitsProcessorList | None = None  # built once the device is known
        self.uniforms: list[torch.Tensor] | None = None
        self.warpers = warpers(config)
        if not config.do_sample:
            return
        self.uniforms = []
        for span in spans:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            self.uniforms.append(torch.rand(span.gap_length, generator=generator, dtype=torch.float64))

    @property
    def reads_tokens(self) -> bool:
        """Whether a choice depends on what the spans hold."""
        return bool(self.processors) or self.spells or self.config.watermarking_config is not None

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
        if self.remembers_rows:
            return num_spans
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
        if self.config.remove_invalid_values:
            logits = remove_invalid(logits)
        # The one copy first becomes exp(logit - highest), for the model's own distribution, and then the scores.
        scores = torch.empty(logits.shape, dtype=torch.float32, device=logits.device).copy_(logits)
        highest = scores.amax(-1, keepdim=True)
        log_total = scores.sub_(highest).exp_().sum(-1, keepdim=True).log_()  # (N, 1), beyond the highest
        scores.copy_(logits)
        if self.processors:
            scores = self.processors(self.left_contexts(spans).to(scores.device), scores)  # type: ignore[arg-type]
        scores = self.place_processors(scores, indices=indices)
        end_chances = None
        if self.end_of_span_id is not None and self.uniforms is None and not self.never_ends:
            end_chances = (scores[:, self.end_of_span_id] - _log_totals(scores)).exp()
        if self.barred.device != scores.device:
            self.barred = self.barred.to(scores.device)  # once, and not at every step
        scores.index_fill_(1, self.barred, -torch.inf)
        if self.end_of_span_id is not None:
            never = [row for row, index in enumerate(indices) if index < self.least or self.uniforms is None]
            scores[never, self.end_of_span_id] = -torch.inf
        if self.healer is not None:
            for row, (span, index) in enumerate(zip(spans, indices, strict=True)):
                fits = self.healer.fits(span, index=index)
                if fits is not None:
                    scores[row].masked_fill_(~fits.to(scores.device), -torch.inf)
        if self.characters is not None:
            self.characters.bar(scores, spans, indices=indices)
        if self.uniforms is None:
            scores = self._process_last(scores, spans)
            tokens = likeliest = self._most_likely(scores, spans, indices=indices)
            if end_chances is not None:
                tokens = self._end_at_median(tokens, end_chances, spans, indices=indices)
            has_ended = tokens != likeliest
        else:
            warpers = self.warpers
            if self.config.watermarking_config is not None or self.config.renormalize_logits:
                # These see what the cuts have left of the whole vocabulary.
                scores = self._process_last(warpers(_NO_IDS, scores), spans)  # type: ignore[arg-type]
                warpers = LogitsProcessorList()
            # A span that is full stays beside the others where processors know rows by number; its token is not used.
            places = (min(index, span.gap_length - 1) for span, index in zip(spans, indices, strict=True))
            drawn = [self.uniforms[span.stream][place] for span, place in zip(spans, places, strict=True)]
            tokens = draw_tokens(scores, torch.stack(drawn).to(scores.device), warpers=warpers)
            has_ended = torch.zeros_like(tokens, dtype=torch.bool)
            if with_scores:
                for part in scores.split(1):
                    part.copy_(warpers(_NO_IDS, part))  # type: ignore[arg-type]
        is_possible = scores.gather(-1, tokens[:, None])[:, 0] > -torch.inf
        is_possible |= has_ended  # which is barred as a token, for it is chosen otherwise
        if self.characters is not None:
            self.characters.advance(tokens, spans)
        logprobs = logits.gather(-1, tokens[:, None]).float() - highest - log_total
        is_nan = ~log_total.isfinite().all()
        return Choice(tokens, logprobs[:, 0], is_possible, is_nan, scores if with_scores else None)

    def _end_at_median(
        self, tokens: torch.Tensor, end_chances: torch.Tensor, spans: Sequence[Span], *, indices: Sequence[int]
    ) -> torch.Tensor:
        """The tokens, or the end where the chance that a span still goes on falls below one half."""
        chosen = tokens.clone()
        may_end = [True] * len(spans) if self.characters is None else self.characters.are_whole(spans)
        for row, (span, index, chance) in enumerate(zip(spans, indices, end_chances.tolist(), strict=True)):
            if index >= self.least:
                self.goes_on[span.stream] *= 1.0 - chance
            if self.goes_on[span.stream] < 0.5 and may_end[row]:
                chosen[row] = int(self.end_of_span_id or 0)
        return chosen

    def _process_last(self, scores: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
        """Apply what comes after all that shapes a distribution: a watermark, a normalisation."""
        if self.last is None:
            self.last = last_processors(self.config, vocab_size=scores.shape[-1], device=scores.device)
        if not self.last:
            return scores
        return self.last(self.left_contexts(spans).to(scores.device), scores)  # type: ignore[arg-type]

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
