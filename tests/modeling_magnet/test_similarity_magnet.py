"""Similarities of embeddings: what sentence-transformers computes under the same names."""

import numpy as np
import pytest
import torch

from modeling_magnet.pooling_magnet import SIMILARITIES, similarity_matrix, similarity_pairs


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_are_those_of_sentence_transformers(name):
    functions = pytest.importorskip("sentence_transformers", reason="an optional extra").SimilarityFunction
    left, right = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    expected = functions.to_similarity_fn(name)(left, right[:3])
    scores = similarity_matrix(left, right[:3], name=name)
    assert scores.shape == (4, 3)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    pairs = similarity_pairs(left, right, name=name)
    np.testing.assert_allclose(pairs, functions.to_similarity_pairwise_fn(name)(left, right), atol=1e-5)


def test_lists_tensors_and_single_vectors_will_do(tiny_model):
    vectors = tiny_model.encode(["A cat.", "A dog.", "A cat."])
    scores = tiny_model.similarity(vectors, [torch.from_numpy(row) for row in vectors])
    assert scores[0, 2] == pytest.approx(1.0, abs=1e-6) and scores[0, 1] < 0.9999
    assert tiny_model.similarity(vectors[0], vectors[1]).shape == (1, 1)
    np.testing.assert_allclose(
        tiny_model.similarity_pairwise(vectors, vectors[::-1]), scores.flip(1).diag(), atol=1e-6
    )
    tiny_model.config.magnet["similarity_fn_name"] = "euclidean"
    assert tiny_model.similarity(vectors, vectors)[0, 2] == pytest.approx(0.0, abs=1e-3)


def test_what_cannot_be_compared_is_named():
    with pytest.raises(ValueError, match=r"of 3 and of 2 dimensions"):
        similarity_matrix(np.zeros((1, 3)), np.zeros((1, 2)), name="dot")
    with pytest.raises(ValueError, match=r"The similarity is 'jaccard'; expected one of"):
        similarity_matrix(np.zeros((1, 3)), np.zeros((1, 3)), name="jaccard")
    with pytest.raises(ValueError, match=r"2 and 3 embeddings do not make pairs"):
        similarity_pairs(np.zeros((2, 3)), np.zeros((3, 3)), name="dot")
    vectors = np.zeros((2, 3))
    for given, message in (
        (None, r"Embeddings were given as NoneType \(None\), which is no array of numbers"),
        (["a"], r"as list \(\['a'\]\), which is no array"),
        ("abc", r"as str \('abc'\), which is no array"),
        ([[1.0, 2.0], [3.0]], r"as list .*no array of numbers.*Pass what `encode` returns"),
        ([torch.zeros(3), torch.zeros(2)], r"as list .*no array of numbers"),
        (5, r"in shape \(\); expected \(width,\) or \(number, width\)"),
        (vectors[None], r"in shape \(1, 2, 3\)"),
        (torch.zeros(1, 2, 3), r"in shape \(1, 2, 3\)"),
    ):
        for compare in (similarity_matrix, similarity_pairs):
            for pair in ((given, vectors), (vectors, given)):
                with pytest.raises(ValueError, match=message):
                    compare(*pair, name="cosine")
