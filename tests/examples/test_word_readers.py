"""Test token and word vectors of encoders and decoders, and the default reading."""

from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from examples.evaluate.parts.word_readers import encoder_tokens, reading_of, tabulate

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
    adapted = type(tiny_model).from_pretrained(checkpoint)
    adapted.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2))
    adapted.save_pretrained(tmp_path / "adapter")
    save_bert(tmp_path / "bert")
    for name in ("tiny", "adapter"):
        assert reading_of(str(tmp_path / name), None) == "bidirectional"
        assert reading_of(str(tmp_path / name), "causal") == "causal"
    assert reading_of(str(tmp_path / "bert"), None) == reading_of(str(tmp_path / "bert"), "encoder") == "encoder"
    with pytest.raises(ValueError, match="--reading bidirectional or causal"):
        reading_of(str(checkpoint), "encoder")
    with pytest.raises(ValueError, match="a model of type 'bert'"):
        reading_of(str(tmp_path / "bert"), "causal")
    with pytest.raises(ValueError, match="As an encoder: "):
        reading_of(str(tmp_path), None)
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        reading_of(str(checkpoint), None)


SENTENCES = [["The", "naïve", "cat", "'s", "mat", "."], ["Unbelievably", ",", "日本"], ["A"]]


@pytest.mark.parametrize("mode", ["bidirectional", "causal"])
def test_decoder_word_is_the_mean_of_shifted_outputs(tiny_model, checkpoint, mode):
    stock = AutoModelForCausalLM.from_pretrained(checkpoint).model.eval()
    table = tabulate(partial(tiny_model.encode_tokens, mode=mode), SENTENCES, description="states")
    assert table.bounds.tolist() == [0, 6, 9, 10] and table.num_without_tokens == 0
    row = 0
    for words in SENTENCES:
        ids, owners = [1], [None]
        for number, word in enumerate(words):
            # Byte-level: the space before a word is in its first token, or a separate token.
            for token in tiny_model.tokenizer(" " * bool(number) + word, add_special_tokens=False)["input_ids"]:
                ids.append(token)
                owners.append(number if tiny_model.tokenizer.decode([token]).strip(" ") else None)
        allowed = torch.ones(len(ids), len(ids), dtype=torch.bool)
        mask = (allowed if mode == "bidirectional" else allowed.tril())[None, None]
        with torch.no_grad():
            states = stock(torch.tensor([ids]), attention_mask=mask).last_hidden_state[0].numpy()
        for number in range(len(words)):
            own = [states[place - 1] for place, owner in enumerate(owners) if owner == number]
            np.testing.assert_allclose(table.states[row], np.mean(own, axis=0), atol=1e-5)
            row += 1
    for words, first, last in zip(SENTENCES, table.bounds, table.bounds[1:], strict=False):
        expected = tiny_model.encode_words(" ".join(words), mode=mode).vectors
        np.testing.assert_allclose(table.states[first:last], expected, atol=1e-5)


def test_encoder_word_is_the_mean_by_word_ids():
    model, tokenizer = make_bert(), make_wordpiece()
    sentences = [["The", "cat-like", "king", "'s", "mat", "."], ["Unbelievably", ",", "girls"]]
    table = tabulate(partial(encoder_tokens, model, tokenizer), sentences, description="states")
    for words, first, last in zip(sentences, table.bounds, table.bounds[1:], strict=False):
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            states = model(**encoded).last_hidden_state[0].numpy()
        owners = encoded.word_ids()
        for number, vector in enumerate(table.states[first:last]):
            own = [state for state, owner in zip(states, owners, strict=True) if owner == number]
            np.testing.assert_allclose(vector, np.mean(own, axis=0), atol=1e-5)


def test_word_without_tokens_keeps_its_place():
    read = partial(encoder_tokens, make_bert(), make_wordpiece())
    plain = tabulate(read, [["The", "cat", "sat"]], description="states")
    table = tabulate(read, [["\u200b"], ["The", "\u200b", "cat", "sat", "\u200b\u200b"]], description="states")
    assert table.bounds.tolist() == [0, 1, 6] and table.num_without_tokens == 3
    assert not table.states[[0, 2, 5]].any()
    np.testing.assert_allclose(table.states[[1, 3, 4]], plain.states, atol=1e-5)
