"""From blanks in a text to spans of tokens with reserved positions, and from decoded spans back to text.

In the order of a call: split a text at its blanks; tokenize the parts and reserve positions for the spans; say which
tokens heal the ends of a span; decode spans so that their text joins its surroundings exactly.
"""

import re
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Any, Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .tokenization_magnet import front_tokens, special_ids, text_ids

ESCAPE = "\\"
# A character in one of these ranges continues the one before it, as combining marks do.
CONTINUATIONS = (
    ("\U0001f3fb", "\U0001f3ff"),  # skin colours of emoji
    ("\U000e0020", "\U000e007f"),  # tags, which spell the flags of regions
    ("\u1160", "\u11ff"),  # vowels and final consonants of decomposed Hangul
)
ZERO_WIDTH_JOINER = "\u200d"
FLAG_LETTERS = ("\U0001f1e6", "\U0001f1ff")  # two of them make a flag

# Texts whose tokens rarely merge with what follows; they are tried in turn to hide the beginning of a text.
ANCHORS = ("\n", "a", "0", ".", " ")
# Tokens before a fill that can change how its first token is written. More are taken if these begin in a character.
DECODE_CONTEXT = 8
WORDS = re.compile(r"\w+|[^\w\s]", re.UNICODE)

Healing = Literal["space", "token"]


@dataclass(frozen=True)
class Healed:
    """Text that was moved from the context into a span, which its tokens must spell again; see `lay_out`."""

    start: str = ""
    end: str = ""


@dataclass(frozen=True, kw_only=True)
class SpanLayout:
    """The context tokens of one text and the positions that are reserved for its spans."""

    parts: list[list[int]]  # tokens before the first span (BOS first), between spans, and after the last one
    span_lengths: list[int]  # positions reserved for each span
    filled: list[list[int]]  # tokens at the beginning of each span that have become context
    healed: list[Healed]

    @cached_property
    def token_ids(self) -> list[int]:
        """Context tokens in order."""
        return [token for run in self._runs() for token in run]

    @cached_property
    def positions(self) -> list[int]:
        """Positions of the context tokens; those of free parts of spans are left out."""
        positions = list(range(len(self.parts[0])))
        next_position = len(positions)
        for filled, length, part in zip(self.filled, self.span_lengths, self.parts[1:], strict=True):
            positions += range(next_position, next_position + len(filled))
            next_position += length
            positions += range(next_position, next_position + len(part))
            next_position += len(part)
        return positions

    @cached_property
    def predictors(self) -> list[int]:
        """For each span, the index into `token_ids` of the token whose output predicts its next token."""
        return [end - 1 for end in list(accumulate(map(len, self._runs())))[1::2]]

    @property
    def span_starts(self) -> list[int]:
        """Position of the first free token of each span."""
        return [self.positions[index] + 1 for index in self.predictors]

    @property
    def length(self) -> int:
        """Positions of the whole text."""
        return sum(map(len, self.parts)) + sum(self.span_lengths)

    def _runs(self) -> list[list[int]]:
        """The parts, and between them what has been filled in."""
        runs = [self.parts[0]]
        for filled, part in zip(self.filled, self.parts[1:], strict=True):
            runs += [filled, part]
        return runs


@dataclass(kw_only=True)
class Span:
    """One answer to one blank while it is decoded."""

    blank: int  # index of the blank in its text
    before: list[int]  # context tokens before it, without special tokens and without other spans
    length: int  # most tokens it may have
    number: int  # its number in the call, which selects its random numbers
    rank: int = 0  # greedy answers to one blank begin with different tokens: 0 with the likeliest, 1 with the next
    healed: Healed = Healed()
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    has_ended: bool = False  # by a rule, before its length was reached
    is_possible: bool = True  # false once a token was not allowed: then it is not an answer
    text_length: int | None = None  # characters of its text to keep, if a rule ended it inside a token

    @property
    def is_full(self) -> bool:
        """Whether it takes no further token."""
        return self.has_ended or len(self.token_ids) == self.length


