"""Choose the next token of each span, greedily or by sampling with a random generator per span.

Shapes: N spans, V vocabulary, P tokens that begin or end inside a character, M tokens that remain after truncation.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from .spans_magnet import Span, decode_fill
from .spelling_magnet import INVALID_STATE, ByteTokens, fitting_tokens
from .tokenization_magnet import pad_token_rows

# Scores held at once, in float32: those of 64 spans with a vocabulary of 262,144 on a CPU, and of 256 elsewhere.
_CPU_SCORES, _DEVICE_SCORES = 2**24, 2**26
# Scores of the rows that are sampled at once. A flat row needs up to 40 bytes per token besides its four for a score.
_CPU_DRAWN, _DEVICE_DRAWN = 2**20, 2**24
# The default of `generate` if neither the caller nor the checkpoint sets `top_k`.
DEFAULT_TOP_K = 50
# Top-p first tries this many of the most likely tokens; only flatter rows are sorted completely.
_NUCLEUS = (1024, 16_384)
# Warpers do not read input ids.
_NO_IDS = torch.empty(0, dtype=torch.long)


# --- Which tokens may come next: those that keep characters whole, and those that spell a healed context.


class CharacterRule:
    """Ensures that the spans of a call consist of whole characters.

    A token that begins a character is allowed only if tokens that are not excluded can complete it within the span.
    Inside a character, only tokens that continue it are allowed. The states stay on the device of the scores, so no
    step waits for the device.
    """

    def __init__(self, known: ByteTokens, *, spans: Sequence[Span], excluded_ids: Sequence[int]) -> None:
        excluded = {*excluded_ids}
        usable = torch.tensor([token_id not in excluded for token_id in known.token_ids], dtype=torch.bool)
        self.token_ids = torch.tensor(known.token_ids, dtype=torch.long)
        self.following = known.following
        # The fewest tokens that complete a character from each state, by relaxation: iteration k adds the states that
        # need k tokens. Three suffice: a character has at most three more bytes, and each token reads at least one.
        fewest = torch.full((INVALID_STATE + 1,), 255, dtype=torch.long)
        fewest[0] = 0
        for _ in range(3):
            to_go = fewest[self.following[1:INVALID_STATE, usable]]  # (7, P)
            if to_go.shape[1]:
                fewest[1:INVALID_STATE] = torch.minimum(fewest[1:INVALID_STATE], 1 + to_go.min(dim=1).values)
        self.to_go = fewest[self.following]  # (9, P)
        self.states = torch.zeros(len(spans), dtype=torch.long)
        # Index of the last token that may complete a character: in a healed span, one more token spells the end.
        self.last = torch.zeros(len(spans), dtype=torch.long)
        for span in spans:
            self.last[span.number] = span.length - (2 if span.healed.end else 1)
        self._index: tuple[list[int], torch.Tensor] | None = None

    def to(self, device: torch.device) -> None:
        """Move the states and tables to the device of the scores."""
        for name in ("states", "following", "token_ids", "to_go", "last"):
            setattr(self, name, getattr(self, name).to(device))
        self._index = None

    def exclude(self, scores: torch.Tensor, spans: Sequence[Span], *, indices: Sequence[int]) -> None:
        """Set the scores `(N, V)` of tokens that break a character to minus infinity, in place."""
        numbers = self._numbers(spans)
        states = self.states[numbers]
        index = indices[0] if len({*indices}) == 1 else torch.tensor(indices, device=scores.device)
        remaining = (self.last[numbers] - index).clamp(min=0)
        breaks = self.to_go[states] > remaining[:, None]  # (N, P)
        of_bytes = scores[:, self.token_ids].masked_fill(breaks, -torch.inf)
        scores.masked_fill_((states != 0)[:, None], -torch.inf)
        scores[:, self.token_ids] = of_bytes

    def advance(self, tokens: torch.Tensor, spans: Sequence[Span]) -> None:
        """Update the states with the chosen tokens `(N,)`."""
        numbers = self._numbers(spans)
        column = torch.searchsorted(self.token_ids, tokens).clamp(max=len(self.token_ids) - 1)
        following = self.following[self.states[numbers], column]
        is_byte = self.token_ids[column] == tokens
        self.states[numbers] = torch.where(is_byte & (following != INVALID_STATE), following, 0)

    def are_whole(self, spans: Sequence[Span]) -> list[bool]:
        """Return whether each span is between characters, which waits for the device."""
        return [state == 0 for state in self.states[self._numbers(spans)].tolist()]

    def _numbers(self, spans: Sequence[Span]) -> torch.Tensor:
        """Return the numbers of spans on the device; the last result is cached."""
        numbers = [span.number for span in spans]
        if self._index is None or self._index[0] != numbers:
            self._index = numbers, torch.tensor(numbers, device=self.states.device)
        return self._index[1]


def healing_tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, span: Span, *, index: int
) -> torch.Tensor | None:
    """Return a mask `(V,)` of the tokens that may come next in a healed span, or `None` for any token.

    The tokens of the span are read only if its healed start has more than one character.
    """
    rest = span.healed.start if index == 0 else ""
    if index > 0 and len(span.healed.start) > 1:
        rest = span.healed.start[len(decode_fill(tokenizer, span.before, span.token_ids)) :]
    remaining = span.length - 1 - index  # tokens after this one
    end = span.healed.end if remaining == 0 else ""
    if not rest and not end:
        return None
    # The last token spells the healed end, so another token must complete the healed start before it.
    may_go_on = remaining > (1 if span.healed.end else 0)
    spelling = {"rest": rest, "end": end, "is_last": remaining == 0, "may_go_on": may_go_on}
    return fitting_tokens(tokenizer, vocab_size, len(tokenizer), **spelling)


# --- Logits processors of a generation config: the classes of transformers in the order of `generate`.


def text_processors(config: GenerationConfig) -> LogitsProcessorList:
    """Build the processors that read the tokens of a span and the tokens before it."""
    penalty, ngram_size = config.repetition_penalty, config.no_repeat_ngram_size
    chosen: list[Any] = [
        SequenceBiasLogitsProcessor(config.sequence_bias) if config.sequence_bias is not None else None,
        RepetitionPenaltyLogitsProcessor(penalty) if penalty not in (None, 1.0) else None,
        NoRepeatNGramLogitsProcessor(ngram_size) if ngram_size else None,
        NoBadWordsLogitsProcessor(config.bad_words_ids) if config.bad_words_ids is not None else None,
    ]
    return LogitsProcessorList(filter(None, chosen))


def warpers(config: GenerationConfig) -> LogitsProcessorList:
    """Build the processors that change the distribution to sample from; none without sampling."""
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
    return LogitsProcessorList(filter(None, chosen))


# --- Sampling. A few rows at a time bound the memory, and each row is computed by itself, so that a sample does not
# depend on other rows. The tokens that remain after truncation are gathered first: top-k leaves about 50 of 262,144.


def draw_tokens(scores: torch.Tensor, uniforms: torch.Tensor, *, warpers: LogitsProcessorList) -> torch.Tensor:
    """Sample a token `(N,)` for each row by inverting its cumulative distribution at the number of the row.

    The scores `(N, V)` are unnormalized and are not modified; the uniforms `(N,)` are from [0, 1). A row without a
    possible token gets an arbitrary one.
    """
    rows = max(1, (_CPU_DRAWN if scores.device.type == "cpu" else _DEVICE_DRAWN) // scores.shape[-1])
    groups = zip(scores.split(rows), uniforms.split(rows), strict=True)
    return torch.cat([_draw(group, uniforms_of_group, warpers=warpers) for group, uniforms_of_group in groups])


def _draw(scores: torch.Tensor, uniforms: torch.Tensor, *, warpers: LogitsProcessorList) -> torch.Tensor:
    """Sample tokens for a few rows, with sums in double precision and in the order of the vocabulary."""
    ids: torch.Tensor | None = None  # (N, M) after tokens have been gathered
    for warper in warpers:
        if ids is None and isinstance(warper, TopKLogitsWarper):
            scores, ids = _gather(scores, scores.topk(min(warper.top_k, scores.shape[-1])).values[:, -1:])
        elif isinstance(warper, TopPLogitsWarper):
            scores, ids = _nucleus(scores, ids, share=warper.top_p)
        else:
            scores = warper(_NO_IDS, scores)
    cumulative = torch.softmax(scores, dim=-1, dtype=torch.float64).cumsum(-1)
    # Scale by the last sum, so that rounding cannot put the number beyond the last token.
    columns = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)
    columns = columns.clamp(max=scores.shape[-1] - 1)  # the index of a NaN row is out of range
    return (columns if ids is None else ids.gather(-1, columns))[:, 0]


def _gather(scores: torch.Tensor, minimum: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the possible tokens of each row `(N, V)` that score at least `minimum` `(N, 1)`, including ties.

    Returns scores and tokens `(N, M)` in the order of the vocabulary, with -inf before shorter rows.
    """
    stays = (scores >= minimum) & (scores > -torch.inf)
    rows, tokens = stays.nonzero(as_tuple=True)  # row by row, tokens ascending
    counts = stays.sum(-1)
    width = max(1, int(counts.max()))
    # `nonzero` lists the kept tokens of all rows in one sequence. Token i is `counts.cumsum(0)[row] - i` from the end
    # of its row; aligning all rows to the right turns that distance into a column.
    columns = torch.arange(len(rows), device=scores.device) + (width - counts.cumsum(0))[rows]
    kept = scores.new_full((len(scores), width), -torch.inf)
    ids = torch.zeros(kept.shape, dtype=torch.long, device=scores.device)
    kept[rows, columns], ids[rows, columns] = scores[rows, tokens], tokens
    return kept, ids


