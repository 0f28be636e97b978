"""Test `encode`: independence of the batch, options and errors, and the attention check."""

import itertools
import warnings

import numpy as np
import pandas
import pytest
import torch
from torch.nn.functional import normalize

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.batching_magnet import check_attention
from modeling_magnet.configuration_magnet import SIMILARITIES
from modeling_magnet.pooling_magnet import last_token_states
from modeling_magnet.tokenization_magnet import pad_token_rows, tokenize_texts

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
    """Compute unit vectors by forward from the last real token."""
    prompt = model.magnet_settings.prompts["sentence"]
    rows = tokenize_texts(model.tokenizer, texts, prompt=prompt, max_length=512).input_ids
    batch = pad_token_rows(rows, pad_token_id=2, padding_side=padding_side)
    states = model(**batch, mode="bidirectional").last_hidden_state
    return normalize(last_token_states(states, batch["attention_mask"]), dim=-1).numpy()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_vector_does_not_depend_on_batch_or_padding_side(wiki, implementation):
    wiki.set_attn_implementation("sdpa")
    assert len(TEXTS) == 64
    alone = np.stack([wiki.encode(text, normalize_embeddings=True) for text in TEXTS[:12]])
    wiki.set_attn_implementation(implementation)
    for vectors in (
        wiki.encode(TEXTS, batch_size=64, normalize_embeddings=True),
        wiki.encode(TEXTS, batch_size=5, normalize_embeddings=True),
        wiki.encode(TEXTS, batch_tokens=100, normalize_embeddings=True),
        wiki.encode(TEXTS, batch_tokens=100_000, normalize_embeddings=True),
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


def test_a_string_returns_a_vector_and_a_list_a_matrix(tiny_model):
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
    listed = tiny_model.encode(texts, convert_to_numpy=False)
    assert isinstance(listed, list) and all(isinstance(row, torch.Tensor) for row in listed)
    assert tiny_model.encode([]).shape == (0, 32)
    assert tiny_model.encode(np.array(texts)).shape == (4, 32)


def test_an_empty_text_has_the_vector_of_its_prompt(tiny_model):
    assert np.isfinite(tiny_model.encode("")).all()
    assert np.isfinite(tiny_model.encode("", prompt="")).all(), "BOS and EOS alone"
    prompt = tiny_model.magnet_settings.prompts["sentence"]
    np.testing.assert_allclose(tiny_model.encode(""), tiny_model.encode(prompt, prompt=""), atol=1e-6)


def test_a_long_text_is_truncated_before_its_eos(tiny_model, tiny_tokenizer):
    text = "the cat sat on the mat " * 200
    rows = tokenize_texts(tiny_tokenizer, [text, "the cat"], prompt=None, max_length=20).input_ids
    assert len(rows[0]) == 20 and (rows[0][0], rows[0][-1]) == (1, 2)
    assert rows[1] == [1, *tiny_tokenizer("the cat", add_special_tokens=False)["input_ids"], 2]
    vector = tiny_model.encode(text)
    np.testing.assert_allclose(vector, tiny_model.encode(text + "and something else"), atol=1e-6)
    assert np.abs(tiny_model.encode(text, max_length=40) - vector).max() > 1e-3


def test_prompts_are_passed_named_or_default(tiny_model):
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


def test_prompt_name_is_the_second_argument_as_in_sentence_transformers(tiny_model):
    named = tiny_model.encode("A cat.", prompt_name="STS")
    np.testing.assert_array_equal(tiny_model.encode("A cat.", "STS"), named)
    np.testing.assert_array_equal(tiny_model.encode_query("A cat.", "STS"), named)
    np.testing.assert_array_equal(tiny_model.encode_document("A cat.", "STS"), named)
    assert np.abs(named - tiny_model.encode("A cat.")).max() > 1e-3


@pytest.mark.parametrize("pooling", ["last", "mean", "weighted_mean"])
def test_a_prompt_without_room_for_text_raises(tiny_model, pooling):
    ids = tiny_model.tokenizer("Find: ", add_special_tokens=False)["input_ids"]
    least = 1 + len(ids) + 1 + 1
    vectors = tiny_model.encode(["A cat.", "The dog", ""], prompt="Find", pooling=pooling, max_length=least)
    assert np.isfinite(vectors).all()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    for short, prompt in ((least - 1, "Find"), (None, "Find the cat " * 200)):
        with pytest.raises(ValueError, match=r"BOS.*'Find"):
            tiny_model.encode("A cat.", prompt=prompt, pooling=pooling, max_length=short)


def test_encode_disables_dropout_and_restores_training_mode(tiny_model):
    expected = tiny_model.encode(["A cat.", "A dog sat."])
    states = tiny_model.encode("A cat.", output_value="token_embeddings")
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    tiny_model.train()
    frozen = tiny_model.model.layers[0].eval()
    training = {name: module.training for name, module in tiny_model.named_modules()}
    np.testing.assert_array_equal(tiny_model.encode(["A cat.", "A dog sat."]), expected)
    assert tiny_model.encode("A cat.", output_value="token_embeddings").equal(states)
    with pytest.raises(RuntimeError, match="not finite"):
        tiny_model.model.norm.weight.data[0] = float("nan")
        tiny_model.bfloat16().encode("A cat.")
    assert {name: module.training for name, module in tiny_model.named_modules()} == training
    assert tiny_model.training and not frozen.training


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.array("hello"), r"`inputs` is ndarray"),
        (pandas.DataFrame({"text": ["a"], "id": ["b"]}), r"`inputs` is DataFrame"),
        ({"text": "a"}, r"`inputs` is dict"),
        (3, r"`inputs` is int \(3\)"),
        (None, r"`inputs` is NoneType"),
        ([["a", "b"]], r"`inputs\[0\]` is list"),
        (["a", 1.5], r"`inputs\[1\]` is float \(1.5\)"),
        (["a", "b\ud800"], r"`inputs\[1\]` .*surrogate"),
    ],
)
def test_inputs_that_are_not_texts_raise(tiny_model, inputs, message):
    for name in ("inputs", "sentences"):
        with pytest.raises(ValueError, match=message):
            tiny_model.encode(**{name: inputs})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sentences": "a"}, r"Both `inputs` and its older name `sentences`"),
        ({"prompt": "\ud800"}, r"`prompt` .*surrogate"),
        ({"prompt": 3}, r"`prompt` is int \(3\)"),
        ({"prompt_name": ["a"]}, r"`prompt_name` is \['a'\]"),
        ({"prompt_name": "sts"}, r"'sts'.*\['Biorxiv.*'sentence'\]"),
        ({"prompt": "p", "prompt_name": "sentence"}, r"Both prompt='p' and prompt_name='sentence'"),
        ({"truncate_dim": 33}, r"`truncate_dim` is 33; .* from 1 to 32"),
        *(({"truncate_dim": value}, rf"`truncate_dim` is {value!r}") for value in (0, 2.5, "8", True)),
        ({"max_length": 999}, r"`max_length` is 999.* to 256"),
        *(({"max_length": value}, rf"`max_length` is {value!r}") for value in (2, 3.5, "9")),
        *(({"batch_size": value}, rf"`batch_size` is {value!r}") for value in (0, True)),
        ({"batch_tokens": 0}, r"`batch_tokens` is 0"),
        ({"pooling": "cls"}, r"`pooling` is 'cls'"),
        ({"precision": "fp8"}, r"`precision` is 'fp8'"),
        ({"precision": "int8"}, r"precision='int8' takes each dimension's range"),
        ({"output_value": "words"}, r"`output_value` is 'words'"),
        ({"output_value": None, "precision": "binary"}, r"precision='binary'.*output_value=None"),
    ],
)
def test_invalid_encode_arguments_raise(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.encode("a", **options)


def test_a_missing_tokenizer_or_eos_raises(tiny_config, tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match=r"No tokenizer.*''.*model.tokenizer ="):
        MagnetLlamaForCausalLM(tiny_config).encode("a")
    without_eos = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer, bos_token="<s>")
    tiny_model.tokenizer = without_eos
    with pytest.raises(ValueError, match="no EOS token"):
        tiny_model.encode("a")