@dataclass(frozen=True)
class SpanRow:
    """A row of context tokens and the spans decoded in it; each span sees the context but no other span."""

    layout: SpanLayout
    spans: list[Span]


@dataclass
class Fill:
    """One answer to one blank.

    Args:
        text (`str`): The text to insert; the text before the blank, this, and the text after it join as they are.
        token_ids (`list[int]`): The tokens that were decoded or scored. Where a rule cut the text, overlap was trimmed
            or tokens were healed, they spell more than `text`.
        logprobs (`list[float]`): Log-probability of each token in nats under the model's own distribution, before
            temperature, truncation and processors.
        tokens (`list[str]`): What each token adds to `text`; joined they are the text. A character made of several
            tokens counts for the last of them. Set with `return_dict_in_generate=True`.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    @property
    def logprob(self) -> float:
        """Log-probability of all tokens, in nats."""
        return sum(self.logprobs)

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of a token in nats; 0 without tokens."""
        return self.logprob / max(len(self.logprobs), 1)


# --- Blanks: where a text is split. Strings only.


def split_at_marks(text: str, blank: str, *, name: str) -> list[str]:
    r"""Split a text at its blanks; a backslash before a mark makes it text, two are a backslash and a blank.

    Errors call the text by `name`.

    Raises:
        ValueError: an empty mark, or a text without one.

    Example:

        >>> split_at_marks(r"Write \[blank] where [blank] is missing.", "[blank]", name="text")
        ['Write [blank] where ', ' is missing.']
    """
    if not isinstance(blank, str) or not blank:
        raise ValueError(f"`blank` is {blank!r}; expected the mark of a blank, such as '[blank]'.")
    parts = [""]
    for run in re.split(rf"(\\*{re.escape(blank)})", text):
        if not run.endswith(blank):
            parts[-1] += run
            continue
        backslashes = len(run) - len(blank)
        parts[-1] += ESCAPE * (backslashes // 2)
        if backslashes % 2:
            parts[-1] += blank
        else:
            parts.append("")
    if len(parts) == 1:
        escaped = f" except after a backslash, which makes it text ({ESCAPE + blank!r})" if blank in text else ""
        raise ValueError(f"{name} has no blank {blank!r}{escaped}. Mark one, or pass `blank=` or `ranges=`.")
    return parts


def split_at_ranges(text: str, ranges: Sequence[tuple[int, int]], *, name: str) -> list[str]:
    """Split a text around ascending, half-open ranges of its characters, which are dropped; see `split_at_marks`.

    Raises:
        ValueError: no range, one outside the text, overlapping ones, or one that cuts a visible character: a letter
            off its accent, an emoji off its colour.

    Example:

        >>> split_at_ranges("She ate the apple.", [(8, 11)], name="text")
        ['She ate ', ' apple.']
    """
    if isinstance(ranges, str) or not isinstance(ranges, Sequence) or not len(ranges):
        raise ValueError(f"The ranges of {name} are {ranges!r}; expected a list of (start, end) in characters.")
    for one in ranges:
        if not isinstance(one, Sequence) or len(one) != 2 or not all(isinstance(place, Integral) for place in one):
            raise ValueError(f"{one!r} is not a range of {name}; expected two whole numbers (start, end).")
        start, end = one
        if not 0 <= start <= end <= len(text):
            raise ValueError(
                f"Range ({start}, {end}) does not fit {name}; expected 0 <= start <= end <= {len(text)}, its length."
            )
        for place in (start, end):
            if cuts_a_character(text, place):
                raise ValueError(
                    f"Range ({start}, {end}) of {name} cuts a character at {place}, between {text[place - 1]!r} and "
                    f"{text[place]!r}. Move it to the character's beginning or end."
                )
    for one, following in pairwise(ranges):
        if following[0] < one[1]:
            raise ValueError(f"Ranges {one} and {following} of {name} overlap or are out of order. Join or sort them.")
    edges = [0, *(place for one in ranges for place in one), len(text)]
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def cuts_a_character(text: str, place: int) -> bool:
    r"""Return whether a cut before `text[place]` goes through what people see as one character.

    Covers combining marks, variation selectors, joined emoji, their colours, flags, decomposed Hangul, and `"\r\n"`.

    Example:

        >>> cuts_a_character("e\u0301", 1), cuts_a_character("ab", 1)
        (True, False)
    """
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    flags = 0
    while flags < place and FLAG_LETTERS[0] <= text[place - flags - 1] <= FLAG_LETTERS[1]:
        flags += 1
    return (
        (flags % 2 == 1 and FLAG_LETTERS[0] <= after <= FLAG_LETTERS[1])
        or any(first <= after <= last for first, last in CONTINUATIONS)
        or unicodedata.category(after) in ("Mn", "Me", "Mc")
        or ZERO_WIDTH_JOINER in (before, after)
        or before + after == "\r\n"
    )


# --- Parts of a text to tokens, with positions reserved for the spans.


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, split_special_tokens: bool = True) -> list[int]:
    """Tokenize a text that continues another one: without BOS and without a dummy space in front.

    SentencePiece puts a space before whatever it is given. The text is therefore tokenized after an anchor, whose own
    tokens are then dropped.

    Raises:
        ValueError: every anchor merges with the first characters of the text.
    """
    if not text:
        return []
    for anchor in ANCHORS:
        anchor_ids = text_ids(tokenizer, anchor)
        ids = text_ids(tokenizer, anchor + text, split_special_tokens=split_special_tokens)
        if anchor_ids and ids[: len(anchor_ids)] == anchor_ids and tokenizer.unk_token_id not in anchor_ids:
            return ids[len(anchor_ids) :]
    raise ValueError(f"The tokenizer cannot continue a text with {text!r:.40}. Begin it with another character.")


