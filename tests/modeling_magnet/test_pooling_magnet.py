"""Test pooling, similarity and quantization against loops and sentence-transformers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modeling_magnet.configuration_magnet import POOLINGS, SIMILARITIES
from modeling_magnet.pooling_magnet import (
    PRECISIONS,
    pool_states,
    quantize_embeddings,
    similarity_matrix,
    similarity_pairs,
)
from modeling_magnet.tokenization_magnet import pad_token_rows


def by_loop(states, mask, *, pooling, prompt_length):
    """Pool one text at a time."""
    vectors = []
    for row, real in zip(states.double(), mask.bool(), strict=True):
        tokens = row[real]
        if pooling == "last":
            vectors.append(tokens[-1])
            continue
        weights = [float(place + 1) if pooling == "weighted_mean" else 1.0 for place in range(len(tokens))]
        kept = list(zip(weights, tokens, strict=True))[prompt_length:]
        vectors.append(sum(weight * token for weight, token in kept) / sum(weight for weight, _ in kept))
    return torch.stack(vectors)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 9), min_size=1, max_size=5),
    pooling=st.sampled_from(POOLINGS),
    prompt_length=st.integers(0, 3),
    padding_side=st.sampled_from(["left", "right"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_pooling_equals_a_loop(lengths, pooling, prompt_length, padding_side, dtype):
    batch = pad_token_rows([[1] * length for length in lengths], pad_token_id=0, padding_side=padding_side)
    states = torch.randn(*batch["input_ids"].shape, 5, generator=torch.Generator().manual_seed(sum(lengths))).to(dtype)
    arguments = {"pooling": pooling, "prompt_length": prompt_length}
    vectors = pool_states(states, batch["attention_mask"], **arguments)
    assert vectors.dtype == torch.float32
    expected = by_loop(states, batch["attention_mask"], **arguments)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_a_row_that_is_no_longer_than_the_prompt_has_the_vector_of_its_last_token(pooling, padding_side):
    batch = pad_token_rows([[5, 6, 7, 8], [8, 9]], pad_token_id=0, padding_side=padding_side)
    states = batch["input_ids"][..., None].float()
    vectors = pool_states(states, batch["attention_mask"], pooling=pooling, prompt_length=3)
    assert vectors.tolist() == [[8.0], [9.0]]


def test_an_unknown_pooling_raises():
    with pytest.raises(ValueError, match=r"`pooling` is 'cls'"):
        pool_states(torch.zeros(1, 1, 1), torch.ones(1, 1), pooling="cls")


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_equal_sentence_transformers(name):
    functions = pytest.importorskip("sentence_transformers", reason="an optional extra").SimilarityFunction
    left, right = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    expected = functions.to_similarity_fn(name)(left, right[:3])
    scores = similarity_matrix(left, right[:3], name=name)
    assert scores.shape == (4, 3)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    pairs = similarity_pairs(left, right, name=name)
    np.testing.assert_allclose(pairs, functions.to_similarity_pairwise_fn(name)(left, right), atol=1e-5)


def test_similarity_accepts_lists_tensors_and_single_vectors(tiny_model):
    vectors = tiny_model.encode(["A cat.", "A dog.", "A cat."])
    scores = tiny_model.similarity(vectors, [torch.from_numpy(row) for row in vectors])
    assert scores[0, 2] == pytest.approx(1.0, abs=1e-6) and scores[0, 1] < 0.9999
    assert tiny_model.similarity(vectors[0], vectors[1]).shape == (1, 1)
    np.testing.assert_allclose(
        tiny_model.similarity_pairwise(vectors, vectors[::-1]), scores.flip(1).diag(), atol=1e-6
    )
    tiny_model.config.magnet["similarity_fn_name"] = "euclidean"
    assert tiny_model.similarity(vectors, vectors)[0, 2] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("compare", [similarity_matrix, similarity_pairs])
def test_invalid_similarity_arguments_raise(compare):
    with pytest.raises(ValueError, match=r"`similarity_fn_name` is 'jaccard'"):
        compare(np.zeros((1, 3)), np.zeros((1, 3)), name="jaccard")
    for rows in (np.zeros((1, 2, 3)), torch.zeros(1, 2, 3), 5):
        with pytest.raises(ValueError, match=r"shape \((1, 2, 3)?\)"):
            compare(rows, np.zeros((2, 3)), name="cosine")


def test_pairwise_similarity_of_different_lengths_raises():
    with pytest.raises(ValueError, match=r"2 and 3 embeddings do not make pairs"):
        similarity_pairs(np.zeros((2, 3)), np.zeros((3, 3)), name="dot")


VECTORS = arrays(
    np.float32,
    st.tuples(st.integers(2, 6), st.integers(1, 20)),
    elements=st.floats(-4, 4, width=32, allow_subnormal=False),
)


@settings(max_examples=100, deadline=None)
@given(vectors=VECTORS, precision=st.sampled_from(PRECISIONS))
def test_quantized_vectors_equal_sentence_transformers(vectors, precision):
    theirs = pytest.importorskip("sentence_transformers.util", reason="an optional extra").quantize_embeddings
    expected = theirs(vectors, precision=precision)
    ours = quantize_embeddings(vectors, precision=precision)
    assert ours.dtype == expected.dtype and ours.shape == expected.shape
    np.testing.assert_array_equal(ours, expected)


def test_given_ranges_make_queries_and_documents_comparable():
    documents = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    ranges = np.stack([documents.min(0), documents.max(0)])
    together = quantize_embeddings(documents, precision="uint8")
    alone = quantize_embeddings(documents[3:4], precision="uint8", ranges=ranges)
    np.testing.assert_array_equal(alone[0], together[3])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_quantizing_no_vectors_returns_none(precision):
    assert len(quantize_embeddings(np.zeros((0, 16), dtype=np.float32), precision=precision)) == 0


def test_invalid_quantization_arguments_raise():
    with pytest.raises(ValueError, match=r"`precision` is 'int4'"):
        quantize_embeddings(np.zeros((2, 4)), precision="int4")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_quantizing_non_finite_vectors_raises(precision, number):
    embeddings = np.ones((3, 4), dtype=np.float32)
    embeddings[1, 2] = number
    with pytest.raises(ValueError, match="1 of 3 embeddings are not finite, row 1 first"):
        quantize_embeddings(embeddings, precision=precision)