def test_a_corpus_may_be_any_column_of_strings(tiny_model):
    from datasets import Dataset

    expected = tiny_model.encode(["A cat.", "A dog."])
    for column in (("A cat.", "A dog."), Dataset.from_dict({"text": ["A cat.", "A dog."]})["text"]):
        np.testing.assert_array_equal(tiny_model.encode(column), expected)


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "a\0b", "\u200b", "🙂" * 50, "x" * 1_000_000])
def test_odd_texts_have_vectors(tiny_model, text):
    vector = tiny_model.encode(text)
    assert np.isfinite(vector).all()
    np.testing.assert_allclose(tiny_model.encode([text, "A cat."])[0], vector, atol=1e-5)


def test_dimensions_are_truncated_before_normalization(tiny_model):
    full = tiny_model.encode(TEXTS[:3])
    cut = tiny_model.encode(TEXTS[:3], truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(cut, full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True), atol=1e-6)


def test_encode_quantizes_vectors(tiny_model):
    full = tiny_model.encode(TEXTS)
    np.testing.assert_array_equal(tiny_model.encode(TEXTS, precision="ubinary"), np.packbits(full > 0, axis=-1))
    assert tiny_model.encode(TEXTS, precision="int8").dtype == np.int8
    assert tiny_model.encode(TEXTS, precision="uint8", convert_to_tensor=True).dtype == torch.uint8
    assert tiny_model.encode("A cat.", precision="binary").shape == (4,)