def fill_ids(
    tokenizer: PreTrainedTokenizerBase, fill: str, *, prefix: str, split_special_tokens: bool = True
) -> list[int]:
    """Tokenize a fill that follows a prefix, or that begins a text if the prefix is empty."""
    read = continuation_ids if prefix else text_ids
    return read(tokenizer, fill, split_special_tokens=split_special_tokens)


def space_to_heal(
    tokenizer: PreTrainedTokenizerBase, part: str, *, is_first: bool, split_special_tokens: bool = True
) -> str:
    """Return the space at the end of the text before a blank that belongs to the first token of the fill, or `""`.

    The space moves only if the tokens of the part change once a letter follows. Vocabularies with tokens for runs of
    spaces keep indentation apart from the next word; taking one space off such a run would leave an unusual width.
    """
    if not part.endswith(" ") or not part.strip():
        return ""
    prefix = "" if is_first else ANCHORS[0]
    alone, followed = (
        fill_ids(tokenizer, text, prefix=prefix, split_special_tokens=split_special_tokens)
        for text in (part, part + "a")
    )
    return "" if followed[: len(alone)] == alone else " "


def lay_out(
    tokenizer: PreTrainedTokenizerBase,
    parts: Sequence[str],
    *,
    span_lengths: Sequence[int],
    context_length: int,
    heal: Healing | None = None,
    split_special_tokens: bool = True,
) -> SpanLayout:
    """Tokenize the parts of a text around its blanks and reserve positions for the spans.

    In most vocabularies words begin with their space, so a model has hardly ever seen a text that ends in one.
    `heal="space"` moves that space into the span (see `space_to_heal`). `heal="token"` moves one token on either side
    into the span, so that a blank may begin and end inside a word. The span has to spell again what was moved.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        parts (`Sequence[str]`): The text before the first blank, between blanks, and after the last one.
        span_lengths (`Sequence[int]`): Tokens of each span, one fewer than parts.
        context_length (`int`): Positions of the model.
        heal (`str`, *optional*): `"space"` or `"token"`.
        split_special_tokens (`bool`, defaults to `True`): Read control tokens in a part as text.

    Raises:
        ValueError: nothing around the blanks, adjacent blanks, a span without length, or a text that is too long.
    """
    if not any(parts):
        raise ValueError("There is no text around the blank: prefix and suffix are empty. Use `model.generate`.")
    if not all(_is_length(length) for length in span_lengths):
        raise ValueError(f"Fills of {list(span_lengths)} tokens were asked for; each needs an integer of at least 1.")
    healed = [Healed() for _ in span_lengths]
    if heal == "space":
        spaces = [
            space_to_heal(tokenizer, part, is_first=not index, split_special_tokens=split_special_tokens)
            for index, part in enumerate(parts[:-1])
        ]
        healed = [Healed(start=space) for space in spaces]
        parts = [*map(str.removesuffix, parts[:-1], spaces), parts[-1]]
    token_ids = _tokenize_parts(tokenizer, parts, split_special_tokens=split_special_tokens)
    if heal == "token":
        neighbours = enumerate(pairwise(token_ids), start=2)
        healed = [_take_back(tokenizer, *pair, is_last=index == len(token_ids)) for index, pair in neighbours]
    layout = SpanLayout(
        parts=token_ids, span_lengths=list(map(int, span_lengths)), filled=[[] for _ in span_lengths], healed=healed
    )
    if layout.length > context_length:
        raise ValueError(
            f"Text and fills need {layout.length} positions ({len(layout.token_ids)} tokens of context and fills of "
            f"{list(span_lengths)}); the model has {context_length}. Shorten the text or the fills."
        )
    return layout


