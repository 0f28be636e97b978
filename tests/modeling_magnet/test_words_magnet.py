"""Test token and word embeddings: shift, offsets, means over sub-words, and windows over long texts."""

import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.words_magnet import owners_of_tokens, plan_windows
from tests.gluing_tokenizers import SPLITS, gluing_tokenizer

from .test_families_magnet import make_config


@torch.no_grad()
def states_of(model, ids):
    return model(torch.tensor([ids]), mode="bidirectional").last_hidden_state[0].numpy()


@pytest.mark.parametrize("shift", ["next", "same"])
def test_a_token_is_the_output_before_it_or_its_own(real_llama, shift):
    model = MagnetLlamaForCausalLM.from_pretrained(real_llama)
    text = "The naïve astronomer's telescope 日本."
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    states = states_of(model, [1, *encoded["input_ids"]])
    vectors, offsets = model.encode_tokens(text, shift=shift)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(offsets, encoded["offset_mapping"])
    np.testing.assert_allclose(vectors, states[:-1] if shift == "next" else states[1:], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("shift", ["next", "same"])
def test_in_causal_mode_a_token_depends_on_preceding_tokens_only(tiny_model, shift):
    words = ["The", "cat", "unbelievably", "slept", "."]
    text = " ".join(words)
    encoded = tiny_model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = [1, *encoded["input_ids"]]
    # The states by hand: one forward for each prefix, so that nothing later can be seen.
    states = np.stack(
        [
            tiny_model(torch.tensor([ids[: end + 1]]), mode="causal").last_hidden_state[0, -1].numpy()
            for end in range(len(ids))
        ]
    )
    vectors, offsets = tiny_model.encode_tokens(text, shift=shift, mode="causal")
    np.testing.assert_array_equal(offsets, encoded["offset_mapping"])
    np.testing.assert_allclose(vectors, states[:-1] if shift == "next" else states[1:], atol=1e-5)
    assert np.abs(vectors - tiny_model.encode_tokens(text, shift=shift).vectors).max() > 1e-2

    both = tiny_model.encode_words([text, " ".join(words[:2])], shift=shift, mode="causal")
    np.testing.assert_allclose(both[1].vectors, both[0].vectors[:2], atol=1e-5)
    spans = [(text.index(word), text.index(word) + len(word)) for word in words]
    for vector, (first, last) in zip(both[0].vectors, spans, strict=True):
        own = [vectors[n] for n, (start, end) in enumerate(offsets) if first < end <= last and start < end]
        np.testing.assert_allclose(vector, np.mean(own, axis=0), atol=1e-5)


def test_in_causal_mode_a_later_window_keeps_tokens_after_the_overlap(tiny_model):
    text = "The cat sat on the mat, and the dog barked at the king. " * 6
    ids = tiny_model.tokenizer(text, add_special_tokens=False)["input_ids"]
    vectors, _ = tiny_model.encode_tokens(text, max_length=41, mode="causal")
    own = tiny_model(torch.tensor([[1, *ids[:40]]]), mode="causal").last_hidden_state[0].detach().numpy()
    np.testing.assert_allclose(vectors[:40], own[:-1], atol=1e-5)
    own = tiny_model(torch.tensor([[1, *ids[30:70]]]), mode="causal").last_hidden_state[0].detach().numpy()
    np.testing.assert_allclose(vectors[40:70], own[10:-1], atol=1e-5)


def test_prompt_tokens_get_no_vectors(wiki_7m):
    wiki = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    text = "The cat slept."
    vectors, offsets = wiki.encode_tokens(text, prompt="Find the names")
    ids = wiki.tokenizer("Find the names: " + text, add_special_tokens=False)["input_ids"]
    np.testing.assert_allclose(vectors, states_of(wiki, [1, *ids])[-len(vectors) - 1 : -1], atol=1e-5)
    plain, places = wiki.encode_tokens(text)
    assert [text[start:end].strip() for start, end in offsets] == [text[s:e].strip() for s, e in places]
    assert np.abs(vectors - plain).max() > 1e-3
    by_name, _ = wiki.encode_tokens(text, prompt_name="sentence")
    np.testing.assert_allclose(wiki.encode_tokens(text, prompt=None).vectors, by_name, atol=1e-5)


def test_words_are_the_same_in_a_batch(real_llama):
    model = MagnetLlamaForCausalLM.from_pretrained(real_llama)
    sentences = ["The cat slept .", "A king", "Unbelievably , it rained for days"]
    for batch_tokens in (1, 20, 10_000):
        batched = model.encode_words(sentences, batch_tokens=batch_tokens)
        for sentence, (vectors, _) in zip(sentences, batched, strict=True):
            assert vectors.shape == (len(sentence.split()), model.config.hidden_size)
            alone = model.encode_words(sentence)
            np.testing.assert_allclose(alone.vectors, vectors, atol=1e-4)
    assert model.encode_words([]) == [] and model.encode_tokens([]) == []


def test_an_empty_text_has_no_tokens(tiny_model):
    for text in ("", "   "):
        assert tiny_model.encode_words(text).vectors.shape == (0, 32)
    vectors, offsets = tiny_model.encode_tokens("")
    assert vectors.shape == (0, 32) and offsets.shape == (0, 2)
    assert [len(vectors) for vectors, _ in tiny_model.encode_words(["", "A cat"])] == [0, 2]


def test_a_text_beyond_the_context_is_read_in_windows(tiny_model):
    text = "The cat sat on the mat, and the dog barked at the king. " * 12
    vectors, offsets = tiny_model.encode_tokens(text, max_length=64)
    ids = tiny_model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(vectors) == len(ids) == len(offsets) > 2 * 64
    for window in plan_windows(len(ids), size=63):
        states = states_of(tiny_model, [1, *ids[window.start : window.end]])
        first = window.keep_start - window.start
        expected = states[first : first + window.keep_end - window.keep_start]
        np.testing.assert_allclose(vectors[window.keep_start : window.keep_end], expected, atol=1e-5)
    long = text * 20
    words, places = tiny_model.encode_words(long)
    assert len(words) == len(long.split()) and [long[start:end] for start, end in places] == long.split()


@pytest.mark.parametrize("max_length", [3, 9, 17])
def test_the_first_token_of_a_later_window_is_the_output_of_the_token_before_it(tiny_model, max_length):
    text = "The cat sat on the mat, and the dog barked at the king."
    ids = tiny_model.tokenizer(text, add_special_tokens=False)["input_ids"]
    vectors, _ = tiny_model.encode_tokens(text, max_length=max_length)
    at_bos = states_of(tiny_model, [1, *ids[: max_length - 1]])[0]
    np.testing.assert_allclose(vectors[0], at_bos, atol=1e-5)
    size = max_length - 1
    seen = {tuple(states_of(tiny_model, [1, *ids[start : start + size]])[0].round(4)) for start in range(len(ids))}
    assert len(seen) > 5
    assert all(tuple(vector.round(4)) not in seen for vector in vectors[1:]), "an output of BOS"
    same, _ = tiny_model.encode_tokens(text, max_length=max_length, shift="same")
    assert len(same) == len(vectors) == len(ids)


def test_a_window_of_one_token_raises(tiny_model):
    assert tiny_model.encode_tokens("a", max_length=2).vectors.shape == (1, 32)
    assert len(tiny_model.encode_tokens("a b c", max_length=2, shift="same").vectors) > 1
    with pytest.raises(ValueError, match=r"1 with shift='next'.*`max_length`"):
        tiny_model.encode_tokens("a b c", max_length=2)


def test_words_can_be_passed_in_any_column(tiny_model):
    pandas = pytest.importorskip("pandas", reason="comes with datasets")
    expected = tiny_model.encode_words(["A cat", "A dog"])
    for column in (("A cat", "A dog"), np.array(["A cat", "A dog"]), pandas.Series(["A cat", "A dog"], index=[5, 6])):
        for row, (vectors, _) in zip(expected, tiny_model.encode_words(column), strict=True):
            np.testing.assert_array_equal(row.vectors, vectors)


def test_encode_words_disables_dropout(tiny_model):
    expected = tiny_model.encode_words("The cat sat").vectors
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    tiny_model.train()
    np.testing.assert_array_equal(tiny_model.encode_words("The cat sat").vectors, expected)
    assert tiny_model.training and all(module.training for module in tiny_model.modules())


def test_many_windows_show_a_progress_bar(tiny_model, capsys):
    tiny_model.encode_words("The cat sat. " * 10, max_length=9, show_progress_bar=True)
    assert "window" in capsys.readouterr().err
    tiny_model.encode_tokens("The cat sat. " * 10, max_length=9)
    assert capsys.readouterr().err == ""


def test_an_unknown_option_raises(tiny_model):
    with pytest.raises(TypeError, match="'shif'"):
        tiny_model.encode_words("a", shif="same")


def test_bfloat16_gives_float32_words(tiny_model):
    expected = tiny_model.encode_words("The cat sat").vectors
    words = tiny_model.bfloat16().encode_words("The cat sat").vectors
    assert words.dtype == np.float32
    np.testing.assert_allclose(words, expected, atol=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode_words([["a"]]), r"`inputs\[0\]` is list"),
        (lambda m: m.encode_words("a", batch_tokens=0), r"`batch_tokens` is 0"),
        (lambda m: m.encode_tokens("a", shift="last"), r"`shift` is 'last'"),
        (lambda m: m.encode_tokens("a", mode="infill"), r"`mode` is 'infill'"),
        (
            lambda m: m.encode_tokens("a", max_length=5, prompt="A long prompt"),
            r"windows of -\d+ .*shorten the prompt",
        ),
        (lambda m: m.encode_tokens(7), r"`inputs` is int"),
        (lambda m: m.encode_words(None), r"`inputs` is NoneType"),
        (lambda m: m.encode_words(text for text in "ab"), r"`inputs` is generator"),
        (lambda m: m.encode_words({"a": "b"}), r"`inputs` is dict"),
        (lambda m: m.encode_tokens("a", max_length="9"), r"`max_length` is '9'"),
        (lambda m: m.encode_tokens("a", prompt="\ud800"), r"`prompt` .*surrogate"),
    ],
)
def test_invalid_word_arguments_raise(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model)