def test_states_of_all_tokens_are_those_of_the_forward(tiny_model):
    states = tiny_model.encode(["A cat sat.", ""], output_value="token_embeddings")
    rows = tokenize_texts(
        tiny_model.tokenizer, ["A cat sat.", ""], prompt="Given the sentence, find its representation:", max_length=256
    ).input_ids
    for row, of_text in zip(rows, states, strict=True):
        with torch.no_grad():
            expected = tiny_model(torch.tensor([row]), mode="bidirectional").last_hidden_state[0]
        torch.testing.assert_close(of_text, expected, atol=1e-5, rtol=0)
    assert tiny_model.encode("A cat sat.", output_value="token_embeddings").equal(states[0])


def test_a_mean_leaves_the_prompt_out(tiny_model):
    prompt = "Find the text:\n"  # ends in a token of its own
    tokens = tiny_model.encode("A cat sat.", prompt=prompt, output_value="token_embeddings")
    own = tokens[1 + len(tiny_model.tokenizer(prompt, add_special_tokens=False)["input_ids"]) :]
    mean = tiny_model.encode("A cat sat.", prompt=prompt, pooling="mean")
    np.testing.assert_allclose(mean, own.mean(0), atol=1e-5)
    without = tiny_model.encode("A cat sat.", prompt="", output_value="token_embeddings")
    np.testing.assert_allclose(tiny_model.encode("A cat sat.", prompt="", pooling="mean"), without.mean(0), atol=1e-5)
    tiny_model.config.magnet["pooling"] = "mean"
    np.testing.assert_array_equal(tiny_model.encode("A cat sat.", prompt=prompt), mean)


def test_encode_query_and_document_use_stored_prompts(tiny_model):
    default = tiny_model.encode("A cat.")
    np.testing.assert_array_equal(tiny_model.encode_query("A cat."), default)
    np.testing.assert_array_equal(tiny_model.encode_document("A cat."), default)
    tiny_model.config.magnet["prompts"].update(query="Find: ", document="Text: ")
    np.testing.assert_array_equal(tiny_model.encode_query("A cat."), tiny_model.encode("A cat.", prompt="Find: "))
    np.testing.assert_array_equal(tiny_model.encode_document("A cat."), tiny_model.encode("A cat.", prompt="Text: "))
    np.testing.assert_array_equal(tiny_model.encode_query("A cat.", prompt=""), tiny_model.encode("A cat.", prompt=""))


