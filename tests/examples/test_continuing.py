"""Compare greedy continuations with stock `generate`."""

import pytest
from transformers import LlamaForCausalLM

from examples.evaluate.parts.continuing import continue_texts

TEXTS = ["She ate the apple", "The", "Given the sentence, find its representation: there was"]
NEW = 12


@pytest.fixture
def stock(checkpoint):
    return LlamaForCausalLM.from_pretrained(checkpoint).eval()


def test_causal_continuation_equals_stock_generate(tiny_model, tiny_tokenizer, stock):
    written = continue_texts(tiny_model, TEXTS, max_new_tokens=NEW, batch_size=3)
    for text, one in zip(TEXTS, written, strict=True):
        ids = tiny_tokenizer(text, return_tensors="pt")
        new = stock.generate(**ids, do_sample=False, max_new_tokens=NEW, pad_token_id=2)[0, ids.input_ids.shape[1] :]
        assert one.token_ids == [token for token in new.tolist() if token != 2]
        assert text + one.text == tiny_tokenizer.decode([*ids.input_ids[0, 1:], *one.token_ids])


def test_penalty_in_generation_config_is_ignored(tiny_model, tiny_tokenizer, stock):
    plain = continue_texts(tiny_model, TEXTS, max_new_tokens=NEW)
    settings = {"repetition_penalty": 50.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 9.0}
    for config in (tiny_model.generation_config, stock.generation_config):
        config.update(**settings)
    ids = tiny_tokenizer(TEXTS[0], return_tensors="pt")
    penalized = stock.generate(**ids, do_sample=False, max_new_tokens=NEW, pad_token_id=2)
    assert penalized[0, ids.input_ids.shape[1] :].tolist() != plain[0].token_ids
    assert continue_texts(tiny_model, TEXTS, max_new_tokens=NEW) == plain


def test_padding_does_not_change_continuations(tiny_model):
    together = continue_texts(tiny_model, TEXTS, batch_size=3, max_new_tokens=NEW)
    alone = [continue_texts(tiny_model, [text], max_new_tokens=NEW)[0] for text in TEXTS]
    assert together == alone == continue_texts(tiny_model, TEXTS, batch_size=2, max_new_tokens=NEW)
    assert len({tuple(one.token_ids) for one in together}) == len(TEXTS)


def test_end_of_text_ends_only_its_row(tiny_model):
    before = [one.token_ids for one in continue_texts(tiny_model, TEXTS, max_new_tokens=NEW)]
    end = next(token for token in before[0] if token not in before[1])
    tiny_model.generation_config.eos_token_id = [2, end]
    after = continue_texts(tiny_model, TEXTS, max_new_tokens=NEW)
    assert after[0].token_ids == before[0][: before[0].index(end)] and after[0].has_ended
    assert after[1].token_ids == before[1]
