"""What users of sentence-transformers read and set: the names, the values, and that they are saved."""

import numpy as np
import pytest
import torch

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.pooling_magnet import SIMILARITIES


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


def test_the_width_is_told_under_both_names(tiny_model):
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
        ("prompts", {"query": 3}, r"Prompt 'query' is 3; expected a string"),
        ("prompts", {}, r"`default_prompt_name` is 'sentence', but the stored prompts are \[\]"),
        ("default_prompt_name", "nothing", r"`default_prompt_name` is 'nothing'"),
        ("similarity_fn_name", "cos", r"`similarity_fn_name` is 'cos'; expected one of"),
        ("max_seq_length", 2, r"`max_seq_length` is 2; expected a whole number of at least 3"),
        ("max_seq_length", 300, r"`max_seq_length` is 300; the model has a context of 256"),
        ("max_seq_length", None, r"`max_seq_length` is None; expected a whole number"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(tiny_model, name, value, message):
    before = dict(tiny_model.config.magnet), tiny_model.max_seq_length
    with pytest.raises(ValueError, match=message):
        setattr(tiny_model, name, value)
    assert (tiny_model.config.magnet, tiny_model.max_seq_length) == before


def test_a_single_text_is_no_list(tiny_model):
    for call in (tiny_model.preprocess, tiny_model.tokenize):
        with pytest.raises(ValueError, match=r"`inputs` is a string \('A cat.'\).*Put it into a list"):
            call("A cat.")