def test_a_long_list_has_one_bar_that_counts_texts(tiny_model, capsys, monkeypatch):
    monkeypatch.setattr("modeling_magnet.encoding_magnet.TEXTS_TOKENIZED_AT_ONCE", 20)
    vectors = tiny_model.encode(TEXTS, show_progress_bar=True, batch_size=7)
    shown = capsys.readouterr().err
    assert "64/64" in shown and shown.count("\n") == 1
    np.testing.assert_allclose(vectors, tiny_model.encode(TEXTS), atol=1e-5)
    tiny_model.encode(TEXTS)
    assert capsys.readouterr().err == ""


def test_device_moves_the_model(tiny_model):
    np.testing.assert_array_equal(tiny_model.encode("A cat.", device="cpu"), tiny_model.encode("A cat."))
    assert tiny_model.encode("A cat.", convert_to_tensor=True, device=torch.device("cpu")).device.type == "cpu"


@pytest.fixture
def overflowing(tiny_model):
    """Build a float16 model in which only the state of BOS exceeds 65,504, as in Gemma."""
    tiny_model.model.embed_tokens.weight.data[1] = 65_000.0
    tiny_model.model.layers[0].mlp.down_proj.weight.data *= 1000
    assert np.isfinite(tiny_model.encode(["A cat sat."])).all(), "in float32"
    tiny_model.half()
    with torch.no_grad():
        states = tiny_model(torch.tensor([[3, 7, 4, 9]]), mode="bidirectional").last_hidden_state
    assert states.isfinite().all(), "without BOS"
    return tiny_model


CALLS = {
    "encode": lambda m: m.encode(["A cat."]),
    "one": lambda m: m.encode("A cat."),
    "query": lambda m: m.encode_query("A cat."),
    "tensor": lambda m: m.encode(["A cat."], convert_to_tensor=True),
    "ubinary": lambda m: m.encode(["A cat."], precision="ubinary"),
    "int8": lambda m: m.encode(["A cat.", "A dog."], precision="int8"),
    "normalized": lambda m: m.encode(["A cat."], normalize_embeddings=True),
    "token embeddings": lambda m: m.encode(["A cat."], output_value="token_embeddings"),
    "everything": lambda m: m.encode(["A cat."], output_value=None),
    "tokens": lambda m: m.encode_tokens("A cat."),
    "words": lambda m: m.encode_words("A cat sat"),
    "infill": lambda m: m.infill("A cat", " sat.", max_new_tokens=1),
    "score_infill": lambda m: m.score_infill("A cat", [" has"], " sat."),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_bos_that_overflows_float16_raises(overflowing, call):
    with pytest.raises(RuntimeError, match=r"float16.*dtype='bfloat16'.*dtype='float32'"):
        call(overflowing)


@pytest.mark.parametrize(
    "call",
    [CALLS[name] for name in CALLS if "infill" not in name],
    ids=[name for name in CALLS if "infill" not in name],
)
def test_non_finite_vectors_raise_after_a_passed_probe(tiny_model, monkeypatch, call):
    """Return a token that only some texts contain: `A`."""
    (letter,) = tiny_model.tokenizer("A", add_special_tokens=False)["input_ids"]
    tiny_model.model.embed_tokens.weight.data[letter] = float("nan")
    with pytest.raises(RuntimeError, match=r"of \d texts .*finite: texts 0 \('A cat"):
        call(tiny_model)


def test_texts_with_non_finite_vectors_are_listed(tiny_model, monkeypatch):
    monkeypatch.setattr("modeling_magnet.encoding_magnet.TEXTS_TOKENIZED_AT_ONCE", 3)
    monkeypatch.setattr("modeling_magnet.encoding_magnet.BATCHES_MOVED_AT_ONCE", 1)
    (letter,) = tiny_model.tokenizer("Z", add_special_tokens=False)["input_ids"]
    tiny_model.model.embed_tokens.weight.data[letter] = float("inf")
    texts = ["the cat", "a Z", "the dog sat on the mat", "Z"]
    for arguments in ({"output_value": "token_embeddings"}, {"output_value": None}):
        with pytest.raises(RuntimeError, match=r"2 of 4 .*finite: texts 1 \('a Z'\), 3 \('Z'\)"):
            tiny_model.encode(texts, **arguments)
    with pytest.raises(RuntimeError, match=r"1 of 3 texts .*finite: texts 1 \('a Z'\)"):
        tiny_model.encode(texts)
    with pytest.raises(RuntimeError, match=r"texts 1 \('a Z'\), 3 \('Z'\)"):
        tiny_model.encode_words(texts)


def test_truncated_texts_are_counted_in_one_warning(tiny_model, monkeypatch):
    monkeypatch.setattr("modeling_magnet.encoding_magnet.TEXTS_TOKENIZED_AT_ONCE", 2)
    texts = ["the cat sat " * 100, "A cat.", "the dog " * 200, "a " * 90]
    lengths = [len(tiny_model.tokenizer(text)["input_ids"]) + 1 for text in texts]
    lost = [length - 256 for length in lengths if length > 256]
    assert len(lost) == 2
    message = rf"2 of 4 .*256 tokens.* {max(lost)} tokens.*\({sum(lost)} in total"
    for output_value in ("sentence_embedding", "token_embeddings", None):
        with pytest.warns(UserWarning, match=message) as caught:
            tiny_model.encode(texts, prompt="", batch_size=1, output_value=output_value)
        assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"1 of 1 .*20 tokens.*`max_length` up to 256"):
        tiny_model.encode(texts[3], prompt="", max_length=20)
    length = len(tiny_model.tokenizer("a " * 60)["input_ids"]) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_model.encode("a " * 60, prompt="", max_length=length)
    with pytest.warns(UserWarning, match=r"up to 1 tokens each \(1 in total\)"):
        tiny_model.encode("a " * 60, prompt="", max_length=length - 1)


