"""Convert blanks in a text to spans of tokens with reserved positions, and decoded spans back to text.

The functions follow the order of a call: split a text at its blanks, tokenize the parts and reserve positions for the
spans, and decode the spans so that their text joins the surrounding text exactly.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

import torch
from transformers import PreTrainedTokenizerBase

from .tokenization_magnet import bos_ids, special_ids, text_ids

ESCAPE = "\\"

# Texts whose tokens rarely merge with the text after them. They are tried in turn, in front of a continuation.
ANCHORS = ("\n", "a", "0", ".", " ")
# Number of tokens before a fill that are decoded with it. More are used if these begin inside a character.
DECODE_CONTEXT = 8
WORDS = re.compile(r"\w+|[^\w\s]", re.UNICODE)

Healing = Literal["space", "token"]


@dataclass(frozen=True)
class Healed:
    """Text moved from the context into a span, whose tokens must spell it again; see `lay_out`."""

    start: str = ""
    end: str = ""


@dataclass(kw_only=True)
class SpanLayout:
    """The context tokens of one text and the positions that are reserved for its spans."""

    parts: list[list[int]]  # tokens before the first span (BOS first), between spans, and after the last one
    span_lengths: list[int]  # positions reserved for each span
    filled: list[list[int]]  # first tokens of each span, which have become context
    healed: list[Healed]
    token_ids: list[int] = field(init=False)  # context tokens in order
    positions: list[int] = field(init=False)  # of the context tokens, without the reserved positions
    predictors: list[int] = field(init=False)  # index of the context token that predicts the next token of each span
    span_starts: list[int] = field(init=False)  # position of the first free token of each span
    length: int = field(init=False)  # number of positions of the whole text

    def __post_init__(self) -> None:
        self.token_ids, self.predictors, self.span_starts = list(self.parts[0]), [], []
        self.length = len(self.token_ids)
        self.positions = list(range(self.length))
        for filled, length, part in zip(self.filled, self.span_lengths, self.parts[1:], strict=True):
            self.token_ids += [*filled, *part]
            self.predictors.append(len(self.token_ids) - len(part) - 1)
            self.span_starts.append(self.length + len(filled))
            self.positions += range(self.length, self.length + len(filled))
            self.length += length
            self.positions += range(self.length, self.length + len(part))
            self.length += len(part)


@dataclass(kw_only=True)
class Span:
    """One answer to one blank during decoding."""

    blank: int  # index of the blank in its text
    before: list[int]  # context tokens before the span, without special tokens and other spans
    length: int  # maximum number of tokens
    number: int  # index in the call, which selects the random generator
    rank: int = 0  # a greedy answer begins with the most likely token (0), the second most likely (1), and so on
    healed: Healed = Healed()
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_full: bool = False  # whether the span has its full length or a rule ended it
    is_possible: bool = True  # false once all tokens were excluded; such a span is not an answer
    text_length: int | None = None  # number of characters to keep, if a rule ended the span inside a token


@dataclass(frozen=True)
class SpanRow:
    """A row of context tokens and the spans decoded in it; each span sees the context but no other span."""

    layout: SpanLayout
    spans: list[Span]


@dataclass
class FilledText:
    """A text with its fills."""

    layout: SpanLayout  # before anything was filled
    spans: list[list[Span]]  # for each blank, its answers
    embedding: torch.Tensor | None = None  # (hidden_size,), of the text with its blanks


@dataclass
class Fill:
    """One answer to one blank.

    Args:
        text (`str`): The text to insert between the text before the blank and the text after it.
        token_ids (`list[int]`): The decoded or scored tokens. They spell more than `text` if a rule or `trim_overlap`
            shortened the text, or if tokens were healed.
        logprobs (`list[float]`): Log-probability of each token in nats under the model's own distribution, before
            temperature, truncation and processors.
        tokens (`list[str]`): The text that each token adds; joined, they equal `text`. A character of several
            tokens belongs to the last of them. Set with `return_dict_in_generate=True`.
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


# --- From a text to its parts around blanks.


