"""Test blanks, reserved positions, token healing, and that fills join the text around them exactly."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.spans_magnet import (
    Healed,
    continuation_ids,
    decode_fill,
    lay_out,
    space_to_heal,
    split_at_marks,
    split_at_ranges,
    trim_overlap,
)
from tests.space_run_tokenizer import space_run_tokenizer

MARKED = "ab [blank]\\\n日🙂"


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.text(MARKED, max_size=8), min_size=2, max_size=5))
def test_splitting_inverts_escaping_and_joining(parts):
    """Escape marks with a backslash and double the backslashes before marks."""
    parts = [part.replace("[blank]", "") for part in parts]
    parts[0] = "say [blank] " + parts[0]

    def escape(part, *, before_a_mark):
        part = re.sub(r"(\\*)\[blank\]", r"\1\1\\[blank]", part)
        ending = len(part) - len(part.rstrip("\\"))
        return part + "\\" * ending if before_a_mark else part

    marked = "[blank]".join(escape(part, before_a_mark=number < len(parts) - 1) for number, part in enumerate(parts))
    assert split_at_marks(marked, "[blank]", name="text") == parts


@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1, max_size=20), data=st.data())
def test_parts_and_ranges_join_to_the_text(text, data):
    edges = sorted(
        data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=6).filter(lambda x: len(x) % 2 == 0))
    )
    ranges = list(zip(edges[::2], edges[1::2], strict=True))
    parts = split_at_ranges(text, ranges, name="text")
    filled = parts[0]
    for (start, end), part in zip(ranges, parts[1:], strict=True):
        filled += text[start:end] + part
    assert filled == text


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([], r"text are \[\]"),
        ([(2, 1)], r"text are \[\(2, 1\)"),
        ([(-1, 2)], r"\(-1, 2\)"),
        ([(0, 6)], r"\(0, 6\)"),
        ([(0, 3), (2, 4)], r"\(0, 3\).*\(2, 4\)"),
        ([(3, 4), (0, 1)], r"\(3, 4\).*\(0, 1\)"),
    ],
)
def test_invalid_ranges_raise(ranges, message):
    with pytest.raises(ValueError, match=message):
        split_at_ranges("abcde", ranges, name="text")


@pytest.mark.parametrize(
    ("text", "blank", "message"),
    [
        ("no mark", "[blank]", r"text .*'\[blank\]'"),
        ("only \\[blank] text", "[blank]", r"text .*'\[blank\]'.*backslash"),
        ("a", "", "`blank` is ''"),
        ("a", None, "`blank` is None"),
    ],
)
def test_invalid_marks_raise(text, blank, message):
    with pytest.raises(ValueError, match=message):
        split_at_marks(text, blank, name="text")


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
def test_decoding_a_removed_part_restores_the_text(tokenizer, text, data):
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


def test_a_fill_after_a_split_character_keeps_its_space(stories260k):
    """Byte tokens before a fill must not change the bytes or spaces of the fill."""
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


def test_spans_keep_their_positions_free(tiny_tokenizer):
    ids = {text: plain(tiny_tokenizer, text) for text in ("ab", "cd", "e")}
    assert all(ids.values())
    text = lay_out(tiny_tokenizer, ["ab", "cd", "e"], span_lengths=[3, 2], context_length=64)
    first, second, third = map(len, ids.values())
    assert text.token_ids == [1, *ids["ab"], *ids["cd"], *ids["e"]]
    starts = [1 + first, 1 + first + 3 + second]
    assert text.span_starts == starts
    assert text.span_lengths == [3, 2]
    assert text.predictors == [first, first + second]
    free = {*range(starts[0], starts[0] + 3), *range(starts[1], starts[1] + 2)}
    assert text.positions == [p for p in range(1 + first + second + third + 5) if p not in free]
    assert text.length == len(text.token_ids) + 5


def test_a_text_may_begin_with_a_blank(tiny_tokenizer):
    text = lay_out(tiny_tokenizer, ["", "cd"], span_lengths=[2], context_length=64)
    assert (text.token_ids[0], text.positions[:2], text.span_starts, text.predictors) == (1, [0, 3], [1], [0])


def test_an_empty_prefix_needs_a_bos(tiny_tokenizer):
    without_bos = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer, eos_token="</s>")
    with pytest.raises(ValueError, match="no BOS"):
        lay_out(without_bos, ["", "b"], span_lengths=[2], context_length=64)


@pytest.mark.parametrize(
    ("part", "healed"),
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
def test_a_space_is_healed_if_the_tokenizer_joins_it_with_a_word(part, healed):
    """Runs of two and four spaces are tokens of this vocabulary; one space belongs to the letter after it."""
    tokenizer = space_run_tokenizer()
    for is_first in (True, False):
        assert space_to_heal(tokenizer, part, is_first=is_first) == healed
    layout = lay_out(tokenizer, [part + "[", "b"], span_lengths=[2], context_length=64, heal="space")
    assert layout.healed == [Healed()]


@pytest.mark.parametrize("indent", ["    ", "  ", "        "])
def test_healing_keeps_the_tokens_of_indentation(indent):
    """The tokens around the blank equal those of the whole text."""
    tokenizer = space_run_tokenizer()
    prefix, fill, suffix = f"def area(width):\n{indent}", "area = width", f"\n{indent}return area\n"
    layout = lay_out(tokenizer, [prefix, suffix], span_lengths=[9], context_length=256, heal="space")
    cut = layout.predictors[0] + 1
    inner = continuation_ids(tokenizer, layout.healed[0].start + fill)
    row = [*layout.token_ids[1:cut], *inner, *layout.token_ids[cut:]]
    assert row == plain(tokenizer, prefix + fill + suffix)


def test_a_vocabulary_without_runs_heals_one_space_of_indentation(wiki_7m):
    """Byte-level BPE puts the last of several spaces into the next word's token, whatever comes before it."""
    tokenizer = AutoTokenizer.from_pretrained(wiki_7m)
    prefix, fill = "def f(x):\n    ", "return x"
    layout = lay_out(tokenizer, [prefix, ""], span_lengths=[4], context_length=256, heal="space")
    assert layout.healed == [Healed(start=" ")]
    assert layout.token_ids[1:] + continuation_ids(tokenizer, " " + fill) == plain(tokenizer, prefix + fill)


