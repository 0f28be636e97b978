"""Test what tokens spell: their text, their bytes, and fills that consist of whole characters."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle

import pytest
import torch
from transformers import AutoTokenizer
from transformers.generation.stopping_criteria import StoppingCriteriaList

from modeling_magnet import MagnetLlamaForCausalLM, spelling_magnet
from modeling_magnet.sampling_magnet import CharacterRule
from modeling_magnet.spans_magnet import Span
from modeling_magnet.spelling_magnet import byte_tokens, fitting_tokens, read_vocabulary
from modeling_magnet.tokenization_magnet import special_ids
from tests.modeling_magnet.infill_reference import bytes_of_tokens, keeps_characters
from tests.modeling_magnet.lifting import lifting

# Characters of one to four bytes, and invalid UTF-8: overlong, a surrogate, beyond Unicode, a lone byte.
WHOLE = ["a", "é", "߿", "ࠀ", "你", "\ud7ff", "\ue000", "😀", "\U00010000", "\U0010ffff"]
BROKEN = [b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x80\x80\x80", b"\x80", b"\xff"]


@pytest.fixture(params=["space_run_model", "tiny_model"])
def model(request):
    """Return a random model with byte tokens such as `<0xE4>`, and one with byte-level BPE."""
    return request.getfixturevalue(request.param)


def byte_ids(tokenizer):
    """Return the token of each byte."""
    found = {part: token_id for token_id, part in reversed([*enumerate(bytes_of_tokens(tokenizer))])}
    return [found[bytes([byte])] for byte in range(256)]


def test_byte_tokens_are_the_tokens_that_are_not_valid_text(model, wiki_7m):
    for tokenizer in (model.tokenizer, AutoTokenizer.from_pretrained(wiki_7m)):
        expected = []
        for token_id, part in enumerate(bytes_of_tokens(tokenizer)):
            try:
                part.decode()
            except UnicodeDecodeError:
                expected.append(token_id)
        assert len(expected) >= 128
        assert list(byte_tokens(tokenizer, len(tokenizer)).token_ids) == expected


def test_a_character_vocabulary_has_no_byte_tokens(babyllama):
    tokenizer = AutoTokenizer.from_pretrained(babyllama)
    assert byte_tokens(tokenizer, len(tokenizer)).token_ids == ()


def test_allowed_bytes_equal_those_of_an_incremental_decoder(model):
    """Compare with Python's incremental decoder, byte by byte."""
    ids = byte_ids(model.tokenizer)
    written = [bytes(text.encode()[:count]) for text in WHOLE for count in range(len(text.encode()))]
    written += [part[:1] for part in BROKEN if keeps_characters(part[:1], 3)]
    for length in (1, 2, 3, 4, 6):
        for start in {start for start in written if len(start) < length and keeps_characters(start, length)}:
            spans = [Span(blank=0, before=[], length=length, number=0)]
            rule = CharacterRule(byte_tokens(model.tokenizer, 10**6), spans=spans, excluded_ids=[])
            scores = torch.zeros(1, model.config.vocab_size)
            for index, byte in enumerate(start):
                rule.exclude(scores, spans, indices=[index])
                rule.advance(torch.tensor([ids[byte]]), spans)
            scores.zero_()
            rule.exclude(scores, spans, indices=[len(start)])
            remaining = length - len(start) - 1
            expected = [keeps_characters(start + bytes([byte]), remaining) for byte in range(256)]
            assert (scores[0, ids] == 0).tolist() == expected, (start, length)


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_return_sequences": 5}, {"chunk_size": 2}])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7])
def test_a_fill_never_ends_inside_a_character(model, length, options):
    """Make bytes beyond ASCII certain wherever they are allowed."""
    parts = byte_ids(model.tokenizer)[0x80:]
    torch.manual_seed(length)
    for text in ("北[blank]京", "a [blank] b [blank]\n\tc", "👍[blank]"):
        (blanks,) = model.infill_blanks(
            text, max_new_tokens=length, logits_processor=lifting(parts), return_dict_in_generate=True, **options
        ).fills
        for fill in (fill for answers in blanks for fill in answers):
            assert "\ufffd" not in fill.text
            assert len(fill.token_ids) == length
            assert "".join(fill.tokens) == fill.text
    assert length == 1 or not fill.text.isascii()


def test_the_search_for_a_length_gives_whole_characters(wiki_7m):
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    text = "The Chinese name is 北[blank] (Beijing)."
    for options in ({"max_new_tokens": 1}, {"max_new_tokens": 2}, {"num_tokens": [1, 2, 3, 4]}):
        assert "\ufffd" not in model.infill_blanks(text, do_sample=False, **options)[0]


def test_a_criterion_that_ends_a_fill_inside_a_character_drops_the_part(model):
    ids = byte_ids(model.tokenizer)
    wanted = [ids[byte] for byte in "你好".encode()]
    for stop_at, expected in ((2, ""), (3, "你"), (5, "你"), (6, "你好")):
        steps = count(1)
        criteria = StoppingCriteriaList([lambda input_ids, scores, s=steps, n=stop_at: torch.tensor([next(s) == n])])
        processors = lifting(cycle(wanted).__next__)
        options = {"max_new_tokens": 9, "logits_processor": processors, "stopping_criteria": criteria}
        fill = model.infill("a", "b", return_dict_in_generate=True, **options).fills[0][0][0]
        assert (fill.text, len(fill.token_ids)) == (expected, 3 * len(expected))
        assert "".join(fill.tokens) == expected