def split_at_marks(text: str, blank: str, *, name: str) -> list[str]:
    r"""Split a text at its blanks. A backslash escapes a mark, and two backslashes are a backslash before a blank.

    Error messages refer to the text as `name`.

    Raises:
        ValueError: If the mark is empty or the text does not contain it.

    Example:

        >>> split_at_marks(r"Write \[blank] where [blank] is missing.", "[blank]", name="text")
        ['Write [blank] where ', ' is missing.']
    """
    if not isinstance(blank, str) or not blank:
        raise ValueError(f"`blank` is {blank!r}; expected a non-empty string, such as '[blank]'.")
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
        raise ValueError(f"{name} has no blank {blank!r}{escaped}. Add a blank, or pass `blank` or `ranges`.")
    return parts


def split_at_ranges(text: str, ranges: Sequence[tuple[int, int]], *, name: str) -> list[str]:
    """Split a text around half-open character ranges, which are removed. See `split_at_marks` for `name`.

    Raises:
        ValueError: If there is no range, or ranges are outside the text, overlap or do not ascend.

    Example:

        >>> split_at_ranges("She ate the apple.", [(8, 11)], name="text")
        ['She ate ', ' apple.']
    """
    edges = [0, *(edge for start, end in ranges for edge in (start, end)), len(text)]
    if len(edges) == 2 or edges != sorted(edges):
        raise ValueError(
            f"The ranges of {name} are {ranges!r:.80}; expected ascending pairs (start, end) of indices from 0 to "
            f"{len(text)} that do not overlap."
        )
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


# --- From parts to tokens, with positions reserved for the spans.


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, split_special_tokens: bool = True) -> list[int]:
    """Tokenize a text that continues another text, without BOS and without a dummy space in front.

    SentencePiece adds a space before any text. The text is therefore tokenized after an anchor, whose tokens are then
    removed.

    Raises:
        ValueError: If every anchor merges with the first characters of the text.
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
    """Tokenize a fill that continues a prefix, or begins a text if the prefix is empty."""
    tokenize = continuation_ids if prefix else text_ids
    return tokenize(tokenizer, fill, split_special_tokens=split_special_tokens)


def space_to_heal(
    tokenizer: PreTrainedTokenizerBase, part: str, *, is_first: bool, split_special_tokens: bool = True
) -> str:
    """Return the space before a blank if it belongs to the first token of the fill, otherwise `""`.

    The space moves only if the tokens of the part change when a letter follows. Vocabularies with tokens for runs of
    spaces separate indentation from the next word; moving one space out of such a run would leave an unusual width.
    """
    if not part.endswith(" ") or not part.strip():
        return ""
    tokenize = text_ids if is_first else continuation_ids
    ids = tokenize(tokenizer, part, split_special_tokens=split_special_tokens)
    followed = tokenize(tokenizer, part + "a", split_special_tokens=split_special_tokens)
    return "" if followed[: len(ids)] == ids else " "


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

    In most vocabularies words begin with a space, so a model has rarely seen a text that ends in one. `heal="space"`
    moves that space into the span (see `space_to_heal`). `heal="token"` moves one token on either side into the span,
    so that a blank may begin and end inside a word. The span must spell the moved text again.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        parts (`Sequence[str]`): The text before the first blank, between blanks, and after the last one.
        span_lengths (`Sequence[int]`): Number of tokens of each span, one number for each blank.
        context_length (`int`): Maximum number of positions.
        heal (`str`, *optional*): `"space"` or `"token"`.
        split_special_tokens (`bool`, defaults to `True`): Read special tokens in a part as characters.

    Raises:
        ValueError: If there is no text around the blanks, blanks are adjacent, or the text is too long.
    """
    if heal not in (None, *get_args(Healing)):
        raise ValueError(f"`heal` is {heal!r}; expected 'space', 'token' or None.")
    if not any(parts):
        raise ValueError("There is no text around the blank: prefix and suffix are empty. Use `model.generate`.")
    reading = {"split_special_tokens": split_special_tokens}
    healed = [Healed() for _ in span_lengths]
    if heal == "space":
        spaces = [
            space_to_heal(tokenizer, part, is_first=not index, **reading) for index, part in enumerate(parts[:-1])
        ]
        healed = [Healed(start=space) for space in spaces]
        parts = [*map(str.removesuffix, parts[:-1], spaces), parts[-1]]
    token_ids = [text_ids(tokenizer, parts[0], **reading)]
    token_ids += [continuation_ids(tokenizer, part, **reading) for part in parts[1:]]
    front = bos_ids(tokenizer)
    _check_parts(tokenizer, parts, token_ids, has_bos=bool(front))
    token_ids[0] = [*front, *token_ids[0]]
    if heal == "token":
        neighbors = enumerate(pairwise(token_ids), start=2)
        healed = [_move_tokens(tokenizer, *pair, is_last=index == len(token_ids)) for index, pair in neighbors]
    layout = SpanLayout(
        parts=token_ids, span_lengths=list(map(int, span_lengths)), filled=[[] for _ in span_lengths], healed=healed
    )
    if layout.length > context_length:
        raise ValueError(
            f"The text and its fills need {layout.length} positions ({len(layout.token_ids)} tokens of context and "
            f"fills of {list(span_lengths)}); the limit of the model or of `max_length` is {context_length}."
        )
    return layout