def test_a_character_vocabulary_is_not_healed(babyllama):
    assert space_to_heal(AutoTokenizer.from_pretrained(babyllama), "the cat ", is_first=True) == ""


@pytest.mark.parametrize(
    ("before", "fill", "after", "expected"),
    [
        ("She ate the", "the red apple", " for lunch.", " red apple"),
        ("She ate the ", "the red apple", " for lunch.", "red apple"),
        ("She ate", " an apple for lunch", " for lunch.", " an apple"),
        ("She ate", " an apple for lunch", "for lunch.", " an apple "),
        ("She ate the", " the apple for lunch.", " for lunch.", " apple"),
        ("She ate the", " red apple", " for lunch.", " red apple"),
        # Single letters and a full stop do not count as repetition.
        ("It is hot.", ". Then", " rain", ". Then"),
        ("a cat", "ate", " tea", "ate"),
        ("I think that", " that", " was all", ""),
        ("", " all", "", " all"),
        ("one two", "", " three", ""),
    ],
)
def test_whole_words_that_repeat_the_context_are_trimmed(before, fill, after, expected):
    assert trim_overlap(fill, before=before, after=after) == expected


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [("The little gi", "l went to the par"), ("Once up", "n a time"), ("She said hel", " to him.")],
)
def test_a_healed_fill_spells_the_text_on_both_sides(real_llama, prefix, suffix, do_sample):
    model = MagnetLlamaForCausalLM.from_pretrained(real_llama)
    for length in (4, 6):
        output = model.infill(
            prefix, suffix, max_new_tokens=length, heal="token", do_sample=do_sample, return_dict_in_generate=True
        )
        (((fill,),),) = output.fills
        assert len(fill.token_ids) == length
        text = model.tokenizer.decode(fill.token_ids, clean_up_tokenization_spaces=False)
        # The tokens spell the end of the prefix, the fill and the beginning of the suffix.
        left, found, right = text.partition(fill.text) if fill.text else (text, "", "")
        assert found == fill.text
        assert prefix.endswith(left.strip()) or fill.text == ""
        assert suffix.startswith(right)


def test_healing_never_runs_into_a_dead_end(real_llama):
    """Two tokens can always spell the moved text, by the moved tokens; greedy choices must keep that possible."""
    model = MagnetLlamaForCausalLM.from_pretrained(real_llama)
    words = ["overlook", "butterflies", "understand", "Saturday", "wonderful", "sometimes", "everybody", "together"]
    texts = [(f"One day, {word[:cut]}", f"{word[cut:]} and then she") for word in words for cut in range(1, len(word))]
    for length in (2, 3):
        fills = model.infill(*map(list, zip(*texts, strict=True)), max_new_tokens=length, heal="token")
        assert len(fills) == len(texts)


def test_the_beginning_of_a_text_is_not_healed(stories260k):
    model = MagnetLlamaForCausalLM.from_pretrained(stories260k)
    for prefix, suffix in (("", " upon a time"), ("Once", " upon a time there was a girl."), ("Once", ", there was")):
        output = model.infill(prefix, suffix, max_new_tokens=3, heal="token", return_dict_in_generate=True)
        (((fill,),),) = output.fills
        assert fill.text != ""
        assert not (prefix + fill.text + suffix).endswith("  " + suffix.strip())


def test_healing_without_a_fitting_token_raises(real_llama):
    model = MagnetLlamaForCausalLM.from_pretrained(real_llama)
    with pytest.raises(ValueError, match=r"No 1 tokens .*'.*'.*`heal`"):
        model.infill("Once upon a time", "qx the end", max_new_tokens=1, heal="token")
    with pytest.raises(ValueError, match="`heal='token'`"):
        model.infill("Once upon a ti", "me.", max_new_tokens=4, heal="token", stop_at_sentence_end=True)