def test_token_embeddings_are_truncated_and_normalized_on_request(tiny_model):
    texts = ["A cat sat.", ""]
    full = tiny_model.encode(texts, output_value="token_embeddings")
    cut = tiny_model.encode(texts, output_value="token_embeddings", truncate_dim=4, normalize_embeddings=True)
    for own, whole in zip(cut, full, strict=True):
        torch.testing.assert_close(own, normalize(whole[:, :4], dim=-1))


def test_output_value_none_returns_all_outputs(tiny_model):
    texts = ["The dog sat on the mat.", "", "A cat."]
    outputs = tiny_model.encode(texts, output_value=None, normalize_embeddings=True, truncate_dim=8, pooling="mean")
    states = tiny_model.encode(texts, output_value="token_embeddings")
    vectors = tiny_model.encode(texts, normalize_embeddings=True, truncate_dim=8, pooling="mean")
    prompt = tiny_model.magnet_settings.prompts["sentence"]
    rows = tokenize_texts(tiny_model.tokenizer, texts, prompt=prompt, max_length=256).input_ids
    for output, row, of_text, vector in zip(outputs, rows, states, vectors, strict=True):
        assert set(output) == {"input_ids", "attention_mask", "token_embeddings", "sentence_embedding"}
        assert output["input_ids"].tolist() == row and output["attention_mask"].tolist() == [1] * len(row)
        torch.testing.assert_close(output["token_embeddings"], of_text)
        np.testing.assert_allclose(output["sentence_embedding"].numpy(), vector, atol=1e-6)
    single = tiny_model.encode(texts[2], output_value=None)
    assert isinstance(single, dict) and single["input_ids"].tolist() == rows[2]
    assert tiny_model.encode([], output_value=None) == [] == tiny_model.encode([], output_value="token_embeddings")


