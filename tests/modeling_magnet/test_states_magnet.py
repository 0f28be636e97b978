"""Rows laid end to end give the states of rows apart."""

import numpy as np
import pytest
import torch

from modeling_magnet import MagnetLlamaForCausalLM

TEXTS = [f"The cat{' and the dog' * number} slept." for number in (0, 7, 1, 3, 0)]


@pytest.fixture
def fresh_compiler():
    """No kernels of other tests: compiled again for any length, flex does not build on a CPU (torch 2.13)."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.usefixtures("fresh_compiler")
def test_packed_vectors_are_the_padded_ones(wiki_7m):
    wiki = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    expected = {
        pooling: wiki.encode(TEXTS, normalize_embeddings=True, pooling=pooling) for pooling in ("last", "mean")
    }
    words = wiki.encode_words(TEXTS)
    wiki.set_attn_implementation("flex_attention")
    for pooling, vectors in expected.items():
        for batch_tokens in (40, 10_000):
            packed = wiki.encode(TEXTS, normalize_embeddings=True, pooling=pooling, batch_tokens=batch_tokens)
            np.testing.assert_allclose(packed, vectors, atol=1e-5, rtol=0)
    for (vectors, _), (theirs, _) in zip(wiki.encode_words(TEXTS), words, strict=True):
        np.testing.assert_allclose(vectors, theirs, atol=1e-4)


def test_a_back_end_without_a_bidirectional_mask_is_refused(tiny_model):
    tiny_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        tiny_model.encode("A cat.")


@pytest.mark.parametrize("texts", [["a dog"], ["a dog", "the dog " * 5], ["word " * 90] * 3])
def test_shapes_in_bfloat16_on_a_cpu_are_those_with_one_order_of_sums(tiny_model, monkeypatch, texts):
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
