"""States to one vector: against a loop, wherever the padding is, and as sentence-transformers pools."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_magnet.checkpoint_magnet import POOLING_MODES
from modeling_magnet.pooling_magnet import POOLINGS, last_token_states, pool_states
from modeling_magnet.tokenization_magnet import pad_token_rows


def by_loop(states, mask, *, pooling, prompt_length):
    """The definition, one text at a time."""
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
def test_pooling_is_its_definition(lengths, pooling, prompt_length, padding_side, dtype):
    batch = pad_token_rows([[1] * length for length in lengths], pad_token_id=0, padding_side=padding_side)
    states = torch.randn(*batch["input_ids"].shape, 5, generator=torch.Generator().manual_seed(sum(lengths))).to(dtype)
    arguments = {"pooling": pooling, "prompt_length": prompt_length}
    vectors = pool_states(states, batch["attention_mask"], **arguments)
    assert vectors.dtype == torch.float32
    expected = by_loop(states, batch["attention_mask"], **arguments)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("prompt_length", [0, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_is_that_of_sentence_transformers(pooling, prompt_length, padding_side):
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules", reason="an optional extra")
    theirs = modules.Pooling(5, pooling_mode=POOLING_MODES[pooling], include_prompt=False)
    batch = pad_token_rows([[1] * 7, [1] * 4, [1] * 5], pad_token_id=0, padding_side=padding_side)
    states = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    features = {"token_embeddings": states, "attention_mask": batch["attention_mask"], "prompt_length": prompt_length}
    expected = theirs(features)["sentence_embedding"]
    vectors = pool_states(states, batch["attention_mask"], pooling=pooling, prompt_length=prompt_length)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_last_real_token_is_found_on_either_side(padding_side):
    batch = pad_token_rows([[5, 6, 7], [8], [9, 9]], pad_token_id=0, padding_side=padding_side)
    states = batch["input_ids"][..., None].float()
    assert last_token_states(states, batch["attention_mask"]).tolist() == [[7.0], [8.0], [9.0]]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_a_row_that_is_no_longer_than_the_prompt_has_the_vector_of_its_last_token(pooling, padding_side):
    batch = pad_token_rows([[5, 6, 7, 8], [8, 9]], pad_token_id=0, padding_side=padding_side)
    states = batch["input_ids"][..., None].float()
    vectors = pool_states(states, batch["attention_mask"], pooling=pooling, prompt_length=3)
    assert vectors.tolist() == [[8.0], [9.0]]


def test_an_unknown_pooling_is_named():
    with pytest.raises(ValueError, match=r"`pooling` is 'cls'; expected one of \['last', 'mean', 'weighted_mean'\]"):
        pool_states(torch.zeros(1, 1, 1), torch.ones(1, 1), pooling="cls")