def _tokenize_parts(
    tokenizer: PreTrainedTokenizerBase, parts: Sequence[str], *, split_special_tokens: bool
) -> list[list[int]]:
    """Tokenize the parts around the blanks, BOS first; refuse what a model cannot predict from."""
    first = text_ids(tokenizer, parts[0], split_special_tokens=split_special_tokens)
    others = [continuation_ids(tokenizer, one, split_special_tokens=split_special_tokens) for one in parts[1:]]
    token_ids = [[*front_tokens(tokenizer), *first], *others]
    if not token_ids[0]:
        raise ValueError("The prefix is empty and the tokenizer has no BOS token to predict from. Pass a prefix.")
    for index, ids in enumerate(others[:-1], start=1):
        if not ids:
            raise ValueError(f"There is no text between blank {index} and the next. Make them one longer blank.")
    special = special_ids(tokenizer) - {tokenizer.unk_token_id}
    for part, ids in zip(parts, [first, *others], strict=True):
        rest = [token_id for token_id in ids if token_id not in special]
        if len(rest) < len(ids) and not str(tokenizer.decode(rest)).strip():
            raise ValueError(f"{part!r} beside a blank has only special tokens. Pass text, or nothing at all.")
    return token_ids


def _take_back(tokenizer: PreTrainedTokenizerBase, before: list[int], after: list[int], *, is_last: bool) -> Healed:
    """Remove the token before a blank and the one after it, in place; return their texts.

    Special tokens and parts of characters stay, and so does one token before every blank, to predict from.
    """
    special = special_ids(tokenizer)
    start = end = ""
    if len(before) > 1 and not special & {*before[-2:]}:
        text = decode_fill(tokenizer, [token for token in before[:-1] if token not in special], before[-1:])
        if "\ufffd" not in text:
            start = text
            before.pop()
    if after and (len(after) > 1 or is_last) and after[0] not in special:
        text = decode_fill(tokenizer, tokenizer(ANCHORS[1], add_special_tokens=False)["input_ids"], after[:1])
        if "\ufffd" not in text and not text[:1].isspace():
            end = text
            after.pop(0)
    return Healed(start, end)


