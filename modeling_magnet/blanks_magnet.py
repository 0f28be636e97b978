"""Where a text has its blanks: marks in it, or ranges of characters. Strings only; nothing here knows of tokens."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

ESCAPE = "\\"
# Behind these, the next character belongs to the same sign: emoji that are joined into one.
ZERO_WIDTH_JOINER = "\u200d"
EMOJI_MODIFIERS = ("\U0001f3fb", "\U0001f3ff")
FLAG_LETTERS = ("\U0001f1e6", "\U0001f1ff")  # two of them are a flag
TAGS = ("\U000e0020", "\U000e007f")  # flags of regions
HANGUL_ENDINGS = ("\u1160", "\u11ff")  # vowels and last consonants of a syllable that is written in parts


def split_at_marks(text: str, blank: str, *, name: str) -> list[str]:
    """The pieces of a text around its marks; a mark behind a backslash is ordinary text, behind two a backslash's.

    Args:
        text (`str`): The text.
        blank (`str`): The mark.
        name (`str`): What to call the text in an error.

    Raises:
        ValueError: an empty mark, or a text without one.

    Example:

        >>> split_at_marks(r"Write \\[blank] where [blank] is missing.", "[blank]", name="text")
        ['Write [blank] where ', ' is missing.']
    """
    if not isinstance(blank, str) or not blank:
        raise ValueError(f"`blank` is {blank!r}; expected the mark of a gap, such as '[blank]'.")
    pieces = [""]
    for part in re.split(rf"(\\*{re.escape(blank)})", text):
        if not part.endswith(blank):
            pieces[-1] += part
            continue
        backslashes = len(part) - len(blank)
        pieces[-1] += ESCAPE * (backslashes // 2)
        if backslashes % 2:
            pieces[-1] += blank
        else:
            pieces.append("")
    if len(pieces) == 1:
        escaped = f" but behind a backslash, which makes it text ({ESCAPE + blank!r})" if blank in text else ""
        raise ValueError(f"{name} has no blank {blank!r}{escaped}. Mark the gap, or pass `blank=` or `ranges=`.")
    return pieces


def split_at_ranges(text: str, ranges: Sequence[tuple[int, int]], *, name: str) -> list[str]:
    """The pieces of a text around ranges of its characters, which are taken out.

    Args:
        text (`str`): The text.
        ranges (`Sequence[tuple[int, int]]`): Half-open ranges of characters, as `text[start:end]`, in ascending order;
            an empty one is a place where something is to be put in.
        name (`str`): What to call the text in an error.

    Raises:
        ValueError: no range, one that is none of this text, overlapping ones, or one that cuts a character as people
            see it: a letter off its accent, an emoji off its colour.

    Example:

        >>> split_at_ranges("She ate the apple.", [(8, 11)], name="text")
        ['She ate ', ' apple.']
    """
    if isinstance(ranges, str) or not isinstance(ranges, Sequence) or not len(ranges):
        raise ValueError(f"The ranges of {name} are {ranges!r}; expected a list of (start, end) in characters.")
    for one in ranges:
        if not isinstance(one, Sequence) or len(one) != 2 or not all(isinstance(place, Integral) for place in one):
            raise ValueError(f"{one!r} is no range of {name}; expected two whole numbers (start, end).")
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
    for (start, end), (next_start, next_end) in pairwise(ranges):
        if next_start < end or next_start < start:
            raise ValueError(
                f"Ranges ({start}, {end}) and ({next_start}, {next_end}) of {name} overlap or are out of order. Join "
                "or sort them."
            )
    edges = [0, *(place for one in ranges for place in one), len(text)]
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def cuts_a_character(text: str, place: int) -> bool:
    """Whether a cut in front of `text[place]` goes through what people see as one character.

    Combining marks, variation selectors, joined emoji, their skin colours, flags, Hangul in parts, and a line break of
    two characters.

    Example:

        >>> cuts_a_character("e\\u0301", 1), cuts_a_character("ab", 1)
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
        or HANGUL_ENDINGS[0] <= after <= HANGUL_ENDINGS[1]
        or TAGS[0] <= after <= TAGS[1]
        or unicodedata.category(after) in ("Mn", "Me", "Mc")
        or ZERO_WIDTH_JOINER in (before, after)
        or EMOJI_MODIFIERS[0] <= after <= EMOJI_MODIFIERS[1]
        or before + after == "\r\n"
    )


__all__ = ["cuts_a_character", "split_at_marks", "split_at_ranges"]