def test_a_stop_string_of_several_bytes_stays_whole(model):
    """A rule that counts characters must not confuse an incomplete character with a complete one."""
    ids = byte_ids(model.tokenizer)
    wanted = [ids[byte] for byte in "a。b".encode()]
    for options in ({"stop_strings": ["。"]}, {"stop_at_sentence_end": True}):
        processors = lifting(cycle(wanted).__next__)
        output = model.infill(
            "x", "y", max_new_tokens=5, logits_processor=processors, return_dict_in_generate=True, **options
        )
        assert (output.fills[0][0][0].text, len(output.fills[0][0][0].token_ids)) == ("a。", 4)


def by_batch_decode(tokenizer, size):
    """Return the text that each token adds after an "a"."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    first = len(tokenizer.decode(anchor, clean_up_tokenization_spaces=False))
    rows = [[*anchor, token] for token in range(size)]
    return [text[first:] for text in tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)]


def test_the_fast_path_reads_the_same_vocabulary(real_llama):
    tokenizer = AutoTokenizer.from_pretrained(real_llama)
    texts, special = read_vocabulary(tokenizer, len(tokenizer) + 3).texts, special_ids(tokenizer)
    for token, text in enumerate(by_batch_decode(tokenizer, len(tokenizer))):
        assert texts[token] == ("" if token in special else text)
    assert texts[len(tokenizer) :] == ("",) * 3


def test_an_overridden_decoder_is_used(tiny_tokenizer):
    class Upper(type(tiny_tokenizer)):
        def _decode(self, token_ids, **kwargs):
            return super()._decode(token_ids, **kwargs).upper()

    upper = Upper(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    expected = by_batch_decode(upper, len(upper))
    expected = ["" if token in special_ids(upper) else text for token, text in enumerate(expected)]
    assert list(read_vocabulary(upper, len(upper)).texts) == expected and "A" in expected and "a" not in expected


def test_a_vocabulary_is_read_once_by_all_threads_and_again_when_it_grows(tiny_tokenizer, monkeypatch):
    tokenizer, read = copy.deepcopy(tiny_tokenizer), []

    def decode(tokenizer, rows):
        read.append(len(rows))
        return decode_rows(tokenizer, rows)

    decode_rows = spelling_magnet._decode_rows
    monkeypatch.setattr(spelling_magnet, "_decode_rows", decode)
    size = len(tokenizer) + 1
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: read_vocabulary(tokenizer, size).texts, range(8)))
    assert read == [len(tokenizer)] and all(result is texts[0] for result in texts)
    tokenizer.add_tokens(["zebra"])
    assert read_vocabulary(tokenizer, size).texts[-1] == "zebra" and len(read) == 2
    reference = weakref.ref(tokenizer)
    tokenizer = texts = None
    gc.collect()
    assert reference() is None, "the cache does not keep the tokenizer alive"


def test_a_call_without_healing_does_not_read_the_vocabulary(tiny_model, monkeypatch):
    monkeypatch.setattr(spelling_magnet, "read_vocabulary", None)
    tiny_model.infill("the dog", " ran", max_new_tokens=2)
    tiny_model.score_infill("the dog", [" old"], " ran")


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("may_go_on", [False, True])
def test_fitting_tokens_equal_those_of_a_loop(real_llama, is_last, may_go_on):
    tokenizer = AutoTokenizer.from_pretrained(real_llama)
    texts = read_vocabulary(tokenizer, len(tokenizer)).texts
    known = set(texts) - {""}
    cases = [(" ", ""), ("th", ""), (" th", ""), ("", "e"), ("", "ing"), ("a", "e"), (" wo", "d"), ("日", "")]
    for rest, end in cases:
        end = end if is_last else ""
        if not rest and not end:
            continue
        found = fitting_tokens(
            tokenizer, len(tokenizer), len(tokenizer), rest=rest, end=end, is_last=is_last, may_go_on=may_go_on
        )
        for token, text in enumerate(texts):
            if is_last:
                fits = text.startswith(rest) and text.endswith(end) and len(text) >= len(rest) + len(end)
                fits = fits and not (text == rest == " " and not end)
            else:
                goes_on = may_go_on and rest.startswith(text) and rest[len(text) :] in known
                fits = text.startswith(rest) or goes_on
            assert bool(found[token]) == (fits and text != ""), (rest, end, text)


def test_fitting_tokens_include_tokens_added_later(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    options = {"rest": " ", "end": "", "is_last": False, "may_go_on": False}
    before = fitting_tokens(tokenizer, 400, len(tokenizer), **options)
    tokenizer.add_tokens([" zebra"])
    added = (fitting_tokens(tokenizer, 400, len(tokenizer), **options) & ~before).nonzero().flatten().tolist()
    assert added == [tokenizer.convert_tokens_to_ids(" zebra")]