def test_sentences_is_an_alias_of_inputs(tiny_model):
    expected = tiny_model.encode(["A cat.", "A dog."])
    np.testing.assert_array_equal(tiny_model.encode(sentences=["A cat.", "A dog."]), expected)
    assert tiny_model.encode(sentences="A cat.").shape == (32,)
    np.testing.assert_array_equal(tiny_model.encode_query(sentences=["A cat.", "A dog."]), expected)
    np.testing.assert_array_equal(tiny_model.encode_document(sentences=["A cat.", "A dog."]), expected)


def test_a_control_token_in_a_text_is_plain_text_by_default(tiny_model):
    typed = "A cat.</s> <s>sat"
    one, other = (tiny_model.encode(typed, output_value=None, split_special_tokens=split) for split in (True, False))
    assert one["input_ids"].tolist().count(2) == 1 and one["input_ids"].tolist().count(1) == 1, "BOS and EOS we add"
    assert other["input_ids"].tolist().count(2) == 2 and other["input_ids"].tolist().count(1) == 2
    np.testing.assert_allclose(tiny_model.encode(typed), one["sentence_embedding"].numpy(), atol=1e-6)
    tokens, words = tiny_model.encode_tokens(typed), tiny_model.encode_words(typed)
    ids = torch.tensor(
        [[1, *tiny_model.tokenizer(typed, add_special_tokens=False, split_special_tokens=True).input_ids]]
    )
    with torch.no_grad():
        states = tiny_model(ids, mode="bidirectional").last_hidden_state[0]
    np.testing.assert_allclose(tokens.vectors, states[:-1].numpy(), atol=1e-5)
    assert len(words.vectors) == 3
    read = tiny_model.encode_tokens(typed, split_special_tokens=False)
    assert len(read.vectors) == len(tiny_model.tokenizer(typed, split_special_tokens=False)["input_ids"]) - 1
    assert np.abs(words.vectors - tiny_model.encode_words(typed, split_special_tokens=False).vectors).max() > 1e-3


def test_a_control_token_in_a_prompt_is_counted_as_it_is_read(tiny_model):
    prompt = "Find </s>\n"
    for split in (True, False):
        options = {"prompt": prompt, "split_special_tokens": split}
        states = tiny_model.encode("A cat.", output_value="token_embeddings", **options)
        ids = tiny_model.tokenizer(prompt, add_special_tokens=False, split_special_tokens=split)["input_ids"]
        mean = tiny_model.encode("A cat.", pooling="mean", **options)
        np.testing.assert_allclose(mean, states[1 + len(ids) :].mean(0), atol=1e-5)


def test_the_first_word_under_a_prompt_that_ends_in_a_space_is_left_out_of_a_mean_but_has_a_vector(tiny_model):
    """` A` is one token, whose space counts as part of the prompt `Find: `, as in sentence-transformers."""
    ids = tiny_model.tokenizer("Find: the cat", add_special_tokens=False)["input_ids"]
    alone = tiny_model.tokenizer("Find: ", add_special_tokens=False)["input_ids"]
    word = tiny_model.tokenizer(" the", add_special_tokens=False)["input_ids"]
    assert ids[: len(alone)] == [*alone[:-1], *word] and len(word) == 1
    states = tiny_model.encode("the cat", prompt="Find: ", output_value="token_embeddings")
    mean = tiny_model.encode("the cat", prompt="Find: ", pooling="mean")
    np.testing.assert_allclose(mean, states[1 + len(alone) :].mean(0), atol=1e-5)
    _, offsets = tiny_model.encode_tokens("the cat", prompt="Find: ")
    assert offsets[0].tolist() == [0, 3]
    assert tiny_model.encode_words("the cat", prompt="Find: ").offsets.tolist() == [[0, 3], [4, 7]]


