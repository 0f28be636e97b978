"""Text with gaps -> token rows that keep the gaps' positions free, and fills back to text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from numbers import Integral
from typing import Literal

from transformers import PreTrainedTokenizerBase

from .tokenization_magnet import front_tokens, special_ids, text_ids

# Texts that tokenise to themselves in front of nearly anything, tried in turn to hide a text's beginning.
ANCHORS = ("\n", "a", "0", ".", " ")
# Stands for the word behind a space.
FOLLOWING_LETTER = "a"
# Tokens in front of a fill that can change how its first token is written; more where these begin inside a character.
DECODE_CONTEXT = 8


Healing = Literal["space", "token"]


@dataclass(frozen=True)
class Seam:
    """What a fill has to begin and end with, because it was taken from the context: see `lay_out`."""

    start: str = ""
    end: str = ""


@dataclass(frozen=True, kw_only=True)
class GappedText:
    """The context tokens of one text, where its gaps are, and what stands in them already.

    Args:
        pieces (`list[list[int]]`): Tokens in front of the first gap (BOS first), between gaps, behind the last one.
        gap_lengths (`list[int]`): Positions that each gap keeps free.
        filled (`list[list[int]]`): Tokens at the beginning of each gap that are context by now.
        seams (`list[Seam]`): Both ends of each gap.
    """

    pieces: list[list[int]]
    gap_lengths: list[int]
    filled: list[list[int]]
    seams: list[Seam]

    @cached_property
    def token_ids(self) -> list[int]:
        """Context tokens in order."""
        return [token for run in self._runs() for token in run]

    @cached_property
    def positions(self) -> list[int]:
        """Their positions, which leave out what is free of the gaps."""
        positions = list(range(len(self.pieces[0])))
        next_position = len(positions)
        for filled, length, piece in zip(self.filled, self.gap_lengths, self.pieces[1:], strict=True):
            positions += range(next_position, next_position + len(filled))
            next_position += length
            positions += range(next_position, next_position + len(piece))
            next_position += len(piece)
        return positions

    @cached_property
    def predictors(self) -> list[int]:
        """Index into `token_ids` of the token before each gap's free part, whose output predicts the next token."""
        ends = list(accumulate(map(len, self._runs())))
        return [end - 1 for end in ends[1::2]]

    @property
    def gap_starts(self) -> list[int]:
        """Position of the first free token of each gap."""
        return [self.positions[index] + 1 for index in self.predictors]

    @property
    def length(self) -> int:
        """Positions of the whole text."""
        return sum(map(len, self.pieces)) + sum(self.gap_lengths)

    def _runs(self) -> list[list[int]]:
        """Pieces and what stands in the gaps, in turn."""
        runs = [self.pieces[0]]
        for filled, piece in zip(self.filled, self.pieces[1:], strict=True):
            runs += [filled, piece]
        return runs


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, split_special_tokens: bool = True) -> list[int]:
    """Token ids of a text that continues another: no BOS and no dummy space in front.

    SentencePiece vocabularies put a space before whatever they are given. The text is therefore tokenised behind an
    anchor whose own tokens are then cut off. Control tokens that stand in it are text: see `read_texts`.

    Raises:
        ValueError: every anchor merges with the text's first characters.
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
    """Token ids of a fill behind a prefix; behind none it begins a text.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        fill (`str`): The fill.
        prefix (`str`): The text in front of it.
        split_special_tokens (`bool`, defaults to `True`): See `read_texts`.
    """
    read = continuation_ids if prefix else text_ids
    return read(tokenizer, fill, split_special_tokens=split_special_tokens)


def space_to_heal(
    tokenizer: PreTrainedTokenizerBase, piece: str, *, is_first: bool, split_special_tokens: bool = True
) -> str:
    """Return the space at the end of a piece that belongs to the first token of the fill, or nothing.

    The tokenizer decides: the space is healed only where the piece's own tokens change once a letter follows.
    Vocabularies with tokens for runs of spaces keep indentation apart from the word after it, and a space that was
    taken from such a run would leave the model with a width that no text has.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        piece (`str`): The text in front of a gap.
        is_first (`bool`): Whether it begins the text, and not behind another gap.
        split_special_tokens (`bool`, defaults to `True`): See `read_texts`.
    """
    if not piece.endswith(" ") or not piece.strip():
        return ""
    prefix = "" if is_first else ANCHORS[0]
    alone, followed = (
        fill_ids(tokenizer, text, prefix=prefix, split_special_tokens=split_special_tokens)
        for text in (piece, piece + FOLLOWING_LETTER)
    )
    return "" if followed[: len(alone)] == alone else " "


def lay_out(
    tokenizer: PreTrainedTokenizerBase,
    pieces: Sequence[str],
    *,
    gap_lengths: Sequence[int],
    context_length: int,
    heal: Healing | None = None,
    split_special_tokens: bool = True,
) -> GappedText:
    """Tokenise the pieces of a text around its gaps and leave the gaps' positions free.

    Words begin with their space in the usual vocabularies: text that ends in a space, as in front of a blank in a
    sentence, is nothing they were trained on. With `heal="space"` that last space is taken into the gap, and the fill
    has to begin with it, where the tokenizer would put it into the next word's token; see `space_to_heal`. With
    `heal="token"` one token on either side of a gap is taken into it and spelt anew, so that a gap may begin and end
    inside a word.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        pieces (`Sequence[str]`): The text in front of the first gap, between gaps, and behind the last one.
        gap_lengths (`Sequence[int]`): Tokens to fill into each gap, one fewer than pieces.
        context_length (`int`): Positions the model has.
        heal (`str`, *optional*): `"space"` or `"token"`, how to heal the seams.
        split_special_tokens (`bool`, defaults to `True`): Read control tokens that stand in a piece as text.

    Raises:
        ValueError: nothing around the gaps, neighbouring gaps, a gap without length, or a text that is too long.
    """
    if not any(pieces):
        raise ValueError("There is no text around the gap: prefix and suffix are empty. Use `model.generate`.")
    if not all(isinstance(n, Integral) and not isinstance(n, bool) and n >= 1 for n in gap_lengths):
        raise ValueError(f"Gaps of {list(gap_lengths)} tokens were asked for; each needs an integer of at least 1.")
    seams = [Seam() for _ in gap_lengths]
    if heal == "space":
        starts = [
            space_to_heal(tokenizer, piece, is_first=not index, split_special_tokens=split_special_tokens)
            for index, piece in enumerate(pieces[:-1])
        ]
        seams = [Seam(start=start) for start in starts]
        bare = [piece.removesuffix(start) for piece, start in zip(pieces, starts, strict=False)]
        pieces = [*bare, pieces[-1]]
    first = text_ids(tokenizer, pieces[0], split_special_tokens=split_special_tokens)
    others = [continuation_ids(tokenizer, one, split_special_tokens=split_special_tokens) for one in pieces[1:]]
    token_ids = [[*front_tokens(tokenizer), *first], *others]
    if not token_ids[0]:
        raise ValueError("The prefix is empty and the tokenizer has no BOS token to predict from. Pass a prefix.")
    for index, ids in enumerate(token_ids[1:-1], start=1):
        if not ids:
            raise ValueError(f"Nothing stands between gap {index} and the next. Make them one longer gap.")
    special = special_ids(tokenizer) - {tokenizer.unk_token_id}
    for piece, ids in zip(pieces, [first, *token_ids[1:]], strict=True):
        rest = [token_id for token_id in ids if token_id not in special]
        if len(rest) < len(ids) and not str(tokenizer.decode(rest)).strip():
            raise ValueError(f"{piece!r} beside a gap has special tokens alone. Pass text, or nothing at all.")
    if heal == "token":
        seams = [
            _take_back(tokenizer, token_ids[index], token_ids[index + 1], is_last=index == len(gap_lengths) - 1)
            for index in range(len(gap_lengths))
        ]
    text = GappedText(
        pieces=token_ids, gap_lengths=list(map(int, gap_lengths)), filled=[[] for _ in gap_lengths], seams=seams
    )
    if text.length > context_length:
        raise ValueError(
            f"Text and gaps need {text.length} positions ({len(text.token_ids)} tokens of context and gaps of "
            f"{list(gap_lengths)}); the model has {context_length}. Shorten the text or the gaps."
        )
    return text


def _take_back(tokenizer: PreTrainedTokenizerBase, before: list[int], after: list[int], *, is_last: bool) -> Seam:
    """Take back the token in front of a gap and the one behind it; returns their texts.

    A token is needed in front of every gap, to predict from. Special tokens and parts of characters stay.
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
    return Seam(start, end)


def decode_fill(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], fill: Sequence[int]) -> str:
    """The text that the fill adds behind the tokens before it.

    A fill decoded alone would lose the space that SentencePiece decoders strip from a text's beginning.

    Args:
        before (`Sequence[int]`): Tokens in front of the gap, special tokens left out.
        fill (`Sequence[int]`): Tokens of the fill.
    """
    context = list(before[-DECODE_CONTEXT:])
    without = str(tokenizer.decode(context, clean_up_tokenization_spaces=False))
    # Byte tokens that begin inside a character garble every byte token behind them, the fill's own included.
    while without.startswith("\ufffd") and len(context) < len(before):
        context = list(before[-2 * len(context) :])
        without = str(tokenizer.decode(context, clean_up_tokenization_spaces=False))
    together = str(tokenizer.decode([*context, *fill], clean_up_tokenization_spaces=False))
    if together.startswith(without):
        return together[len(without) :]
    return str(tokenizer.decode(list(fill), clean_up_tokenization_spaces=False))


__all__ = ["GappedText", "Healing", "Seam", "continuation_ids", "decode_fill", "fill_ids", "lay_out", "space_to_heal"]
