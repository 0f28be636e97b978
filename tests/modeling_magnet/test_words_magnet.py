"""Words to vectors: the shift of one, the mean over sub-words, and what may be asked of `encode_words`."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.words_magnet import word_of_token


@torch.no_grad()
def test_a_word_is_the_mean_of_the_outputs_before_its_tokens(wiki_7m):
    wiki = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    words = ["The", "naïve", "astronomer", "'s", "telescope", "日本", "."]
    encoded = wiki.tokenizer(" ".join(words), add_special_tokens=False, return_offsets_mapping=True)
    ids = [1, *encoded["input_ids"]]
    states = wiki(torch.tensor([ids]), mode="bidirectional").last_hidden_state[0]
    ends = np.cumsum([len(word) + 1 for word in words]) - 1  # of each word, in characters
    for index, vector in enumerate(wiki.encode_words(words)):
        tokens = [
            token
            for token, (start, end) in enumerate(encoded["offset_mapping"], start=1)
            if (0 if index == 0 else ends[index - 1]) < end <= ends[index] and " ".join(words)[start:end].strip()
        ]
        assert tokens
        expected = torch.stack([states[token - 1] for token in tokens]).mean(0)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_words_are_the_same_in_a_batch(real_llama):
    model = MagnetLlamaForCausalLM.from_pretrained(real_llama)
    sentences = [["The", "cat", "slept", "."], ["A", "king"], ["Unbelievably", ",", "it", "rained", "for", "days"]]
    batched = model.encode_words(sentences, batch_size=2)
    assert [rows.shape for rows in batched] == [(len(words), model.config.hidden_size) for words in sentences]
    for words, rows in zip(sentences, batched, strict=True):
        np.testing.assert_allclose(model.encode_words(words), rows, atol=1e-4)
    assert model.encode_words([]) == []


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text("abé日z'.-", min_size=1, max_size=6), min_size=1, max_size=8))
def test_every_word_owns_a_token(tiny_tokenizer, words):
    offsets = tiny_tokenizer(" ".join(words), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    owners = word_of_token(words, offsets)
    owned = [owner for owner in owners if owner >= 0]  # a lone space belongs to no word
    assert owned == sorted(owned) and set(owned) == set(range(len(words)))


def test_bfloat16_gives_float32_words(tiny_model):
    expected = tiny_model.encode_words(["The", "cat", "sat"])
    words = tiny_model.bfloat16().encode_words(["The", "cat", "sat"])
    assert words.dtype == np.float32
    np.testing.assert_allclose(words, expected, atol=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode_words("The cat"), r"`inputs` is a string .*; expected a list of words"),
        (lambda m: m.encode_words([["a", " "]]), r"Sentence 0 is empty or has an empty word"),
        (lambda m: m.encode_words([["a"], []]), r"Sentence 1 is empty"),
        (lambda m: m.encode_words(["a"] * 300), r"Sentence 0 has \d+ tokens; the context holds 256"),
        (lambda m: m.encode_words(["a"], batch_size=0), r"`batch_size` is 0"),
    ],
)
def test_what_cannot_be_encoded_is_named(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model)