def spans_of(text):
    return [match.span() for match in re.finditer(r"\S+", text)]


def inked(text, token):
    """Return the indices of a token's characters that are not white space."""
    return {place for place in range(*token) if not text[place].isspace()}


def owner_by_count(text, words, token):
    """Find the word with most of a token's visible characters, the last one in a tie, by comparing all words."""
    held = [len(inked(text, token) & {*range(*word)}) for word in words]
    most = max(held, default=0)
    return max(number for number, count in enumerate(held) if count == most) if most else -1


@pytest.fixture(scope="module", params=SPLITS)
def gluing(request):
    return gluing_tokenizer(request.param)


@pytest.fixture
def gluing_model(gluing):
    """Build a random model over a vocabulary with tokens that cross word boundaries."""
    torch.manual_seed(0)
    model = MagnetLlamaForCausalLM(make_config("llama", vocab_size=len(gluing))).eval()
    model.tokenizer = gluing
    return model


def test_words_are_means_of_tokens_with_visible_characters(gluing_model):
    texts = [
        "First line.\nSecond line.",
        "The end .\n\nA new part begins",
        "a\tb\r\nc .\r\n",
        "A cat, a dog.",
        "日本\nand",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = gluing_model.encode_words(texts)
    assert [len(of_text.vectors) for of_text in batch] == [4, 7, 4, 4, 2]
    for text, (vectors, offsets) in zip(texts, batch, strict=True):
        words = spans_of(text)
        assert list(map(tuple, offsets.tolist())) == words
        tokens, places = gluing_model.encode_tokens(text)
        owners = [owner_by_count(text, words, place) for place in places]
        for number, (vector, word) in enumerate(zip(vectors, words, strict=True)):
            own = [n for n, owner in enumerate(owners) if owner == number]
            # A word without a token of its own has those that hold its characters.
            own = own or [n for n, place in enumerate(places) if inked(text, place) & {*range(*word)}]
            np.testing.assert_allclose(vector, tokens[own].mean(0), atol=1e-4)


@pytest.mark.parametrize("gluing", ["unsplit"], indirect=True)
def test_words_that_share_a_token_get_its_vector(gluing_model):
    text = "A cat, a dog."
    tokens, places = gluing_model.encode_tokens(text)
    assert places.tolist() == [[0, 11], [11, 12], [12, 13]], "`A cat, a do`, `g` and `.`"
    vectors, _ = gluing_model.encode_words(text)
    assert owners_of_tokens(spans_of(text), places.tolist(), text) == [1, 3, 3]
    for vector, own in zip(vectors, ([0], [0], [0], [1, 2]), strict=True):
        np.testing.assert_allclose(vector, tokens[own].mean(0), atol=1e-5)


def test_a_dropped_word_is_zeros_with_a_warning(tiny_model):
    normalizer = normalizers.Replace("\u200b", "")
    tiny_model.tokenizer.backend_tokenizer.normalizer = normalizer
    with pytest.warns(UserWarning, match=r"1 words have no token.*'\\u200b' of text 1") as caught:
        placed = tiny_model.encode_words(["The cat", "the \u200b cat", "a dog"])
    assert caught[0].filename == __file__
    assert [len(vectors) for vectors, _ in placed] == [2, 3, 2]
    assert not placed[1].vectors[1].any() and np.isfinite(placed[1].vectors).all()
    assert placed[1].vectors[[0, 2]].any(axis=1).all()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_owners_equal_a_count_over_all_words(data):
    text = data.draw(st.text("ab. \n\t\u3000日", min_size=1, max_size=20))
    edges = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    words = list(zip(edges[::2], edges[1::2], strict=False))
    tokens = [
        (start, data.draw(st.integers(start, len(text))))
        for start in data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    ]
    assert owners_of_tokens(words, tokens, text) == [owner_by_count(text, words, token) for token in tokens]


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(0, 200),
    size=st.integers(2, 40),
    shift=st.sampled_from(["next", "same"]),
    mode=st.sampled_from(["bidirectional", "causal"]),
)
def test_windows_cover_a_row_and_keep_each_token_far_from_edges(length, size, shift, mode):
    windows = plan_windows(length, size=size, shift=shift, mode=mode)
    kept = [place for window in windows for place in range(window.keep_start, window.keep_end)]
    assert kept == list(range(length)), "each token once, in order"
    overlap = max(size // 4, int(shift == "next"))
    in_front = overlap if mode == "causal" else max(overlap // 2, int(shift == "next"))
    for window in windows:
        assert window.end - window.start == min(size, length)
        assert window.start <= window.keep_start and window.keep_end <= window.end
        # Half of an overlap is on each side of what is kept, except at the ends of the row; in causal mode all of it.
        assert window.start == 0 or window.keep_start - window.start >= in_front
        assert window.end == length or window.end - window.keep_end >= overlap - max(in_front, -(-overlap // 2))