def _nucleus(
    scores: torch.Tensor, ids: torch.Tensor | None, *, share: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Truncate like `TopPLogitsWarper`, without sorting the vocabulary if a few tokens hold the share.

    Of equally likely tokens, the first are removed; transformers leaves their order undefined. Takes scores `(N, V)`
    without ids or gathered scores `(N, M)`; returns them with -inf for removed tokens.
    """
    log_total = scores.logsumexp(-1, keepdim=True).double()  # (N, 1)
    if ids is None:
        for count in _NUCLEUS:
            if count < scores.shape[-1]:
                highest = scores.topk(count).values
                if bool(((highest.double() - log_total).exp().sum(-1) >= share).all()):
                    scores, ids = _gather(scores, highest[:, -1:])
                    break
    order = scores.argsort(dim=-1, stable=True)
    below = scores.gather(-1, order).double().sub_(log_total).exp_()
    # All tokens that were not gathered are less likely than those that were, so their mass comes first.
    rest = (1 - below.sum(-1, keepdim=True)).clamp(min=0)
    is_cut = below.cumsum(-1).add_(rest) <= 1 - share
    is_cut[:, -1] = False
    return scores.masked_fill(is_cut.scatter(-1, order, is_cut), -torch.inf), ids


# --- Choosing.


class Choice(NamedTuple):
    """One token for each of N spans."""

    tokens: torch.Tensor  # (N,)
    logprobs: torch.Tensor  # (N,): under the model's own distribution, before processors and warpers
    is_possible: torch.Tensor  # (N,): false if all tokens were excluded, so that the token is arbitrary
    is_nan: torch.Tensor  # (): whether any logit is NaN
    scores: torch.Tensor | None = None  # (N, V): the processed scores, if requested

    @classmethod
    def join(cls, groups: Sequence["Choice"]) -> "Choice":
        """Concatenate the choices of groups of spans; scores are kept only for a single group."""
        if len(groups) == 1:
            return groups[0]
        tokens, logprobs, is_possible = (torch.cat(column) for column in list(zip(*groups, strict=True))[:3])
        return cls(tokens, logprobs, is_possible, torch.stack([group.is_nan for group in groups]).any())


def left_contexts(spans: Sequence[Span], *, pad_token_id: int) -> torch.Tensor:
    """Return the equivalent of `input_ids` in `generate`, `(N, longest)`: tokens before each span and its own."""
    rows = [[*span.before, *span.token_ids] or [pad_token_id] for span in spans]
    return pad_token_rows(rows, pad_token_id=pad_token_id, padding_side="left")["input_ids"]


class TokenChooser:
    """Chooses tokens greedily or by sampling, with a random generator per span.

    torch's global generator seeds the generators in the order of the spans, before they are batched: after
    `torch.manual_seed`, a span gets the same sample in any batch.

    Args:
        config (`GenerationConfig`): See `SUPPORTED` in `infill_options_magnet.py` for the supported fields.
        spans (`Sequence[Span]`): All spans of the call, ordered by `Span.number`.
        excluded_ids (`Sequence[int]`): Tokens excluded from fills, including `suppress_tokens` of the config.
        pad_token_id (`int`): Pads the input ids of processors. It must be excluded, so that penalties for it have no
            effect.
        end_of_span_id (`int`, *optional*): Token that may end a span but not begin it. A sampled span ends when the
            token is drawn. A greedy span ends once its probability of having ended exceeds one half (the median of
            its length), because the end is rarely the most likely token of a single step.
        processors (`LogitsProcessorList`, *optional*): Processors of the caller, applied before those of the config.
            Their rows are the spans of a batch; see `left_contexts`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Required for healed spans, to find the tokens that fit.
        characters (`CharacterRule`, *optional*): Ensures whole characters.
    """

    def __init__(
        self,
        config: GenerationConfig,
        *,
        spans: Sequence[Span],
        excluded_ids: Sequence[int],
        pad_token_id: int = 0,
        end_of_span_id: int | None = None,
        processors: LogitsProcessorList | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        characters: CharacterRule | None = None,
    ) -> None:
        self.config, self.pad_token_id, self.end_of_span_id = config, pad_token_id, end_of_span_id
        self.never_ends = end_of_span_id in (config.suppress_tokens or ())
        excluded = [token_id for token_id in excluded_ids if token_id != end_of_span_id or self.never_ends]
        self.excluded = torch.tensor(excluded, dtype=torch.long)
        self.characters = characters
        self.min_tokens = max(config.min_new_tokens or 0, 1)  # minimum number of tokens of a span
        self.continues = [1.0] * len(spans)  # for each span number, the probability that the span has not ended
        self.tokenizer = tokenizer
        self.reads_start = any(len(span.healed.start) > 1 for span in spans)  # see `healing_tokens`
        self.remembers_rows = bool(processors)  # the caller's may; those of the config treat each row by itself
        self.processors = LogitsProcessorList([*(processors or []), *text_processors(config)])
        self.warpers = warpers(config)
        self.uniforms: list[torch.Tensor] | None = None
        if config.do_sample:
            generators = [torch.Generator().manual_seed(int(torch.randint(2**62, ()))) for _ in spans]
            self.uniforms = [
                torch.rand(span.length, generator=generator, dtype=torch.float64)
                for span, generator in zip(spans, generators, strict=True)
            ]

    @property
    def reads_tokens(self) -> bool:
        """Whether a choice depends on the tokens of the spans."""
        return bool(self.processors) or self.reads_start or self.end_of_span_id is not None

    def max_spans(self, vocab_size: int, *, device: torch.device) -> int:
        """Return the maximum number of spans to process at once, which bounds the memory for their scores."""
        if self.remembers_rows:
            return sys.maxsize
        return max(1, (_CPU_SCORES if device.type == "cpu" else _DEVICE_SCORES) // vocab_size)

    def choose(
        self, logits: torch.Tensor, spans: Sequence[Span], *, indices: Sequence[int], with_scores: bool = False
    ) -> Choice:
        """Choose the token at `indices` of each span from logits `(N, V)`, which are copied once."""
        if self.excluded.device != logits.device:
            self._move(logits.device)
        # One buffer is used twice: for exp(logit - highest), which normalizes the logprobs, then for the scores.
        scores = torch.empty(logits.shape, dtype=torch.float32, device=logits.device).copy_(logits)
        highest = scores.amax(-1, keepdim=True)
        log_total = scores.sub_(highest).exp_().sum(-1, keepdim=True).log_()  # (N, 1), minus the highest
        scores.copy_(logits)
        if self.processors:
            contexts: Any = left_contexts(spans, pad_token_id=self.pad_token_id).to(scores.device)
            scores = self.processors(contexts, scores)
        end_probabilities = None
        if self.end_of_span_id is not None and self.uniforms is None and not self.never_ends:
            end_probabilities = (scores[:, self.end_of_span_id] - _log_totals(scores)).exp()
        self._exclude(scores, spans, indices)
        if self.uniforms is None:
            tokens = most_likely = self._most_likely(scores, spans, indices)
            if end_probabilities is not None:
                tokens = self._end_at_median(tokens, end_probabilities, spans, indices)
            has_ended = tokens != most_likely
        else:
            # Full spans stay in the batch if processors index state by row; their tokens are ignored.
            steps = (min(index, span.length - 1) for span, index in zip(spans, indices, strict=True))
            uniforms = [self.uniforms[span.number][step] for span, step in zip(spans, steps, strict=True)]
            tokens = draw_tokens(scores, torch.stack(uniforms).to(scores.device), warpers=self.warpers)
            for row in scores.split(1) if with_scores else ():
                row.copy_(self.warpers(_NO_IDS, row))  # type: ignore[arg-type]
            has_ended = torch.zeros_like(tokens, dtype=torch.bool)
        is_possible = scores.gather(-1, tokens[:, None])[:, 0] > -torch.inf
        is_possible |= has_ended  # the end token is excluded in greedy decoding and set by `_end_at_median`
        if self.characters is not None:
            self.characters.advance(tokens, spans)
        logprobs = logits.gather(-1, tokens[:, None]).float() - highest - log_total
        is_nan = ~log_total.isfinite().all()
        return Choice(tokens, logprobs[:, 0], is_possible, is_nan, scores if with_scores else None)

    def _move(self, device: torch.device) -> None:
        """Move the state to the device of the scores."""
        self.excluded = self.excluded.to(device)
        if self.characters is not None:
            self.characters.to(device)

    def _exclude(self, scores: torch.Tensor, spans: Sequence[Span], indices: Sequence[int]) -> None:
        """Set the scores of all tokens that may not come next to minus infinity, in place."""
        scores.index_fill_(1, self.excluded, -torch.inf)
        if self.end_of_span_id is not None:
            never = [row for row, index in enumerate(indices) if index < self.min_tokens or self.uniforms is None]
            scores[never, self.end_of_span_id] = -torch.inf
        for row, (span, index) in enumerate(zip(spans, indices, strict=True)):
            if index == 0 and self.config.begin_suppress_tokens:
                scores[row, list(self.config.begin_suppress_tokens)] = -torch.inf
            if (span.healed.start or span.healed.end) and self.tokenizer is not None:
                fits = healing_tokens(self.tokenizer, scores.shape[-1], span, index=index)
                if fits is not None:
                    scores[row].masked_fill_(~fits.to(scores.device), -torch.inf)
        if self.characters is not None:
            self.characters.exclude(scores, spans, indices=indices)

    def _most_likely(self, scores: torch.Tensor, spans: Sequence[Span], indices: Sequence[int]) -> torch.Tensor:
        """Return the most likely tokens; the first token of answer r to a blank is the one of rank r."""
        ranks = [span.rank if index == 0 else 0 for span, index in zip(spans, indices, strict=True)]
        if not any(ranks):
            return scores.argmax(-1)
        ordered = scores.topk(max(ranks) + 1, dim=-1).indices  # (N, ranks)
        return ordered.gather(-1, torch.tensor(ranks, device=scores.device)[:, None])[:, 0]

    def _end_at_median(
        self, tokens: torch.Tensor, end_probabilities: torch.Tensor, spans: Sequence[Span], indices: Sequence[int]
    ) -> torch.Tensor:
        """Replace tokens by the end of the span if the probability that it continues falls below one half."""
        chosen = tokens.clone()
        may_end = [True] * len(spans) if self.characters is None else self.characters.are_whole(spans)
        for row, (span, index, probability) in enumerate(zip(spans, indices, end_probabilities.tolist(), strict=True)):
            if index >= self.min_tokens:
                self.continues[span.number] *= 1.0 - probability
            if self.continues[span.number] < 0.5 and may_end[row]:
                chosen[row] = int(self.end_of_span_id or 0)
        return chosen


def _log_totals(scores: torch.Tensor) -> torch.Tensor:
    """Return `logsumexp` of each row, computed for a few rows at a time because it copies them."""
    rows = max(1, _CPU_SCORES // scores.shape[-1])
    return torch.cat([group.logsumexp(-1) for group in scores.split(rows)])
