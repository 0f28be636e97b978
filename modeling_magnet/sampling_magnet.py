"""Choose the next token of each span: greedily, or drawn with random numbers that belong to the span.

Shapes: N spans, V vocabulary, P tokens that begin or end inside a character, M tokens that are left after a cut.
"""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
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
from .tokenization_magnet import pad_token_rows, special_ids

# Scores that exist at once, in float32: those of 64 spans with a vocabulary of 262,144 on a CPU, of 256 elsewhere.
_CPU_SCORES, _DEVICE_SCORES = 2**24, 2**26
# Scores of the rows that are drawn at once. A flat row takes up to 40 bytes a token beside its own four.
_CPU_DRAWN, _DEVICE_DRAWN = 2**20, 2**24
# What `generate` uses where neither the caller nor the checkpoint says anything.
DEFAULT_TOP_K = 50
# Top-p is first tried with this many of the likeliest tokens; only flatter rows are sorted whole.
_NUCLEUS = (1024, 16_384)
# Warpers do not look at the tokens so far.
_NO_IDS = torch.empty(0, dtype=torch.long)


# --- Whole characters: in vocabularies over bytes, a token may begin or end inside a character.

# State -> for each range of bytes, the next state (UTF-8, RFC 3629). 0 is between characters; 1, 2 and 3 wait for that
# many continuation bytes; 4 to 7 exclude overlong forms, surrogates and code points beyond Unicode.
_TRANSITIONS: dict[int, list[tuple[int, int, int]]] = {
    0: [(0x00, 0x7F, 0), (0xC2, 0xDF, 1), (0xE0, 0xE0, 4), (0xE1, 0xEC, 2), (0xED, 0xED, 5), (0xEE, 0xEF, 2),
        (0xF0, 0xF0, 6), (0xF1, 0xF3, 3), (0xF4, 0xF4, 7)],
    1: [(0x80, 0xBF, 0)],
    2: [(0x80, 0xBF, 1)],
    3: [(0x80, 0xBF, 2)],
    4: [(0xA0, 0xBF, 1)],
    5: [(0x80, 0x9F, 1)],
    6: [(0x90, 0xBF, 2)],
    7: [(0x80, 0x8F, 2)],
}  # fmt: skip
_INVALID = len(_TRANSITIONS)
_PROBE = "你"


@dataclass(frozen=True)
class ByteTokens:
    """The tokens of a vocabulary that begin or end inside a character."""

    token_ids: tuple[int, ...]  # P, ascending
    following: torch.Tensor  # (9, P): by state and token, the next state; 8 is invalid

    @cached_property
    def _columns(self) -> dict[int, int]:
        return {token_id: column for column, token_id in enumerate(self.token_ids)}

    def count_whole(self, token_ids: Sequence[int]) -> int:
        """Count the leading tokens of a span that form whole characters."""
        state, whole = 0, 0
        for count, token_id in enumerate(token_ids, start=1):
            column = self._columns.get(token_id)
            state = 0 if column is None else int(self.following[state, column])
            state = 0 if state == _INVALID else state
            if state == 0:
                whole = count
        return whole


@lru_cache(maxsize=4)
def byte_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> ByteTokens:
    """Find the tokens below `vocab_size` that begin or end inside a character."""
    known = {token_id: part for token_id, part in sorted(_read_bytes(tokenizer).items()) if token_id < vocab_size}
    following = torch.full((_INVALID + 1, len(known)), _INVALID, dtype=torch.long)
    for column, part in enumerate(known.values()):
        for state in _TRANSITIONS:
            following[state, column] = _after(state, part)
    return ByteTokens(tuple(known), following)