def _check_parts(
    tokenizer: PreTrainedTokenizerBase, parts: Sequence[str], token_ids: Sequence[Sequence[int]], *, has_bos: bool
) -> None:
    """Raise on parts that the model cannot predict a span from."""
    special = special_ids(tokenizer) - {tokenizer.unk_token_id}
    if not token_ids[0] and not has_bos:
        raise ValueError("The prefix is empty and the tokenizer has no BOS token to predict from. Pass a prefix.")
    if not all(token_ids[1:-1]):
        raise ValueError("There is no text between two blanks. Merge them into one blank.")
    for part, ids in zip(parts, token_ids, strict=True):
        rest = [token_id for token_id in ids if token_id not in special]
        if len(rest) < len(ids) and not str(tokenizer.decode(rest)).strip():
            raise ValueError(f"{part!r} next to a blank has only special tokens. Pass text or an empty string.")


def _move_tokens(tokenizer: PreTrainedTokenizerBase, before: list[int], after: list[int], *, is_last: bool) -> Healed:
    """Remove the tokens next to a blank from the context, in place, and return their texts for the span to spell.

    Special tokens and parts of characters stay. One token stays before every blank, because it predicts the span.
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


def round_up(length: int, multiple: int) -> int:
    """Round a length up to a multiple."""
    return -(-length // multiple) * multiple


# --- From decoded spans to text.


def decode_fill(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], fill: Sequence[int]) -> str:
    """Return the text that the tokens of a fill add to the tokens before them, which contain no special tokens.

    Decoding a fill by itself would lose the space that SentencePiece strips from the beginning of a text.
    """
    context = list(before[-DECODE_CONTEXT:])
    without = str(tokenizer.decode(context, clean_up_tokenization_spaces=False))
    # If the context begins inside a character, the bytes after it, including those of the fill, decode wrongly.
    while without.startswith("\ufffd") and len(context) < len(before):
        context = list(before[-2 * len(context) :])
        without = str(tokenizer.decode(context, clean_up_tokenization_spaces=False))
    together = str(tokenizer.decode([*context, *fill], clean_up_tokenization_spaces=False))
    if together.startswith(without):
        return together[len(without) :]
    return str(tokenizer.decode(list(fill), clean_up_tokenization_spaces=False))


def fill_text(tokenizer: PreTrainedTokenizerBase, span: Span) -> str:
    """Return the text of a span up to the end set by a rule, without its healed ends, which belong to the context."""
    text = decode_fill(tokenizer, span.before, span.token_ids)[: span.text_length]
    return text[len(span.healed.start) : max(len(text) - len(span.healed.end), 0)]


def token_texts(tokenizer: PreTrainedTokenizerBase, span: Span, text: str, *, start: int = 0) -> list[str]:
    """Return the part of `text` that each token of a complete span adds, after `start` trimmed characters."""
    whole = decode_fill(tokenizer, span.before, span.token_ids)
    first = len(span.healed.start) + start
    ends, end = [], 0
    for count in range(1, len(span.token_ids) + 1):
        so_far = decode_fill(tokenizer, span.before, span.token_ids[:count])
        if whole.startswith(so_far):  # otherwise the last token ends inside a character
            end = len(so_far)
        ends.append(min(max(end - first, 0), len(text)))
    return [text[start:end] for start, end in pairwise([0, *ends])]


def trim_overlap(fill: str, *, before: str, after: str) -> str:
    """Remove words from a fill that repeat the end of the text before it or the beginning of the text after it.

    Only whole words and punctuation marks are compared, and at least one must be a word, so that single letters or a
    full stop that match by chance stay. White space between the fill and its context stays with the context.

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
