"""Test token vectors of encoders and decoders: windows, padding on either side, and the default reading."""

import argparse

import numpy as np
import pytest
import torch
from peft import LoraConfig

from examples.evaluate.word_readers import encoder_tokens, open_reader, reading_of

from .tiny_encoder import make_bert, make_wordpiece, make_xlnet, save_bert

TEXTS = ["The cat sat on the mat .", "A king", "Unbelievably , the little girl lived in the forest for breakfast ."]


@torch.no_grad()
def states_of(model, ids):
    """Return the states of one row without padding, `[CLS]` and `[SEP]`."""
    return model(torch.tensor([[2, *ids, 3]])).last_hidden_state[0, 1:-1].numpy()


@pytest.mark.parametrize("kind", ["bert", "xlnet"])
def test_token_states_equal_single_rows(kind):
    model, tokenizer = (make_bert(), make_wordpiece()) if kind == "bert" else (make_xlnet(), make_wordpiece())
    tokenizer.padding_side = "right" if kind == "bert" else "left"
    for text, (vectors, offsets) in zip(TEXTS, encoder_tokens(model, tokenizer, TEXTS), strict=True):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(offsets, encoded["offset_mapping"])
        np.testing.assert_allclose(vectors, states_of(model, encoded["input_ids"]), atol=1e-5)


def test_reading_is_detected_from_the_directory(tmp_path, tiny_model, checkpoint):
    tiny_model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2))
    tiny_model.save_pretrained(tmp_path / "adapter")
    save_bert(tmp_path / "bert")
    for name in ("tiny", "adapter"):
        assert reading_of(str(tmp_path / name), None) == "bidirectional"
        assert reading_of(str(tmp_path / name), "causal") == "causal"
    assert reading_of(str(tmp_path / "bert"), None) == reading_of(str(tmp_path / "bert"), "encoder") == "encoder"
    with pytest.raises(ValueError, match="is a decoder; expected --reading bidirectional or causal"):
        reading_of(str(checkpoint), "encoder")
    with pytest.raises(ValueError, match="a model of type 'bert'"):
        reading_of(str(tmp_path / "bert"), "causal")
    with pytest.raises(ValueError, match="As an encoder: "):
        reading_of(str(tmp_path), None)
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        reading_of(str(checkpoint), None)


def test_saved_model_is_opened_in_its_reading(tmp_path, tiny_model, checkpoint):
    args = argparse.Namespace(dtype="float32", device="cpu", shift="same")
    for mode in ("bidirectional", "causal"):
        (found,) = open_reader(str(checkpoint), args, reading=mode)(TEXTS[:1])
        expected = tiny_model.encode_tokens(TEXTS[0], shift="same", mode=mode)
        np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)
    save_bert(tmp_path / "bert")
    (found,) = open_reader(str(tmp_path / "bert"), args, reading="encoder")(TEXTS[:1])
    expected = encoder_tokens(make_bert(), make_wordpiece(), TEXTS[:1])[0]
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)