def _read_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """Return the bytes of each token that is not made of whole characters.

    The tokenizer's decoder shows how it spells bytes: as `<0xE4>`, as byte-level BPE does, or not at all.
    """
    spelt = [f"<0x{byte:02X}>" for byte in _PROBE.encode()]
    if tokenizer.convert_tokens_to_string(spelt) == _PROBE:
        names = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(0x80, 0x100)}
        known: dict[Any, bytes] = {tokenizer.convert_tokens_to_ids(name): part for name, part in names.items()}
        return {token_id: part for token_id, part in known.items() if token_id not in (None, tokenizer.unk_token_id)}
    # Byte-level BPE writes a letter for each byte: printable ones stand for themselves, the rest begin at U+0100.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    letters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(0x100)]
    if tokenizer.convert_tokens_to_string([letters[byte] for byte in _PROBE.encode()]) != _PROBE:
        return {}
    bytes_of = {letter: byte for byte, letter in enumerate(letters)}
    added = tokenizer.added_tokens_decoder  # these are spelt as they are, not in letters for bytes
    found = {}
    for token_id, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if not token or token.isascii() or token_id in added or any(letter not in bytes_of for letter in token):
            continue
        part = bytes(bytes_of[letter] for letter in token)
        if _after(0, part) != 0:
            found[token_id] = part
    return found


def _after(state: int, part: bytes) -> int:
    """Return the state after some bytes."""
    for byte in part:
        state = next((to for low, high, to in _TRANSITIONS.get(state, []) if low <= byte <= high), _INVALID)
    return state


class CharacterRule:
    """Keeps the spans of a call on whole characters.

    A token that begins a character is allowed only if the rest of the character fits into the span, without tokens
    that are barred; inside a character only tokens that continue it are. The states stay on the device of the scores:
    nothing is read back.
    """

    def __init__(self, known: ByteTokens, *, spans: Sequence[Span], barred_ids: Sequence[int]) -> None:
        barred = {*barred_ids}
        usable = torch.tensor([token_id not in barred for token_id in known.token_ids], dtype=torch.bool)
        self.token_ids = torch.tensor(known.token_ids, dtype=torch.long)
        self.following = known.following
        # By state, the fewest tokens that complete a character.
        fewest = torch.full((_INVALID + 1,), 255, dtype=torch.long)
        fewest[0] = 0
        for _ in range(3):
            to_go = fewest[self.following[1:_INVALID, usable]]  # (7, P)
            if to_go.shape[1]:
                fewest[1:_INVALID] = torch.minimum(fewest[1:_INVALID], 1 + to_go.min(dim=1).values)
        self.to_go = fewest[self.following]  # (9, P)
        self.states = torch.zeros(len(spans), dtype=torch.long)
        # The last token that may complete a character: in a healed span one more token spells the end.
        self.last = torch.zeros(len(spans), dtype=torch.long)
        for span in spans:
            self.last[span.number] = span.length - (2 if span.healed.end else 1)
        self._index: tuple[list[int], torch.Tensor] | None = None

    def to(self, device: torch.device) -> None:
        """Move the states and tables to the device of the scores."""
        for name in ("states", "following", "token_ids", "to_go", "last"):
            setattr(self, name, getattr(self, name).to(device))
        self._index = None

    def bar(self, scores: torch.Tensor, spans: Sequence[Span], *, indices: Sequence[int]) -> None:
        """Set the scores `(N, V)` of tokens that break a character to minus infinity, in place."""
        numbers = self._numbers(spans)
        states = self.states[numbers]
        index = indices[0] if len({*indices}) == 1 else torch.tensor(indices, device=scores.device)
        left = (self.last[numbers] - index).clamp(min=0)
        breaks = self.to_go[states] > left[:, None]  # (N, P)
        of_bytes = scores[:, self.token_ids].masked_fill(breaks, -torch.inf)
        scores.masked_fill_((states != 0)[:, None], -torch.inf)
        scores[:, self.token_ids] = of_bytes

    def advance(self, tokens: torch.Tensor, spans: Sequence[Span]) -> None:
        """Take note of the tokens `(N,)` that were chosen."""
        numbers = self._numbers(spans)
        column = torch.searchsorted(self.token_ids, tokens).clamp(max=len(self.token_ids) - 1)
        following = self.following[self.states[numbers], column]
        is_byte = self.token_ids[column] == tokens
        self.states[numbers] = torch.where(is_byte & (following != _INVALID), following, 0)

    def are_whole(self, spans: Sequence[Span]) -> list[bool]:
        """Return whether each span is between characters; reads from the device."""
        return [state == 0 for state in self.states[self._numbers(spans)].tolist()]

    def _numbers(self, spans: Sequence[Span]) -> torch.Tensor:
        """Return the numbers of spans on the device; the last result is kept."""
        numbers = [span.number for span in spans]
        if self._index is None or self._index[0] != numbers:
            self._index = numbers, torch.tensor(numbers, device=self.states.device)
        return self._index[1]


