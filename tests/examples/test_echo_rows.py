"""Compare the start of echo's second occurrence with decoding token by token, for whole and truncated texts."""

import pytest
from transformers import AutoTokenizer

from examples.evaluate.sentence_readers import echo_frame, echo_rows

PROMPT = "Retrieve semantically similar text: "
TEXTS = ["The cat sat on the mat.", "x", "She ate 2 apples, 'quickly'; the dog: not.", "(a) the  cat\nsat"]


def start_by_decoding(tokenizer, ids, characters):
    """Return the first token that ends after the given number of characters, in a row with BOS."""
    for place in range(1, len(ids)):
        if len(tokenizer.decode(ids[1 : place + 1], clean_up_tokenization_spaces=False)) > characters:
            return place
    raise AssertionError("the row has no second occurrence")


@pytest.fixture(params=["tiny", "wiki"])
def tokenizer(request, tiny_tokenizer):
    if request.param == "tiny":
        return tiny_tokenizer
    return AutoTokenizer.from_pretrained(request.getfixturevalue("wiki_7m"))


@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_echo_start_equals_decoded_start(tokenizer, prompt):
    before, between = echo_frame(prompt)
    for text, (ids, start) in zip(TEXTS, echo_rows(tokenizer, TEXTS, prompt=prompt, max_length=256), strict=True):
        assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids
        whole = before + text + between + text
        assert tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False) == whole
        assert start == start_by_decoding(tokenizer, ids, len(whole) - len(text))
        second = tokenizer.decode(ids[start:], clean_up_tokenization_spaces=False)
        assert second in (text, " " + text)


@pytest.mark.parametrize("text", ["The cat sat on the mat, and " * 30, "日本語の文、" * 40, "naïve café " * 40])
def test_long_text_is_truncated_so_that_both_occurrences_fit(tokenizer, text):
    before, between = echo_frame(PROMPT)
    ((ids, start),) = echo_rows(tokenizer, [text], prompt=PROMPT, max_length=100)
    assert 90 <= len(ids) <= 100
    row = tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False)
    length = (len(row) - len(before) - len(between)) // 2
    assert length > 0 and row == before + text[:length] + between + text[:length]
    second = tokenizer.decode(ids[start:], clean_up_tokenization_spaces=False)
    assert second in (text[:length], " " + text[:length])
