"""Text with gaps -> token rows that keep the gaps' positions free, and fills back to text."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from transformers import PreTrainedTokenizerBase

from .texts_magnet import front_tokens

# Texts that tokenise to themselves in front of nearly anything, tried in turn to hide a text's beginning.
ANCHORS = ("\n", "a", "0", ".", " ")
# Tokens in front of a fill that can change how its first token is written; more where these begin inside a character.
DECODE_CONTEXT = 8


@dataclass(frozen=True, kw_only=True)
class GappedText:
    """The context tokens of one text and where its gaps are.

    Args:
        token_ids (`list[int]`): Context tokens in order, BOS in front.
        positions (`list[int]`): Their positions, which leave out those of the gaps.
        gap_starts (`list[int]`): Position of the first token of each gap.
        gap_lengths (`list[int]`): Tokens to fill into each gap.
        predictors (`list[int]`): Index into `token_ids` of the token before each gap, whose output predicts the
            gap's first token.
    """

    token_ids: list[int]
    positions: list[int]
    gap_starts: list[int]
    gap_lengths: list[int]
    predictors: list[int]

    @property
    def length(self) -> int:
        """Tokens of the whole text once it is filled."""
        return len(self.token_ids) + sum(self.gap_lengths)


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that continues another: no BOS and no dummy space in front.

    SentencePiece vocabularies put a space before whatever they are given. The text is therefore tokenised behind an
    anchor whose own tokens are then cut off.

    Raises:
        ValueError: every anchor merges with the text's first characters.
    """
    if not text:
        return []
    for anchor in ANCHORS:
        anchor_ids = tokenizer(anchor, add_special_tokens=False)["input_ids"]
        ids = tokenizer(anchor + text, add_special_tokens=False, verbose=False)["input_ids"]
        if anchor_ids and ids[: len(anchor_ids)] == anchor_ids and tokenizer.unk_token_id not in anchor_ids:
            return ids[len(anchor_ids) :]
    raise ValueError(f"The tokenizer cannot continue a text with {text!r:.40}. Begin it with another character.")


def lay_out(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], *, gap_lengths: Sequence[int], context_length: int
) -> GappedText:
    """Tokenise the pieces of a text around its gaps and leave the gaps' positions free.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        pieces (`Sequence[str]`): The text in front of the first gap, between gaps, and behind the last one.
        gap_lengths (`Sequence[int]`): Tokens to fill into each gap, one fewer than pieces.
        context_length (`int`): Positions the model has.

    Raises:
        ValueError: nothing around the gaps, neighbouring gaps, a gap without length, or a text that is too long.
    """
    if not any(pieces):
        raise ValueError("There is no text around the gap: prefix and suffix are empty. Use `model.generate`.")
    if not all(isinstance(length, Integral) and length >= 1 for length in gap_lengths):
        raise ValueError(f"Gaps of {list(gap_lengths)} tokens were asked for; each needs an integer of at least 1.")
    token_ids = front_tokens(tokenizer)
    token_ids += tokenizer(pieces[0], add_special_tokens=False, verbose=False)["input_ids"] if pieces[0] else []
    if not token_ids:
        raise ValueError("The prefix is empty and the tokenizer has no BOS token to predict from. Pass a prefix.")
    positions = list(range(len(token_ids)))
    starts: list[int] = []
    predictors: list[int] = []
    next_position = len(token_ids)
    for index, (piece, gap_length) in enumerate(zip(pieces[1:], gap_lengths, strict=True)):
        starts.append(next_position)
        predictors.append(len(token_ids) - 1)
        next_position += gap_length
        piece_ids = continuation_ids(tokenizer, piece)
        if not piece_ids and index < len(gap_lengths) - 1:
            raise ValueError(f"Nothing stands between gap {index + 1} and the next. Make them one longer gap.")
        token_ids += piece_ids
        positions += range(next_position, next_position + len(piece_ids))
        next_position += len(piece_ids)
    if next_position > context_length:
        raise ValueError(
            f"Text and gaps need {next_position} positions ({len(token_ids)} tokens of context and gaps of "
            f"{list(gap_lengths)}); the model has {context_length}. Shorten the text or the gaps."
        )
    return GappedText(
        token_ids=token_ids,
        positions=positions,
        gap_starts=starts,
        gap_lengths=list(gap_lengths),
        predictors=predictors,
    )


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


__all__ = ["GappedText", "continuation_ids", "decode_fill", "lay_out"]