# --- Token healing: which tokens spell what was moved into a span.


def healing_tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, span: Span, *, index: int
) -> torch.Tensor | None:
    """Return a mask `(V,)` of the tokens that may come next in a healed span, or `None` for any token.

    The tokens of the span before `index` are read only if more than one character is to be spelt.
    """
    rest = span.healed.start if index == 0 else ""
    if index > 0 and len(span.healed.start) > 1:
        rest = span.healed.start[len(decode_fill(tokenizer, span.before, span.token_ids)) :]
    left = span.length - 1 - index  # tokens to come
    end = span.healed.end if left == 0 else ""
    if not rest and not end:
        return None
    # The last token spells the end; what was begun has to be complete before it.
    may_go_on = left > (1 if span.healed.end else 0)
    return fitting_tokens(tokenizer, vocab_size, rest=rest, end=end, is_last=left == 0, may_go_on=may_go_on)


@lru_cache(maxsize=256)
def fitting_tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, *, rest: str, end: str, is_last: bool, may_go_on: bool
) -> torch.Tensor:
    """Return a mask `(V,)` of the tokens that spell `rest`, or its beginning if another token spells what is left.

    The last token has to complete `rest` and to end with `end`. This keeps greedy decoding out of dead ends.
    """
    vocabulary = read_vocabulary(tokenizer, vocab_size)
    candidates = vocabulary.by_first.get(rest[0], []) if rest else vocabulary.by_last.get(end[-1], [])

    def fits(text: str) -> bool:
        if not text or (is_last and not end and text == rest == " "):
            return False  # only the space of the context: the fill would be empty
        if is_last:
            return text.startswith(rest) and text.endswith(end) and len(text) >= len(rest) + len(end)
        return text.startswith(rest) or (may_go_on and rest.startswith(text) and rest[len(text) :] in vocabulary.known)

    fitting = torch.zeros(vocab_size, dtype=torch.bool)
    fitting[[token for token in candidates if fits(vocabulary.texts[token])]] = True
    return fitting


class Vocabulary(NamedTuple):
    """What each token adds to a text that it continues; special tokens add nothing."""

    texts: tuple[str, ...]
    known: frozenset[str]
    by_first: dict[str, list[int]]  # the tokens whose text begins with a character
    by_last: dict[str, list[int]]


# By tokenizer, its number of tokens (which grows as tokens are added), and the model's.
_VOCABULARIES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, int], Vocabulary]] = WeakKeyDictionary()
_READING = threading.Lock()


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Vocabulary:
    """Read the texts of all tokens, once for each tokenizer and by one thread only."""
    with _READING:
        of_tokenizer = _VOCABULARIES.setdefault(tokenizer, {})
        key = (len(tokenizer), vocab_size)
        if key not in of_tokenizer:
            tokens = range(min(vocab_size, len(tokenizer)))
            anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
            special = special_ids(tokenizer)
            front = len(tokenizer.decode(anchor, clean_up_tokenization_spaces=False))
            both = _decode_rows(tokenizer, [[*anchor, token] for token in tokens])
            texts = ["" if token in special else text[front:] for token, text in zip(tokens, both, strict=True)]
            by_first: dict[str, list[int]] = {}
            by_last: dict[str, list[int]] = {}
            for token, text in enumerate(texts):
                if text:
                    by_first.setdefault(text[0], []).append(token)
                    by_last.setdefault(text[-1], []).append(token)
            texts += [""] * (vocab_size - len(tokens))
            of_tokenizer[key] = Vocabulary(tuple(texts), frozenset(texts) - {""}, by_first, by_last)
        return of_tokenizer[key]


def _decode_rows(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    """Decode many rows, by one call of the Rust backend if the class decodes by nothing else."""
    own = type(tokenizer)
    is_plain = isinstance(tokenizer, PreTrainedTokenizerFast) and (own.decode, own._decode) == (
        PreTrainedTokenizerFast.decode,
        PreTrainedTokenizerFast._decode,
    )
    if is_plain:
        texts: list[str] = tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False)
        return texts
    return list(tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False))


