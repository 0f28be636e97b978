"""Fills consist of whole characters, in vocabularies over bytes of both kinds."""

import pytest
import torch
from transformers import AutoTokenizer
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.characters_magnet import CharacterRule, character_parts
from modeling_magnet.spans_magnet import Span
from tests.modeling_magnet.infill_reference import bytes_of_tokens, keeps_characters

# Characters of one to four bytes, and what is not UTF-8: overlong, a surrogate, beyond Unicode, a lone byte.
WHOLE = ["a", "é", "߿", "ࠀ", "你", "\ud7ff", "\ue000", "😀", "\U00010000", "\U0010ffff"]
BROKEN = [b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x80\x80\x80", b"\x80", b"\xff"]


@pytest.fixture(params=["space_run_model", "tiny_model"])
def model(request):
    """A random model whose vocabulary has `<0xE4>`, and one of byte-level BPE."""
    return request.getfixturevalue(request.param)


def byte_ids(tokenizer):
    """The token of each byte."""
    found = {part: token_id for token_id, part in reversed([*enumerate(bytes_of_tokens(tokenizer))])}
    return [found[bytes([byte])] for byte in range(256)]


def lift(ids, amount=200.0):
    """A processor that makes some tokens likely."""

    def process(input_ids, scores):
        scores = scores.clone()
        scores[:, ids] += amount
        return scores

    return LogitsProcessorList([process])


def test_the_parts_of_a_vocabulary_are_its_tokens_that_are_no_text(model, wiki_7m):
    for tokenizer in (model.tokenizer, AutoTokenizer.from_pretrained(wiki_7m)):
        expected = []
        for token_id, part in enumerate(bytes_of_tokens(tokenizer)):
            try:
                part.decode()
            except UnicodeDecodeError:
                expected.append(token_id)
        assert len(expected) >= 128
        assert list(character_parts(tokenizer, len(tokenizer)).token_ids) == expected


def test_characters_alone_need_no_rule(babyllama):
    tokenizer = AutoTokenizer.from_pretrained(babyllama)
    assert character_parts(tokenizer, len(tokenizer)).token_ids == ()


def test_what_may_come_next_is_what_a_decoder_accepts(model):
    """Against Python's own incremental decoder, byte by byte."""
    ids = byte_ids(model.tokenizer)
    written = [bytes(text.encode()[:count]) for text in WHOLE for count in range(len(text.encode()))]
    written += [part[:1] for part in BROKEN if keeps_characters(part[:1], 3)]
    for length in (1, 2, 3, 4, 6):
        for start in {start for start in written if len(start) < length and keeps_characters(start, length)}:
            spans = [Span(gap=0, before=[], gap_length=length, stream=0)]
            rule = CharacterRule(character_parts(model.tokenizer, 10**6), spans=spans, barred_ids=[])
            scores = torch.zeros(1, model.config.vocab_size)
            for index, byte in enumerate(start):
                rule.bar(scores, spans, indices=[index])
                rule.advance(torch.tensor([ids[byte]]), spans)
            scores.zero_()
            rule.bar(scores, spans, indices=[len(start)])
            left = length - len(start) - 1
            expected = [keeps_characters(start + bytes([byte]), left) for byte in range(256)]
            assert (scores[0, ids] == 0).tolist() == expected, (start, length)


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_return_sequences": 5}, {"chunk_size": 2}])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7])
def test_a_fill_never_ends_inside_a_character(model, length, options):
    """Bytes of no ASCII character are made certain wherever they are allowed."""
    parts = byte_ids(model.tokenizer)[0x80:]
    torch.manual_seed(length)
    for text in ("北[blank]京", "a [blank] b [blank]\n\tc", "👍[blank]"):
        (gaps,) = model.infill_blanks(
            text, max_new_tokens=length, logits_processor=lift(parts), return_dict_in_generate=True, **options
        ).fills
        for fill in (fill for gap in gaps for fill in gap):
            assert "\ufffd" not in fill.text
            assert len(fill.token_ids) == length
            assert "".join(fill.tokens) == fill.text
    assert length == 1 or not fill.text.isascii()


def test_one_token_is_a_whole_character(model):
    ids = byte_ids(model.tokenizer)
    fill = model.infill("北", " (Beijing)", max_new_tokens=1, logits_processor=lift(ids[0x80:]))
    assert fill.isascii() and fill
    three = model.infill("北", "", max_new_tokens=3, logits_processor=lift([ids[byte] for byte in "京".encode()]))
    assert len(three) == 1 and not three.isascii() and three != "\ufffd"


def test_the_search_for_a_length_has_no_broken_fill_to_prefer(wiki_7m):
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    text = "The Chinese name is 北[blank] (Beijing)."
    for options in ({"max_new_tokens": 1}, {"max_new_tokens": 2}, {"num_tokens": [1, 2, 3, 4]}):
        assert "\ufffd" not in model.infill_blanks(text, do_sample=False, **options)[0]


def test_a_criterion_that_ends_a_fill_inside_a_character_drops_the_part(model):
    ids = byte_ids(model.tokenizer)
    wanted = [ids[byte] for byte in "你好".encode()]

    def spell(input_ids, scores):
        scores = scores.clone()
        scores[:, wanted[seen[0] % len(wanted)]] += 500.0
        seen[0] += 1
        return scores

    for stop_at, expected in ((2, ""), (3, "你"), (5, "你"), (6, "你好")):
        seen = [0]
        criteria = StoppingCriteriaList([lambda input_ids, scores, s=seen, n=stop_at: torch.tensor([s[0] == n])])
        processors = LogitsProcessorList([spell])
        options = {"max_new_tokens": 9, "logits_processor": processors, "stopping_criteria": criteria}
        fill = model.infill("a", "b", return_dict_in_generate=True, **options).fills[0][0][0]
        assert (fill.text, len(fill.token_ids)) == (expected, 3 * len(expected))
        assert "".join(fill.tokens) == expected


def test_a_stop_string_of_several_bytes_stays_whole(model):
    """A rule that counts characters must not take the broken text of all but one byte for the whole one."""
    ids = byte_ids(model.tokenizer)
    wanted = [ids[byte] for byte in "a。b".encode()]
    seen = [0]

    def spell(input_ids, scores):
        scores = scores.clone()
        scores[:, wanted[seen[0] % len(wanted)]] += 500.0
        seen[0] += 1
        return scores

    for options in ({"stop_strings": ["。"]}, {"stop_at_sentence_end": True}):
        seen[0] = 0
        processors = LogitsProcessorList([spell])
        output = model.infill(
            "x", "y", max_new_tokens=5, logits_processor=processors, return_dict_in_generate=True, **options
        )
        assert (output.fills[0][0][0].text, len(output.fills[0][0][0].token_ids)) == ("a。", 4)
