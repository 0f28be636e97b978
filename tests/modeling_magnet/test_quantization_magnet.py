"""Bytes and bits for embeddings: what sentence-transformers makes of the same vectors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modeling_magnet.pooling_magnet import PRECISIONS, quantize_embeddings

VECTORS = arrays(
    np.float32,
    st.tuples(st.integers(2, 6), st.integers(1, 20)),
    elements=st.floats(-4, 4, width=32, allow_subnormal=False),
)


@settings(max_examples=100, deadline=None)
@given(vectors=VECTORS, precision=st.sampled_from(PRECISIONS))
def test_quantised_vectors_are_those_of_sentence_transformers(vectors, precision):
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
def test_no_vectors_stay_none(precision):
    assert len(quantize_embeddings(np.zeros((0, 16), dtype=np.float32), precision=precision)) == 0


def test_what_cannot_be_quantised_is_named():
    with pytest.raises(ValueError, match=r"precision='int8' takes each dimension's range .* one only"):
        quantize_embeddings(np.zeros((1, 4)), precision="int8")
    with pytest.raises(ValueError, match=r"`precision` is 'int4'; expected one of"):
        quantize_embeddings(np.zeros((2, 4)), precision="int4")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(precision, number):
    embeddings = np.ones((3, 4), dtype=np.float32)
    embeddings[1, 2] = number
    with pytest.raises(ValueError, match="1 of 3 embeddings are not finite, row 1 first"):
        quantize_embeddings(embeddings, precision=precision)