# --- Logits processors of a generation config: the classes of transformers, in the order of `generate`.


def text_processors(config: GenerationConfig) -> LogitsProcessorList:
    """Build the processors that look at the tokens of a span and before it."""
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


# --- Drawing. A few rows at a time, so that memory is bounded; each row by itself, so that a draw does not depend on
# the others. The tokens that a cut leaves are gathered first: top-k leaves some 50 of a vocabulary of 262,144.


def draw_tokens(scores: torch.Tensor, numbers: torch.Tensor, *, warpers: LogitsProcessorList) -> torch.Tensor:
    """Return the token `(N,)` of each row in whose share of the distribution the number of the row falls.

    The scores `(N, V)` are unnormalized and not written to; the numbers `(N,)` are from [0, 1). A row without a
    possible token gets any.
    """
    rows = max(1, (_CPU_DRAWN if scores.device.type == "cpu" else _DEVICE_DRAWN) // scores.shape[-1])
    groups = zip(scores.split(rows), numbers.split(rows), strict=True)
    return torch.cat([_draw(group, own, warpers=warpers) for group, own in groups])


def _draw(scores: torch.Tensor, numbers: torch.Tensor, *, warpers: LogitsProcessorList) -> torch.Tensor:
    """Draw tokens for a few rows; sums are in double precision and in the order of the vocabulary."""
    ids: torch.Tensor | None = None  # (N, M), once tokens have been gathered
    for warper in warpers:
        if ids is None and isinstance(warper, TopKLogitsWarper):
            scores, ids = _gather(scores, scores.topk(min(warper.top_k, scores.shape[-1])).values[:, -1:])
        elif isinstance(warper, TopPLogitsWarper):
            scores, ids = _nucleus(scores, ids, share=warper.top_p)
        else:
            scores = warper(_NO_IDS, scores)
    cumulative = torch.softmax(scores, dim=-1, dtype=torch.float64).cumsum(-1)
    # Scaled by the last sum, so that rounding cannot leave the draw after the last token.
    places = torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True)
    places = places.clamp(max=scores.shape[-1] - 1)  # a row of NaN points past the end
    return (places if ids is None else ids.gather(-1, places))[:, 0]


