"""Compare every sentence reader with a plain loop over single texts, or with another library."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel, LlamaForCausalLM

from examples.evaluate.parts.sentence_readers import (
    CausalReader,
    EchoReader,
    MagnetReader,
    echo_frame,
    echo_rows,
    open_encoder,
)

from .tiny_encoder import save_bert

PROMPT = "Retrieve semantically similar text: "
TEXTS = [
    "The cat sat on the mat, and the dog barked at the cat.",
    "x",
    "She ate the apple for breakfast.",
    "It rained.",
]


def start_by_decoding(tokenizer, ids, characters):
    """Return the first token that ends after the given number of characters, in a row with BOS."""
    for place in range(1, len(ids)):
        if len(tokenizer.decode(ids[1 : place + 1], clean_up_tokenization_spaces=False)) > characters:
            return place
    raise AssertionError("the row has no second occurrence")


@pytest.fixture
def stock(checkpoint):
    """Return the same weights as transformers reads them."""
    return LlamaForCausalLM.from_pretrained(checkpoint).eval()


@torch.no_grad()
def stock_states(stock, ids):
    return stock.model(torch.tensor([ids])).last_hidden_state[0].numpy()


@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_causal_reader_returns_last_state_of_the_stock_decoder(tiny_model, stock, prompt):
    tokenizer = tiny_model.tokenizer
    expected = []
    for text in TEXTS:
        ids = [1, *tokenizer(prompt + text, add_special_tokens=False)["input_ids"], 2]
        expected.append(stock_states(stock, ids)[-1])
    vectors = CausalReader(tiny_model).encode(TEXTS, prompt=prompt)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert np.abs(vectors - MagnetReader(tiny_model).encode(TEXTS, prompt=prompt)).max() > 0.01


def test_causal_mean_covers_the_text_and_eos(tiny_model, stock):
    front = len(tiny_model.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]) + 1
    text = "It rained."
    ids = [1, *tiny_model.tokenizer(PROMPT + text, add_special_tokens=False)["input_ids"], 2]
    (vector,) = CausalReader(tiny_model, pooling="mean").encode([text], prompt=PROMPT)
    np.testing.assert_allclose(vector, stock_states(stock, ids)[front:].mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_echo_equals_single_text_second_occurrence(tiny_model, stock, prompt, pooling):
    tokenizer = tiny_model.tokenizer
    before, between = echo_frame(prompt)
    expected = []
    for text in TEXTS:
        ids = [1, *tokenizer(before + text + between + text, add_special_tokens=False)["input_ids"]]
        start = start_by_decoding(tokenizer, ids, len(before + text + between))
        states = stock_states(stock, ids)[start:]
        expected.append(states.mean(axis=0) if pooling == "mean" else states[-1])
    reader = EchoReader(tiny_model, pooling=pooling)
    together = reader.encode(TEXTS, prompt=prompt)
    np.testing.assert_allclose(together, expected, atol=1e-5)
    alone = np.concatenate([reader.encode([text], prompt=prompt) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.fixture
def bert(tmp_path):
    return str(save_bert(tmp_path / "bert"))


def test_encoder_equals_sentence_transformers_and_simcse(bert):
    library = pytest.importorskip("sentence_transformers", reason="an optional extra: pip install .[eval]")
    texts = ["the cat sat on the mat", "x", "she ate the apple and the dog barked"]
    tokenizer, model = AutoTokenizer.from_pretrained(bert), BertModel.from_pretrained(bert).eval()
    first, mean = [], []
    with torch.no_grad():
        for text in texts:
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
            first.append(states[0])
            mean.append(states.mean(axis=0))
    own = open_encoder(bert).encode(texts)
    np.testing.assert_array_equal(own, library.SentenceTransformer(bert, device="cpu").encode(texts))
    np.testing.assert_allclose(own, mean, atol=1e-5)
    np.testing.assert_allclose(open_encoder(bert, pooling="mean").encode(texts), mean, atol=1e-5)
    vectors = open_encoder(bert, pooling="cls").encode(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, first, atol=1e-5)


ECHOED = ["The cat sat on the mat.", "x", "She ate 2 apples, 'quickly'; the dog: not.", "(a) the  cat\nsat"]


@pytest.fixture(params=["tiny", "wiki"])
def tokenizer(request, tiny_tokenizer):
    if request.param == "tiny":
        return tiny_tokenizer
    return AutoTokenizer.from_pretrained(request.getfixturevalue("wiki_7m"))


@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_echo_start_equals_decoded_start(tokenizer, prompt):
    before, between = echo_frame(prompt)
    for text, (ids, start) in zip(ECHOED, echo_rows(tokenizer, ECHOED, prompt=prompt, max_length=256), strict=True):
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
