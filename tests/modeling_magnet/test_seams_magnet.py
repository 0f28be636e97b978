"""Overlaps that are trimmed, and seams that are spelt anew."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import AutoTokenizer

from modeling_magnet import MagnetLlamaForCausalLM, seams_magnet
from modeling_magnet.seams_magnet import fitting_tokens, trim_overlap, vocabulary_texts
from modeling_magnet.tokenization_magnet import special_ids


@pytest.mark.parametrize(
    ("before", "fill", "after", "expected"),
    [
        ("She ate the", "the red apple", " for lunch.", " red apple"),
        ("She ate the ", "the red apple", " for lunch.", "red apple"),
        ("She ate", " an apple for lunch", " for lunch.", " an apple"),
        ("She ate", " an apple for lunch", "for lunch.", " an apple "),
        ("She ate the", " the apple for lunch.", " for lunch.", " apple"),
        ("She ate the", " red apple", " for lunch.", " red apple"),
        # Letters and a full stop alone are no repetition.
        ("It is hot.", ". Then", " rain", ". Then"),
        ("a cat", "ate", " tea", "ate"),
        ("I think that", " that", " was all", ""),
        ("", " all", "", " all"),
        ("one two", "", " three", ""),
    ],
)
def test_whole_words_that_repeat_the_context_are_trimmed(before, fill, after, expected):
    assert trim_overlap(fill, before=before, after=after) == expected


def test_the_call_trims_only_when_asked(real_llama):
    model = MagnetLlamaForCausalLM.from_pretrained(real_llama)
    prefix, suffix = "Once upon a time there was a little", " girl named Lily."
    plain = model.infill(prefix, suffix, max_new_tokens=8, return_dict_in_generate=True).fills[0][0][0]
    # Its own beginning as the end of the prefix: the fill of the shorter gap is not asked for, only the trimming.
    assert plain.text == model.infill(prefix, suffix, max_new_tokens=8)
    trimmed = model.infill(prefix, suffix, max_new_tokens=8, trim_overlap=True)
    assert trimmed == trim_overlap(plain.text, before=prefix, after=suffix)


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
        # What the tokens spell begins with the end of the prefix, ends with the beginning of the suffix,
        # and has the fill between.
        left, found, right = text.partition(fill.text) if fill.text else (text, "", "")
        assert found == fill.text
        assert prefix.endswith(left.strip()) or fill.text == ""
        assert suffix.startswith(right)


def test_healing_completes_a_word(tiny_model):
    """Only a healed gap can have a token that bridges the seam; every healed fill is made of such tokens."""
    texts = vocabulary_texts(tiny_model.tokenizer, tiny_model.config.vocab_size)
    assert len(texts) == tiny_model.config.vocab_size
    output = tiny_model.infill("the ca", "t sat", max_new_tokens=3, heal="token", return_dict_in_generate=True)
    (((fill,),),) = output.fills
    spelt = "".join(texts[token] for token in fill.token_ids)
    assert fill.text in spelt


def test_healing_never_runs_into_a_dead_end(real_llama):
    """With two tokens there is always a way: those that were taken back. A greedy choice must not leave it."""
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


def test_a_seam_that_nothing_fits_is_named(real_llama):
    model = MagnetLlamaForCausalLM.from_pretrained(real_llama)
    with pytest.raises(ValueError, match=r"No 1 tokens begin with '.*' and end with '.*'.*or heal otherwise"):
        model.infill("Once upon a time", "qx the end", max_new_tokens=1, heal="token")
    with pytest.raises(ValueError, match="`heal` needs fills of exact length"):
        model.infill("Once upon a ti", "me.", max_new_tokens=4, heal="token", stop_at_sentence_end=True)


def by_batch_decode(tokenizer, size):
    """What each token adds behind an "a", a token at a time."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    front = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
    rows = [[*anchor, token] for token in range(size)]
    return [text[len(front) :] for text in tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)]


def test_a_vocabulary_is_read_in_one_call_as_token_by_token(real_llama):
    tokenizer = AutoTokenizer.from_pretrained(real_llama)
    texts, special = vocabulary_texts(tokenizer, len(tokenizer) + 3), special_ids(tokenizer)
    for token, text in enumerate(by_batch_decode(tokenizer, len(tokenizer))):
        assert texts[token] == ("" if token in special else text)
    assert texts[len(tokenizer) :] == ("",) * 3


def test_a_tokenizer_with_a_decoder_of_its_own_is_asked_itself(tiny_tokenizer):
    class Upper(type(tiny_tokenizer)):
        def _decode(self, token_ids, **kwargs):
            return super()._decode(token_ids, **kwargs).upper()

    own = Upper(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    expected = by_batch_decode(own, len(own))
    expected = ["" if token in special_ids(own) else text for token, text in enumerate(expected)]
    assert list(vocabulary_texts(own, len(own))) == expected and "A" in expected and "a" not in expected


def test_a_vocabulary_is_read_once_by_all_threads_and_again_when_it_grows(tiny_tokenizer, monkeypatch):
    tokenizer, read = copy.deepcopy(tiny_tokenizer), []

    def decode(tokenizer, rows):
        read.append(len(rows))
        return decode_rows(tokenizer, rows)

    decode_rows = seams_magnet._decode_rows
    monkeypatch.setattr(seams_magnet, "_decode_rows", decode)
    size = len(tokenizer) + 1
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: vocabulary_texts(tokenizer, size), range(8)))
    assert read == [len(tokenizer)] and all(one is texts[0] for one in texts)
    tokenizer.add_tokens(["zebra"])
    assert vocabulary_texts(tokenizer, size)[-1] == "zebra" and len(read) == 2
    reference = weakref.ref(tokenizer)
    tokenizer = texts = None
    gc.collect()
    assert reference() is None, "what was read goes with its tokenizer"


def test_a_call_without_a_seam_does_not_read_the_vocabulary(tiny_model, monkeypatch):
    monkeypatch.setattr(seams_magnet, "read_vocabulary", None)
    tiny_model.infill("the dog", " ran", max_new_tokens=2)
    tiny_model.score_infill("the dog", [" old"], " ran")


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("may_go_on", [False, True])
def test_fitting_tokens_are_those_of_a_loop(real_llama, is_last, may_go_on):
    tokenizer = AutoTokenizer.from_pretrained(real_llama)
    texts = vocabulary_texts(tokenizer, len(tokenizer))
    known = set(texts) - {""}
    seams = [(" ", ""), ("th", ""), (" th", ""), ("", "e"), ("", "ing"), ("a", "e"), (" wo", "d"), ("日", "")]
    for rest, end in seams:
        end = end if is_last else ""
        found = fitting_tokens(tokenizer, len(tokenizer), rest=rest, end=end, is_last=is_last, may_go_on=may_go_on)
        for token, text in enumerate(texts):
            if is_last:
                fits = text.startswith(rest) and text.endswith(end) and len(text) >= len(rest) + len(end)
                fits = fits and not (text == rest == " " and not end)
            else:
                goes_on = may_go_on and rest.startswith(text) and rest[len(text) :] in known
                fits = text.startswith(rest) or goes_on
            assert bool(found[token]) == (fits and text != ""), (rest, end, text)