def test_prompts_are_changed_in_place_or_set(tiny_model, tmp_path):
    tiny_model.prompts["query"] = "Find: "
    np.testing.assert_array_equal(tiny_model.encode_query("A cat."), tiny_model.encode("A cat.", prompt="Find: "))
    tiny_model.default_prompt_name = "query"
    np.testing.assert_array_equal(tiny_model.encode("A cat."), tiny_model.encode("A cat.", prompt="Find: "))
    tiny_model.default_prompt_name = None
    tiny_model.prompts = {"document": "Text: "}
    np.testing.assert_array_equal(tiny_model.encode_query("A cat."), tiny_model.encode("A cat.", prompt=""))
    tiny_model.save_pretrained(tmp_path)
    again = MagnetLlamaForCausalLM.from_pretrained(tmp_path)
    assert again.prompts == {"document": "Text: "} and again.default_prompt_name is None


def test_similarity_is_set_by_name(tiny_model):
    vectors = tiny_model.encode(["A cat.", "A dog."])
    assert tiny_model.similarity_fn_name == "cosine"
    tiny_model.similarity_fn_name = "dot"
    np.testing.assert_allclose(tiny_model.similarity(vectors, vectors), vectors @ vectors.T, rtol=1e-4)
    enumeration = pytest.importorskip("sentence_transformers").SimilarityFunction
    for name in SIMILARITIES:
        tiny_model.similarity_fn_name = enumeration(name)
        assert tiny_model.similarity_fn_name == name == tiny_model.config.magnet["similarity_fn_name"]


def test_the_longest_row_is_read_and_set(tiny_model):
    assert tiny_model.max_seq_length == 256
    text = "the cat sat on the mat " * 5
    short = tiny_model.encode(text, prompt="", max_length=16)
    tiny_model.max_seq_length = 16
    assert tiny_model.max_seq_length == 16 == tiny_model.tokenizer.model_max_length
    with pytest.warns(UserWarning, match="longer than 16 tokens"):
        np.testing.assert_array_equal(tiny_model.encode(text, prompt=""), short)
    assert tiny_model.preprocess([text])["input_ids"].shape == (1, 16)


def test_the_embedding_dimension_has_two_names(tiny_model):
    width = tiny_model.encode("A cat.").shape[-1]
    assert tiny_model.get_embedding_dimension() == tiny_model.get_sentence_embedding_dimension() == width


def test_token_rows_are_those_of_encode(tiny_model):
    texts = ["The dog sat on the mat.", "A </s> cat."]
    features = tiny_model.preprocess(texts, prompt="Find: ")
    with torch.no_grad():
        states = tiny_model(**features, mode="bidirectional").last_hidden_state
    expected = tiny_model.encode(texts, prompt="Find: ", output_value="token_embeddings")
    for row, mask, own in zip(states, features["attention_mask"], expected, strict=True):
        torch.testing.assert_close(row[mask.bool()], own, atol=1e-5, rtol=0)
    older = tiny_model.tokenize(texts, prompt="Find: ")
    assert all(older[name].equal(features[name]) for name in ("input_ids", "attention_mask"))
    assert tiny_model.preprocess(["A </s> cat."], split_special_tokens=False)["input_ids"].tolist()[0].count(2) == 2
    assert tiny_model.tokenize([]) == {}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompts", {"query": 3}, r"'query'.* 3"),
        ("prompts", {}, r"`default_prompt_name` is 'sentence'.*\[\]"),
        ("default_prompt_name", "nothing", r"`default_prompt_name` is 'nothing'"),
        ("similarity_fn_name", "cos", r"`similarity_fn_name` is 'cos'"),
        ("max_seq_length", 2, r"`max_seq_length` is 2; .* from 3 to 256"),
        ("max_seq_length", 300, r"`max_seq_length` is 300"),
        ("max_seq_length", None, r"`max_seq_length` is None"),
    ],
)
def test_invalid_settings_raise_and_change_nothing(tiny_model, name, value, message):
    before = dict(tiny_model.config.magnet), tiny_model.max_seq_length
    with pytest.raises(ValueError, match=message):
        setattr(tiny_model, name, value)
    assert (tiny_model.config.magnet, tiny_model.max_seq_length) == before