def _gather(scores: torch.Tensor, least: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the possible tokens of each row `(N, V)` that score at least `least` `(N, 1)`; ties with the last stay.

    Returns scores and tokens `(N, M)` in the order of the vocabulary, with -inf before shorter rows.
    """
    stays = (scores >= least) & (scores > -torch.inf)
    rows, tokens = stays.nonzero(as_tuple=True)  # row by row, tokens ascending
    counts = stays.sum(-1)
    width = max(1, int(counts.max()))
    columns = torch.arange(len(rows), device=scores.device) + (width - counts.cumsum(0))[rows]
    kept = scores.new_full((len(scores), width), -torch.inf)
    ids = torch.zeros(kept.shape, dtype=torch.long, device=scores.device)
    kept[rows, columns], ids[rows, columns] = scores[rows, tokens], tokens
    return kept, ids


def _nucleus(
    scores: torch.Tensor, ids: torch.Tensor | None, *, share: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cut as `TopPLogitsWarper` does, without sorting the vocabulary where few tokens hold the share.

    Of equally likely tokens the first are cut, which the sort of transformers leaves to chance. Takes all scores
    `(N, V)` and no ids, or gathered ones `(N, M)`; returns the same with -inf for what was cut.
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
    # Tokens that were not gathered are less likely than those that were.
    rest = (1 - below.sum(-1, keepdim=True)).clamp(min=0)
    is_cut = below.cumsum(-1).add_(rest) <= 1 - share
    is_cut[:, -1] = False
    return scores.masked_fill(is_cut.scatter(-1, order, is_cut), -torch.inf), ids


# --- Choosing.


class Choice(NamedTuple):
    """One token for each of N spans."""

    tokens: torch.Tensor  # (N,)
    logprobs: torch.Tensor  # (N,): under the model's own distribution, before anything is barred or warped
    is_possible: torch.Tensor  # (N,): false where everything was barred, and the token means nothing
    is_nan: torch.Tensor  # (): whether any logit was not a number
    scores: torch.Tensor | None = None  # (N, V): what the token was chosen by, if requested

    @classmethod
    def join(cls, groups: Sequence["Choice"]) -> "Choice":
        """Join the choices of groups of spans; several lose their scores."""
        if len(groups) == 1:
            return groups[0]
        tokens, logprobs, is_possible = (torch.cat(column) for column in list(zip(*groups, strict=True))[:3])
        return cls(tokens, logprobs, is_possible, torch.stack([group.is_nan for group in groups]).any())


class TokenChooser:
    """Chooses tokens greedily or by sampling, with a random generator for each span.

    The seeds of the generators come from torch's global one, in the order of the spans and before anything is batched:
    after `torch.manual_seed`, a span gets the same sample alone or in any batch.

    Args:
        config (`GenerationConfig`): See `SUPPORTED` in `infilling_magnet.py` for the fields that count.
        spans (`Sequence[Span]`): All spans of the call, ordered by `Span.number`.
        barred_ids (`Sequence[int]`): Tokens that a fill never has, `suppress_tokens` of the config included.
        pad_token_id (`int`): Pads what processors are shown; a barred one, so that penalties for it change nothing.
        end_of_span_id (`int`, *optional*): Token that may end a span, but not be its first. A sample ends where it is
            drawn. A greedy span ends once the model's chance that it has ended exceeds one half, the median of its
            length: the end is hardly ever the likeliest token of a single step.
        processors (`LogitsProcessorList`, *optional*): Those of the caller, applied before the config's. Their rows
            are the spans of a batch; see `left_contexts`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Spells what healed spans have to begin and end with.
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
        tokenizer: PreTrainedTokenizerBase | None = None,
        characters: CharacterRule | None = None,
    ) -> None:
        self.config, self.pad_token_id, self.end_of_span_id = config, pad_token_id, end_of_span_id
        self.never_ends = end_of_span_id in (config.suppress_tokens or ())
        barred = [one for one in barred_ids if one != end_of_span_id or self.never_ends]
        self.barred = torch.tensor(barred, dtype=torch.long)
        self.characters = characters
        self.least = max(config.min_new_tokens or 0, 1)  # tokens before a span may end
        self.goes_on = [1.0] * len(spans)  # by number, the model's chance that the span has not ended
        self.tokenizer = tokenizer
        self.spells = any(len(span.healed.start) > 1 for span in spans)
        self.remembers_rows = bool(processors)  # those of the caller may; the config's look at each span by itself
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
        return bool(self.processors) or self.spells or self.end_of_span_id is not None

    def left_contexts(self, spans: Sequence[Span]) -> torch.Tensor:
        """Return what `generate` calls input ids `(N, longest)`: the tokens before each span, then its own."""
        rows = [[*span.before, *span.token_ids] or [self.pad_token_id] for span in spans]
        return pad_token_rows(rows, pad_token_id=self.pad_token_id, padding_side="left")["input_ids"]

    def most_spans(self, vocab_size: int, *, device: torch.device) -> int:
        """Return for how many spans at most to choose at once, so that the memory for their scores is bounded."""
        if self.remembers_rows:
            return sys.maxsize
        return max(1, (_CPU_SCORES if device.type == "cpu" else _DEVICE_SCORES) // vocab_size)

    def choose(
        self, logits: torch.Tensor, spans: Sequence[Span], *, indices: Sequence[int], with_scores: bool = False
    ) -> Choice:
        """Choose token number `indices` (from 0) of some spans by their logits `(N, V)`, of which one copy is made."""
        if self.barred.device != logits.device:
            self._move(logits.device)
        # The copy first becomes exp(logit - highest), to normalize the model's own distribution, and then the scores.
        scores = torch.empty(logits.shape, dtype=torch.float32, device=logits.device).copy_(logits)
        highest = scores.amax(-1, keepdim=True)
        log_total = scores.sub_(highest).exp_().sum(-1, keepdim=True).log_()  # (N, 1), beyond the highest
        scores.copy_(logits)
        if self.processors:
            scores = self.processors(self.left_contexts(spans).to(scores.device), scores)  # type: ignore[arg-type]
        end_chances = None
        if self.end_of_span_id is not None and self.uniforms is None and not self.never_ends:
            end_chances = (scores[:, self.end_of_span_id] - _log_totals(scores)).exp()
        self._bar(scores, spans, indices)
        if self.uniforms is None:
            tokens = likeliest = self._most_likely(scores, spans, indices)
            if end_chances is not None:
                tokens = self._end_at_median(tokens, end_chances, spans, indices)
            has_ended = tokens != likeliest
        else:
            # A full span stays beside the others where processors know rows by number; its token is not used.
            places = (min(index, span.length - 1) for span, index in zip(spans, indices, strict=True))
            numbers = [self.uniforms[span.number][place] for span, place in zip(spans, places, strict=True)]
            tokens = draw_tokens(scores, torch.stack(numbers).to(scores.device), warpers=self.warpers)
            for row in scores.split(1) if with_scores else ():
                row.copy_(self.warpers(_NO_IDS, row))  # type: ignore[arg-type]
            has_ended = torch.zeros_like(tokens, dtype=torch.bool)
        is_possible = scores.gather(-1, tokens[:, None])[:, 0] > -torch.inf
        is_possible |= has_ended  # the end is barred as a token, and chosen otherwise
        if self.characters is not None:
            self.characters.advance(tokens, spans)
        logprobs = logits.gather(-1, tokens[:, None]).float() - highest - log_total
        is_nan = ~log_total.isfinite().all()
        return Choice(tokens, logprobs[:, 0], is_possible, is_nan, scores if with_scores else None)

    def _move(self, device: torch.device) -> None:
        """Move what is kept to the device of the scores."""
        self.barred = self.barred.to(device)
        if self.characters is not None:
            self.characters.to(device)

    def _bar(self, scores: torch.Tensor, spans: Sequence[Span], indices: Sequence[int]) -> None:
        """Set the scores of all tokens that may not come next to minus infinity, in place."""
        scores.index_fill_(1, self.barred, -torch.inf)
        if self.end_of_span_id is not None:
            never = [row for row, index in enumerate(indices) if index < self.least or self.uniforms is None]
            scores[never, self.end_of_span_id] = -torch.inf
        for row, (span, index) in enumerate(zip(spans, indices, strict=True)):
            if index == 0 and self.config.begin_suppress_tokens:
                scores[row, list(self.config.begin_suppress_tokens)] = -torch.inf
            if (span.healed.start or span.healed.end) and self.tokenizer is not None:
                fits = healing_tokens(self.tokenizer, scores.shape[-1], span, index=index)
                if fits is not None:
                    scores[row].masked_fill_(~fits.to(scores.device), -torch.inf)
        if self.characters is not None:
            self.characters.bar(scores, spans, indices=indices)

    def _most_likely(self, scores: torch.Tensor, spans: Sequence[Span], indices: Sequence[int]) -> torch.Tensor:
        """Return the likeliest tokens; where several answers to one blank begin, each gets the next likely one."""
        ranks = [span.rank if index == 0 else 0 for span, index in zip(spans, indices, strict=True)]
        if not any(ranks):
            return scores.argmax(-1)
        ordered = scores.topk(max(ranks) + 1, dim=-1).indices  # (N, ranks)
        return ordered.gather(-1, torch.tensor(ranks, device=scores.device)[:, None])[:, 0]

    def _end_at_median(
        self, tokens: torch.Tensor, end_chances: torch.Tensor, spans: Sequence[Span], indices: Sequence[int]
    ) -> torch.Tensor:
        """Replace tokens by the end of the span where the chance that it goes on falls below one half."""
        chosen = tokens.clone()
        may_end = [True] * len(spans) if self.characters is None else self.characters.are_whole(spans)
        for row, (span, index, chance) in enumerate(zip(spans, indices, end_chances.tolist(), strict=True)):
            if index >= self.least:
                self.goes_on[span.number] *= 1.0 - chance
            if self.goes_on[span.number] < 0.5 and may_end[row]:
                chosen[row] = int(self.end_of_span_id or 0)
        return chosen


def _log_totals(scores: torch.Tensor) -> torch.Tensor:
    """Return `logsumexp` of each row, a few rows at a time: it copies them."""
    rows = max(1, _CPU_SCORES // scores.shape[-1])
    return torch.cat([group.logsumexp(-1) for group in scores.split(rows)])
