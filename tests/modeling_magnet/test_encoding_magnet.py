"""Texts to vectors: the same for a text whatever stands beside it, and what may be asked of `encode`."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.encoding_magnet import last_token_states, pad_token_rows, tokenize_texts

NOUNS = ("cat", "king", "river", "old house")
VERBS = ("slept", "stood", "was seen", "sang")
ENDS = (
    "",
    " alone",
    " in the garden",
    " on every day of that year, as it had done for as long as anyone could remember",
)
TEXTS = [f"The {noun} {verb}{end}." for noun, verb, end in itertools.product(NOUNS, VERBS, ENDS)]


@pytest.fixture(scope="module")
def wiki(wiki_7m):
    return MagnetLlamaForCausalLM.from_pretrained(wiki_7m)


@torch.no_grad()
def vectors_by_hand(model, texts, *, padding_side):
    """Unit vectors through forward and the last real token."""
    prompt = model.magnet_settings.prompts["sentence"]
    rows = tokenize_texts(model.tokenizer, texts, prompt=prompt, max_length=512)
    batch = pad_token_rows(rows, pad_token_id=2, padding_side=padding_side)
    states = model(**batch, mode="bidirectional").last_hidden_state
    return normalize(last_token_states(states, batch["attention_mask"]), dim=-1).numpy()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_text_has_one_vector_alone_in_a_batch_and_padded_on_either_side(wiki, implementation):
    wiki.set_attn_implementation("sdpa")
    assert len(TEXTS) == 64
    alone = np.stack([wiki.encode(text, normalize_embeddings=True) for text in TEXTS[:12]])
    wiki.set_attn_implementation(implementation)
    for vectors in (
        wiki.encode(TEXTS, batch_size=64, normalize_embeddings=True),
        wiki.encode(TEXTS, batch_size=5, normalize_embeddings=True),
        vectors_by_hand(wiki, TEXTS, padding_side="left"),
        vectors_by_hand(wiki, TEXTS, padding_side="right"),
    ):
        np.testing.assert_allclose(vectors[:12], alone, atol=1e-5, rtol=0)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_bfloat16_stays_near_float32(wiki_7m, wiki):
    halved = MagnetLlamaForCausalLM.from_pretrained(wiki_7m, dtype=torch.bfloat16)
    alone = np.stack([halved.encode(text, normalize_embeddings=True) for text in TEXTS[:6]])
    batched = halved.encode(TEXTS, batch_size=64, normalize_embeddings=True)
    assert batched.dtype == np.float32
    # bfloat16 keeps 8 bits: cosines of 0.999 between two roundings of one vector.
    assert (alone * batched[:6]).sum(1).min() > 0.999
    assert (batched * wiki.encode(TEXTS, normalize_embeddings=True)).sum(1).min() > 0.999


def test_a_string_gives_a_vector_and_a_list_rows_in_its_order(tiny_model):
    texts = ["A much longer text about the bread for lunch.", "A cat.", "", "The dog barked."]
    rows = tiny_model.encode(texts, batch_size=2)
    assert rows.shape == (4, 32) and rows.dtype == np.float32
    for text, row in zip(texts, rows, strict=True):
        single = tiny_model.encode(text)
        assert single.shape == (32,)
        np.testing.assert_allclose(single, row, atol=1e-5)
    np.testing.assert_allclose(tiny_model.encode(texts[::-1]), rows[::-1], atol=1e-5)
    tensor = tiny_model.encode(texts, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor) and not tensor.requires_grad
    assert isinstance(tiny_model.encode(texts, convert_to_numpy=False), torch.Tensor)
    assert tiny_model.encode([]).shape == (0, 32)
    assert tiny_model.encode(np.array(texts)).shape == (4, 32)


def test_an_empty_text_has_the_vector_of_its_prompt(tiny_model):
    assert np.isfinite(tiny_model.encode("")).all()
    assert np.isfinite(tiny_model.encode("", prompt="")).all(), "BOS and EOS alone"
    prompt = tiny_model.magnet_settings.prompts["sentence"]
    np.testing.assert_allclose(tiny_model.encode(""), tiny_model.encode(prompt, prompt=""), atol=1e-6)


def test_an_over_long_text_loses_its_end_and_keeps_its_eos(tiny_model, tiny_tokenizer):
    text = "the cat sat on the mat " * 200
    rows = tokenize_texts(tiny_tokenizer, [text, "the cat"], prompt=None, max_length=20)
    assert len(rows[0]) == 20 and (rows[0][0], rows[0][-1]) == (1, 2)
    assert rows[1] == [1, *tiny_tokenizer("the cat", add_special_tokens=False)["input_ids"], 2]
    vector = tiny_model.encode(text)
    np.testing.assert_allclose(vector, tiny_model.encode(text + "and something else"), atol=1e-6)
    assert np.abs(tiny_model.encode(text, max_length=40) - vector).max() > 1e-3


def test_prompts_are_given_named_or_stored(tiny_model):
    tiny_model.config.magnet["prompts"]["query"] = "Find: "
    default = tiny_model.encode("A cat.")
    np.testing.assert_allclose(tiny_model.encode("A cat.", prompt_name="sentence"), default)
    np.testing.assert_allclose(
        tiny_model.encode("A cat.", prompt="Given the sentence, find its representation:"), default
    )
    named = tiny_model.encode("A cat.", prompt_name="query")
    np.testing.assert_allclose(named, tiny_model.encode("A cat.", prompt="Find"))
    np.testing.assert_allclose(named, tiny_model.encode("Find: A cat.", prompt=""))
    assert np.abs(named - default).max() > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(3), r"`inputs` is int; expected a string or a list of strings"),
        (lambda m: m.encode(["a", None]), r"`inputs\[1\]` is NoneType"),
        (lambda m: m.encode("a", prompt="p", prompt_name="sentence"), r"Both prompt='p' and prompt_name='sentence'"),
        (lambda m: m.encode("a", prompt_name="q"), r"No prompt is named 'q'; the model stores \['sentence'\]"),
        (lambda m: m.encode("a", batch_size=0), r"`batch_size` is 0"),
        (lambda m: m.encode("a", max_length=2), r"`max_length` is 2; expected at least 3"),
        (lambda m: m.encode("a", max_length=999), r"`max_length` is 999.*context of 256 tokens"),
    ],
)
def test_what_cannot_be_encoded_is_named(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model)


def test_a_model_without_a_tokenizer_or_an_eos_says_so(tiny_config, tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match=r"No tokenizer at ''.*model.tokenizer ="):
        MagnetLlamaForCausalLM(tiny_config).encode("a")
    without_eos = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer, bos_token="<s>")
    tiny_model.tokenizer = without_eos
    with pytest.raises(ValueError, match="no EOS token"):
        tiny_model.encode("a")


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_last_real_token_is_found_on_either_side(padding_side):
    batch = pad_token_rows([[5, 6, 7], [8], [9, 9]], pad_token_id=0, padding_side=padding_side)
    states = batch["input_ids"][..., None].float()
    assert last_token_states(states, batch["attention_mask"]).tolist() == [[7.0], [8.0], [9.0]]