def test_preprocess_raises_for_a_single_string(tiny_model):
    for call in (tiny_model.preprocess, tiny_model.tokenize):
        with pytest.raises(ValueError, match=r"`inputs` is str \('A cat.'\)"):
            call("A cat.")


def test_encode_raises_for_a_backend_without_bidirectional_masks(tiny_model):
    tiny_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        tiny_model.encode("A cat.")


@pytest.mark.parametrize("texts", [["a dog"], ["a dog", "the dog " * 5], ["word " * 90] * 3])
def test_bfloat16_batches_on_a_cpu_are_padded_to_even_shapes(tiny_model, monkeypatch, texts):
    seen = []
    model = tiny_model.to(torch.bfloat16)
    forward = type(model.base_model).forward

    def spy(self, *args, **kwargs):
        seen.append(tuple(kwargs["inputs_embeds"].shape[:2]))
        return forward(self, *args, **kwargs)

    model.encode(texts)  # the probe has forwards of its own
    monkeypatch.setattr(type(model.base_model), "forward", spy)
    vectors = model.encode(texts, convert_to_tensor=True)
    assert seen and all((width == 16 or width % 32 == 0) and rows * width >= 1024 for rows, width in seen)
    padded = model.encode([*texts, "another text " * 9], convert_to_tensor=True)
    assert torch.equal(padded[: len(texts)], vectors), "and a text has one vector whatever stands beside it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_check_attention_passes_for_real_models(real_llama, implementation, dtype):
    check_attention(
        MagnetLlamaForCausalLM.from_pretrained(real_llama, attn_implementation=implementation, dtype=dtype)
    )


@pytest.mark.parametrize("initializer_range", [0.02, 0.2])
def test_check_attention_passes_for_untrained_models(tiny_config, initializer_range):
    tiny_config = type(tiny_config).from_dict({**tiny_config.to_dict(), "initializer_range": initializer_range})
    for seed in range(5):
        torch.manual_seed(seed)
        check_attention(MagnetLlamaForCausalLM(tiny_config))


def lose_mask(model):
    """Ignore the model's mask, so that all modes are causal, as an upgrade of transformers could."""
    forward = model.base_model.forward
    model.base_model.forward = lambda **kwargs: forward(**{**kwargs, "attention_mask": None})


def lose_causality(model):
    """Replace every mask, so that all modes are bidirectional."""
    forward = model.base_model.forward

    def see_all(**kwargs):
        given = kwargs["input_ids"] if kwargs["inputs_embeds"] is None else kwargs["inputs_embeds"]
        batch_size, length = given.shape[:2]
        return forward(**{**kwargs, "attention_mask": torch.ones(batch_size, 1, length, length, dtype=torch.bool)})

    model.base_model.forward = see_all


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lose_mask, "bidirectional mode does not see later tokens"),
        (lose_causality, "causal mode sees later tokens"),
    ],
)
def test_encode_raises_if_the_mask_is_ignored(tiny_model, break_it, complaint):
    break_it(tiny_model)
    for call in (lambda: tiny_model.encode("A cat."), lambda: tiny_model.encode_words("A cat.")):
        with pytest.raises(RuntimeError, match=rf"'sdpa_magnet' on cpu in torch.float32, tr.*{complaint}"):
            call()


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_states_that_are_not_finite_are_reported(tiny_model, number):
    tiny_model.model.layers[1].mlp.down_proj.weight.data[3, 4] = float(number)
    with pytest.raises(RuntimeError, match=r"not finite.*'sdpa_magnet' .*torch.float32"):
        tiny_model.encode("A cat.")


def test_the_probe_runs_once_per_backend(tiny_model, monkeypatch):
    calls = []
    monkeypatch.setattr("modeling_magnet.batching_magnet.check_attention", lambda model: calls.append(model))
    for implementation in ("sdpa", "sdpa", "eager", "sdpa"):
        tiny_model.set_attn_implementation(implementation)
        tiny_model.encode("A cat.")
    assert len(calls) == 2
    tiny_model.bfloat16().encode("A cat.")
    assert len(calls) == 3
