"""Texts with gaps to token rows and back: positions that stay free, and texts that join exactly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modeling_magnet.gaps_magnet import Seam, continuation_ids, decode_fill, lay_out, space_to_heal
from tests.space_run_tokenizer import space_run_tokenizer

# Letters, white space, digits, signs, accents, two scripts beyond Latin, an emoji of two code points.
CHARACTERS = "abst T.,'\"09-\n\té ßñ日本ж🙂👍🏽"


@pytest.fixture(scope="module")
def tokenizer(real_llama):
    return AutoTokenizer.from_pretrained(real_llama)


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=150, deadline=None)
@given(before=st.text(CHARACTERS, min_size=1, max_size=12), after=st.text(CHARACTERS, max_size=12))
def test_any_text_continues_any_other_exactly(tokenizer, before, after):
    joined = plain(tokenizer, before) + continuation_ids(tokenizer, after)
    assert tokenizer.decode(joined, clean_up_tokenization_spaces=False) == before + after


@settings(max_examples=150, deadline=None)
@given(text=st.text(CHARACTERS, min_size=2, max_size=20), data=st.data())
def test_what_stood_in_a_gap_is_written_back_exactly(tokenizer, text, data):
    """Cut tokens out of a text and decode them as a fill: the parts join to the text."""
    ids = plain(tokenizer, text)
    start = data.draw(st.integers(0, len(ids)))
    end = data.draw(st.integers(start, len(ids)))
    prefix = tokenizer.decode(ids[:start], clean_up_tokenization_spaces=False)
    rest = decode_fill(tokenizer, ids[:start], ids[start:])
    if "\ufffd" not in prefix + rest:  # the cut did not go through a character
        assert prefix + rest == text
    fill, suffix = decode_fill(tokenizer, ids[:start], ids[start:end]), decode_fill(tokenizer, ids[:end], ids[end:])
    if "\ufffd" not in prefix + fill + suffix:
        assert prefix + fill + suffix == text


@settings(max_examples=150, deadline=None)
@given(before=st.text("a 日本ж🙂", min_size=1, max_size=30), fill=st.text("a 日本ж🙂", max_size=6))
def test_a_fill_of_whole_characters_is_written_as_it_is(tokenizer, before, fill):
    assert decode_fill(tokenizer, plain(tokenizer, before), continuation_ids(tokenizer, fill)) == fill


def test_a_fill_behind_a_split_character_keeps_its_space(stories260k):
    """Byte tokens in front of a fill must not swallow the fill's own bytes or spaces."""
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    before = plain(tokenizer, "日本")
    fill = plain(tokenizer, "日本 was")[len(before) :]
    assert decode_fill(tokenizer, before, fill) == " was"
    broken = tokenizer.convert_tokens_to_ids(["<0xE6>"])
    assert decode_fill(tokenizer, before, broken + fill) == "\ufffd was"


def test_a_continuation_has_no_bos_and_no_dummy_space(stories260k):
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    assert tokenizer.convert_ids_to_tokens(plain(tokenizer, "the cat"))[0].startswith("▁")
    assert not tokenizer.convert_ids_to_tokens(continuation_ids(tokenizer, "the cat"))[0].startswith("▁")
    assert continuation_ids(tokenizer, " the cat") == plain(tokenizer, "the cat")
    assert continuation_ids(tokenizer, "") == []


def test_gaps_keep_their_positions_free(tiny_tokenizer):
    ids = {text: plain(tiny_tokenizer, text) for text in ("ab", "cd", "e")}
    assert all(ids.values())
    text = lay_out(tiny_tokenizer, ["ab", "cd", "e"], gap_lengths=[3, 2], context_length=64)
    first, second, third = map(len, ids.values())
    assert text.token_ids == [1, *ids["ab"], *ids["cd"], *ids["e"]]
    starts = [1 + first, 1 + first + 3 + second]
    assert text.gap_starts == starts
    assert text.gap_lengths == [3, 2]
    assert text.predictors == [first, first + second]
    free = {*range(starts[0], starts[0] + 3), *range(starts[1], starts[1] + 2)}
    assert text.positions == [p for p in range(1 + first + second + third + 5) if p not in free]
    assert text.length == len(text.token_ids) + 5


