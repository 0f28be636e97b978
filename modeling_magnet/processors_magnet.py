"""Logits processors of a generation config: transformers' own classes, in the order of `generate`."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from .generation_fields_magnet import watermark_of

# What generate uses where neither the caller nor the checkpoint says anything.
DEFAULT_TOP_K = 50


def text_processors(config: GenerationConfig) -> LogitsProcessorList:
    """Build the processors that look at the tokens of a span and in front of it."""
    processors = LogitsProcessorList()
    if config.sequence_bias is not None:
        processors.append(SequenceBiasLogitsProcessor(config.sequence_bias))
    if config.repetition_penalty not in (None, 1.0):
        processors.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.bad_words_ids is not None:
        processors.append(NoBadWordsLogitsProcessor(config.bad_words_ids))
    return processors


class PlaceProcessors:
    """The processors that depend on how many tokens a span has, whatever stands in front of it.

    Args:
        config (`GenerationConfig`): `begin_suppress_tokens` and `exponential_decay_length_penalty` count.
        end_of_span_id (`int`, *optional*): Token that ends a span, which the penalty makes likelier.
    """

    def __init__(self, config: GenerationConfig, *, end_of_span_id: int | None) -> None:
        self.config, self.end_of_span_id = config, end_of_span_id
        self.processors: LogitsProcessorList | None = None

    def __call__(self, scores: torch.Tensor, *, indices: Sequence[int]) -> torch.Tensor:
        """Process the scores `(N, V)` of the tokens `indices` of their spans."""
        if self.processors is None:
            self.processors = self._build(scores.device)
        if not self.processors:
            return scores
        for index in sorted(set(indices)):
            rows = [row for row, own in enumerate(indices) if own == index]
            own_tokens = torch.zeros(len(rows), index, dtype=torch.long, device=scores.device)  # only counted
            scores[rows] = self.processors(own_tokens, scores[rows])  # type: ignore[arg-type]
        return scores

    def _build(self, device: torch.device) -> LogitsProcessorList:
        processors = LogitsProcessorList()
        decay = self.config.exponential_decay_length_penalty
        if decay is not None and self.end_of_span_id is not None:
            processors.append(ExponentialDecayLengthPenalty(tuple(decay), self.end_of_span_id, input_ids_seq_length=0))
        if self.config.begin_suppress_tokens:
            tokens = list(self.config.begin_suppress_tokens)
            processors.append(SuppressTokensAtBeginLogitsProcessor(tokens, begin_index=0, device=str(device)))
        return processors


def warpers(config: GenerationConfig) -> LogitsProcessorList:
    """Build the processors that shape the distribution to draw from; none without sampling."""
    if not config.do_sample:
        return LogitsProcessorList()
    top_k = DEFAULT_TOP_K if config.top_k is None else config.top_k
    chosen: list[Any] = [
        TemperatureLogitsWarper(config.temperature) if config.temperature not in (None, 1.0) else None,
        TopHLogitsWarper(config.top_h) if config.top_h is not None else None,
        TopKLogitsWarper(top_k) if top_k > 0 else None,
        TopPLogitsWarper(config.top_p) if config.top_p not in (None, 1.0) else None,
        MinPLogitsWarper(config.min_p) if config.min_p is not None else None,
        TypicalLogitsWarper(config.typical_p) if config.typical_p not in (None, 1.0) else None,
        EpsilonLogitsWarper(config.epsilon_cutoff) if config.epsilon_cutoff else None,
        EtaLogitsWarper(config.eta_cutoff) if config.eta_cutoff else None,
    ]
    return LogitsProcessorList([warper for warper in chosen if warper is not None])


def last_processors(config: GenerationConfig, *, vocab_size: int, device: torch.device) -> LogitsProcessorList:
    """Build the processors that come last: the watermark, then the normalisation."""
    processors = LogitsProcessorList()
    watermark = config.watermarking_config
    if watermark is not None:
        watermark = watermark_of(watermark) if isinstance(watermark, dict) else watermark
        processors.append(watermark.construct_processor(vocab_size, device))
    if config.renormalize_logits:
        processors.append(LogitNormalization())
    return processors


def remove_invalid(scores: torch.Tensor) -> torch.Tensor:
    """Replace NaN and infinities, as `remove_invalid_values` asks for."""
    return InfNanRemoveLogitsProcessor()(torch.empty(0, dtype=torch.long), scores)


__all__ = ["DEFAULT_TOP_K", "PlaceProcessors", "last_processors", "remove_invalid", "text_processors", "warpers"]