def _is_length(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def round_up(length: int, multiple: int) -> int:
    """Return the next multiple; an invalid length is returned as it is, for `lay_out` to refuse."""
    return -(-length // multiple) * multiple if _is_length(length) else length


def check_healing(heal: Any) -> None:
    """Refuse an unknown kind of healing."""
    if heal is not None and not (isinstance(heal, str) and heal in get_args(Healing)):
        raise ValueError(f"`heal` is {heal!r}; expected 'space', 'token' or None.")


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

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Vocabulary":
        """Group the texts of all tokens, so that few of them are looked at for a given beginning or end."""
        by_first: dict[str, list[int]] = {}
        by_last: dict[str, list[int]] = {}
        for token, text in enumerate(texts):
            if text:
                by_first.setdefault(text[0], []).append(token)
                by_last.setdefault(text[-1], []).append(token)
        return cls(tuple(texts), frozenset(texts) - {""}, by_first, by_last)


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
            texts = ("" if token in special else text[front:] for token, text in zip(tokens, both, strict=True))
            of_tokenizer[key] = Vocabulary.of([*texts, *[""] * (vocab_size - len(tokens))])
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


# --- Decoded spans to text.


def decode_fill(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], fill: Sequence[int]) -> str:
    """Return the text that tokens add to the tokens before them.

    Decoding a fill by itself would lose the space that SentencePiece strips from the beginning of a text. `before`
    holds no special tokens.
    """
    context = list(before[-DECODE_CONTEXT:])
    without = str(tokenizer.decode(context, clean_up_tokenization_spaces=False))
    # A context that begins inside a character garbles the byte tokens after it, also those of the fill.
    while without.startswith("\ufffd") and len(context) < len(before):
        context = list(before[-2 * len(context) :])
        without = str(tokenizer.decode(context, clean_up_tokenization_spaces=False))
    together = str(tokenizer.decode([*context, *fill], clean_up_tokenization_spaces=False))
    if together.startswith(without):
        return together[len(without) :]
    return str(tokenizer.decode(list(fill), clean_up_tokenization_spaces=False))


def fill_text(tokenizer: PreTrainedTokenizerBase, span: Span) -> str:
    """Return the text of a span, without what a rule cut off and without its healed ends, which are context."""
    text = decode_fill(tokenizer, span.before, span.token_ids)[: span.text_length]
    return text[len(span.healed.start) : max(len(text) - len(span.healed.end), 0)]


def token_texts(tokenizer: PreTrainedTokenizerBase, span: Span, text: str, *, start: int = 0) -> list[str]:
    """Return what each token of a complete span adds to its text, of which `start` characters were trimmed."""
    whole = decode_fill(tokenizer, span.before, span.token_ids)
    first = len(span.healed.start) + start
    ends, end = [], 0
    for count in range(1, len(span.token_ids) + 1):
        so_far = decode_fill(tokenizer, span.before, span.token_ids[:count])
        if whole.startswith(so_far):  # otherwise it ends inside a character
            end = len(so_far)
        ends.append(min(max(end - first, 0), len(text)))
    return [text[start:end] for start, end in pairwise([0, *ends])]


def trim_overlap(fill: str, *, before: str, after: str) -> str:
    """Remove from a fill what repeats the end of the text before it or the beginning of the text after it.

    Only whole words and punctuation marks count, at least one word among them: letters or a full stop that happen to
    be the same stay. White space between fill and context stays with the context.

    Example:

        >>> trim_overlap("the red apple for lunch", before="She ate the", after=" for lunch.")
        ' red apple'
    """
    count = _longest_overlap(WORDS.findall(before), WORDS.findall(fill))
    if count:
        fill = fill[[match.end() for match in WORDS.finditer(fill)][count - 1] :]
        if before[-1:].isspace():
            fill = fill.lstrip()
    count = _longest_overlap(WORDS.findall(fill), WORDS.findall(after))
    if count:
        fill = fill[: [match.start() for match in WORDS.finditer(fill)][-count]]
        if after[:1].isspace():
            fill = fill.rstrip()
    return fill


def _longest_overlap(left: list[str], right: list[str]) -> int:
    """Count the words at the end of `left` that begin `right`; 0 if none of them has letters or digits."""
    for count in range(min(len(left), len(right)), 0, -1):
        if left[-count:] == right[:count] and any(word[0].isalnum() for word in right[:count]):
            return count
    return 0


__all__ = ["Fill", "Healed", "Healing", "Span", "SpanLayout", "SpanRow", "check_healing", "continuation_ids",
           "cuts_a_character", "decode_fill", "fill_ids", "fill_text", "fitting_tokens", "healing_tokens", "lay_out",
           "read_vocabulary", "round_up", "space_to_heal", "split_at_marks", "split_at_ranges", "token_texts",
           "trim_overlap"]  # fmt: skip