def test_the_very_first_token_may_be_missing(tiny_tokenizer):
    text = lay_out(tiny_tokenizer, ["", "cd"], gap_lengths=[2], context_length=64)
    assert (text.token_ids[0], text.positions[:2], text.gap_starts, text.predictors) == (1, [0, 3], [1], [0])


@pytest.mark.parametrize(
    ("pieces", "gap_lengths", "message"),
    [
        (["", ""], [4], "no text around the gap.*Use `model.generate`"),
        (["a", "b"], [0], r"Gaps of \[0\] tokens.*at least 1"),
        (["a", "b", "c"], [2, -1], r"Gaps of \[2, -1\] tokens"),
        (["a", "", "c"], [2, 2], "Nothing stands between gap 1 and the next"),
        (["a", "b"], [62], r"need 65 positions \(3 tokens of context and gaps of \[62\]\); the model has 64"),
    ],
)
def test_gaps_that_cannot_be_are_named(tiny_tokenizer, pieces, gap_lengths, message):
    with pytest.raises(ValueError, match=message):
        lay_out(tiny_tokenizer, pieces, gap_lengths=gap_lengths, context_length=64)


def test_the_longest_gap_that_fits_is_allowed(tiny_tokenizer):
    assert lay_out(tiny_tokenizer, ["a", "b"], gap_lengths=[61], context_length=64).length == 64


def test_an_empty_prefix_needs_a_bos(tiny_tokenizer):
    without_bos = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer, eos_token="</s>")
    with pytest.raises(ValueError, match="prefix is empty and the tokenizer has no BOS"):
        lay_out(without_bos, ["", "b"], gap_lengths=[2], context_length=64)


@pytest.mark.parametrize(
    ("piece", "healed"),
    [
        ("She ate ", " "),
        ("x = ", " "),
        ("def f():\n    ", ""),
        ("if x:\n  ", ""),
        ("One.  ", ""),
        ("if x:\n\t ", " "),
        ("if x:\n\t\t", ""),
        ("    ", ""),
        ("", ""),
        ("no space", ""),
    ],
)
def test_a_space_is_healed_where_the_tokenizer_joins_it_with_a_word(piece, healed):
    """Runs of two and four spaces are tokens of this vocabulary; one space belongs to the letter behind it."""
    tokenizer = space_run_tokenizer()
    for is_first in (True, False):
        assert space_to_heal(tokenizer, piece, is_first=is_first) == healed
    layout = lay_out(tokenizer, [piece + "[", "b"], gap_lengths=[2], context_length=64, heal="space")
    assert layout.seams == [Seam()]


@pytest.mark.parametrize("indent", ["    ", "  ", "        "])
def test_indentation_keeps_the_tokens_that_it_has_in_code(indent):
    """Around the blank stand the very tokens of the whole text."""
    tokenizer = space_run_tokenizer()
    prefix, fill, suffix = f"def area(width):\n{indent}", "area = width", f"\n{indent}return area\n"
    layout = lay_out(tokenizer, [prefix, suffix], gap_lengths=[9], context_length=256, heal="space")
    cut = layout.predictors[0] + 1
    inner = continuation_ids(tokenizer, layout.seams[0].start + fill)
    row = [*layout.token_ids[1:cut], *inner, *layout.token_ids[cut:]]
    assert row == plain(tokenizer, prefix + fill + suffix)


def test_a_vocabulary_without_runs_heals_one_space_of_indentation(wiki_7m):
    """Byte-level BPE puts the last of several spaces into the next word's token, whatever stands in front of it."""
    tokenizer = AutoTokenizer.from_pretrained(wiki_7m)
    prefix, fill = "def f(x):\n    ", "return x"
    layout = lay_out(tokenizer, [prefix, ""], gap_lengths=[4], context_length=256, heal="space")
    assert layout.seams == [Seam(start=" ")]
    assert layout.token_ids[1:] + continuation_ids(tokenizer, " " + fill) == plain(tokenizer, prefix + fill)


def test_characters_alone_are_not_healed(babyllama):
    assert space_to_heal(AutoTokenizer.from_pretrained(babyllama), "the cat ", is_first=True) == ""
