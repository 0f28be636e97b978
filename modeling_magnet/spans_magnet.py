"""From blanks in a text to spans of tokens with reserved positions, and from decoded spans back to text.

In the order of a call: split a text at its blanks; tokenize the parts and reserve positions for the spans; decode
spans so that their text joins its surroundings exactly.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

from transformers import PreTrainedTokenizerBase

from .tokenization_magnet import bos_ids, special_ids, text_ids

ESCAPE = "\\"

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


@dataclass(kw_only=True)
class SpanLayout:
    """The context tokens of one text and the positions that are reserved for its spans."""

    parts: list[list[int]]  # tokens before the first span (BOS first), between spans, and after the last one
    span_lengths: list[int]  # positions reserved for each span
    filled: list[list[int]]  # tokens at the beginning of each span that have become context
    healed: list[Healed]
    token_ids: list[int] = field(init=False)  # context tokens in order
    positions: list[int] = field(init=False)  # of the context tokens; those of free parts of spans are left out
    predictors: list[int] = field(init=False)  # for each span, which context token's output predicts its next token
    span_starts: list[int] = field(init=False)  # position of the first free token of each span
    length: int = field(init=False)  # positions of the whole text

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
    """One answer to one blank while it is decoded."""

    blank: int  # index of the blank in its text
    before: list[int]  # context tokens before it, without special tokens and without other spans
    length: int  # most tokens it may have
    number: int  # its number in the call, which selects its random numbers
    rank: int = 0  # greedy answers to one blank begin with different tokens: 0 with the likeliest, 1 with the next
    healed: Healed = Healed()
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_full: bool = False  # takes no further token: its length is reached, or a rule ended it
    is_possible: bool = True  # false once a token was not allowed: then it is not an answer
    text_length: int | None = None  # characters of its text to keep, if a rule ended it inside a token


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
        ValueError: no range, one outside the text, or ranges that overlap or are out of order.

    Example:

        >>> split_at_ranges("She ate the apple.", [(8, 11)], name="text")
        ['She ate ', ' apple.']
    """
    edges = [0, *(edge for start, end in ranges for edge in (start, end)), len(text)]
    if len(edges) == 2 or edges != sorted(edges):
        raise ValueError(
            f"The ranges of {name} are {ranges!r:.80}; expected ascending pairs (start, end) of characters, 0 to "
            f"{len(text)}, that do not overlap."
        )
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


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
    read = text_ids if is_first else continuation_ids
    alone = read(tokenizer, part, split_special_tokens=split_special_tokens)
    followed = read(tokenizer, part + "a", split_special_tokens=split_special_tokens)
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
        ValueError: nothing around the blanks, adjacent blanks, or a text that is too long.
    """
    if heal not in (None, *get_args(Healing)):
        raise ValueError(f"`heal` is {heal!r}; expected 'space', 'token' or None.")
    if not any(parts):
        raise ValueError("There is no text around the blank: prefix and suffix are empty. Use `model.generate`.")
    healed = [Healed() for _ in span_lengths]
    if heal == "space":
        spaces = [
            space_to_heal(tokenizer, part, is_first=not index, split_special_tokens=split_special_tokens)
            for index, part in enumerate(parts[:-1])
        ]
        healed = [Healed(start=space) for space in spaces]
        parts = [*map(str.removesuffix, parts[:-1], spaces), parts[-1]]
    token_ids = [text_ids(tokenizer, parts[0], split_special_tokens=split_special_tokens)]
    token_ids += [continuation_ids(tokenizer, part, split_special_tokens=split_special_tokens) for part in parts[1:]]
    special = special_ids(tokenizer) - {tokenizer.unk_token_id}
    front = bos_ids(tokenizer)
    _check_parts(tokenizer, parts, token_ids, special=special, has_front=bool(front))
    token_ids[0] = [*front, *token_ids[0]]
    if heal == "token":
        neighbours = enumerate(pairwise(token_ids), start=2)
        healed = [_take_back(tokenizer, *pair, is_last=index == len(token_ids)) for index, pair in neighbours]
    layout = SpanLayout(
        parts=token_ids, span_lengths=list(map(int, span_lengths)), filled=[[] for _ in span_lengths], healed=healed
    )
    if layout.length > context_length:
        raise ValueError(
            f"Text and fills need {layout.length} positions ({len(layout.token_ids)} tokens of context and fills of "
            f"{list(span_lengths)}); the limit of the model or of `max_length` is {context_length}. Shorten them."
        )
    return layout


def _check_parts(
    tokenizer: PreTrainedTokenizerBase,
    parts: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    *,
    special: frozenset[int],
    has_front: bool,
) -> None:
    """Refuse parts that a model cannot predict from."""
    if not token_ids[0] and not has_front:
        raise ValueError("The prefix is empty and the tokenizer has no BOS token to predict from. Pass a prefix.")
    if not all(token_ids[1:-1]):
        raise ValueError("There is no text between two blanks. Make them one longer blank.")
    for part, ids in zip(parts, token_ids, strict=True):
        rest = [token_id for token_id in ids if token_id not in special]
        if len(rest) < len(ids) and not str(tokenizer.decode(rest)).strip():
            raise ValueError(f"{part!r} beside a blank has only special tokens. Pass text, or nothing at all.")


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


def round_up(length: int, multiple: int) -> int:
    """Return the next multiple."""
    return -(-length // multiple) * multiple


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
