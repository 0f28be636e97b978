"""Marks and ranges to the pieces around gaps: nothing of the text is lost, and what cannot be is named."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_magnet.blanks_magnet import cuts_a_character, split_at_marks, split_at_ranges

CHARACTERS = "ab [blank]\\\n日🙂"


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(st.text(CHARACTERS, max_size=8), min_size=2, max_size=5))
def test_escaped_pieces_around_marks_come_back(pieces):
    """A backslash in front of a mark makes it text; those that stand there themselves are doubled."""
    pieces = [piece.replace("[blank]", "") for piece in pieces]
    pieces[0] = "say [blank] " + pieces[0]

    def escape(piece, *, before_a_mark):
        piece = re.sub(r"(\\*)\[blank\]", r"\1\1\\[blank]", piece)
        ending = len(piece) - len(piece.rstrip("\\"))
        return piece + "\\" * ending if before_a_mark else piece

    marked = "[blank]".join(
        escape(piece, before_a_mark=number < len(pieces) - 1) for number, piece in enumerate(pieces)
    )
    assert split_at_marks(marked, "[blank]", name="text") == pieces


@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1, max_size=20), data=st.data())
def test_ranges_take_out_what_they_name(text, data):
    places = sorted(
        data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=6).filter(lambda x: len(x) % 2 == 0))
    )
    ranges = list(zip(places[::2], places[1::2], strict=True))
    if any(cuts_a_character(text, place) for place in places):
        with pytest.raises(ValueError, match="cuts a character"):
            split_at_ranges(text, ranges, name="text")
        return
    pieces = split_at_ranges(text, ranges, name="text")
    filled = pieces[0]
    for (start, end), piece in zip(ranges, pieces[1:], strict=True):
        filled += text[start:end] + piece
    assert filled == text


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("e\u0301a", 1),
        ("👍🏽", 1),
        ("👩\u200d🚀", 1),
        ("👩\u200d🚀", 2),
        ("a\r\nb", 2),
        ("❤\ufe0f", 1),
        ("🇩🇪", 1),
        ("🇩🇪🇫🇷", 3),
        ("\u1112\u1161\u11ab", 2),
    ],  # fmt: skip
)
def test_a_character_of_several_code_points_is_not_cut(text, place):
    assert cuts_a_character(text, place)
    with pytest.raises(ValueError, match=rf"cuts a character at {place}"):
        split_at_ranges(text, [(0, place)], name="text")
    assert not cuts_a_character(text, 0)
    assert not cuts_a_character(text, len(text))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([], r"The ranges of text are \[\]"),
        (5, "The ranges of text are 5"),
        ("ab", "The ranges of text are 'ab'"),
        ([(2, 1)], r"Range \(2, 1\) does not fit text; expected 0 <= start <= end <= 5"),
        ([(-1, 2)], r"Range \(-1, 2\) does not fit"),
        ([(0, 6)], "<= 5, its length"),
        ([(0, 3), (2, 4)], r"\(0, 3\) and \(2, 4\) of text overlap or are out of order"),
        ([(3, 4), (0, 1)], "overlap or are out of order"),
        ([(1.0, 2)], r"\(1.0, 2\) is no range of text"),
        ([3], "3 is no range of text"),
        ([(1, 2, 3)], r"\(1, 2, 3\) is no range"),
    ],
)
def test_ranges_that_cannot_be_are_named(ranges, message):
    with pytest.raises(ValueError, match=message):
        split_at_ranges("abcde", ranges, name="text")


@pytest.mark.parametrize(
    ("text", "blank", "message"),
    [
        ("no mark", "[blank]", r"text has no blank '\[blank\]'\. Mark"),
        ("only \\[blank] text", "[blank]", r"has no blank '\[blank\]' but behind a backslash"),
        ("a", "", "`blank` is ''"),
        ("a", None, "`blank` is None"),
    ],
)
def test_marks_that_cannot_be_are_named(text, blank, message):
    with pytest.raises(ValueError, match=message):
        split_at_marks(text, blank, name="text")
