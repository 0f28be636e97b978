"""Greedy continuations against stock `generate`, and of words that are known in advance."""

import pytest
from transformers import LlamaForCausalLM

from examples.evaluate.continuing import continue_texts
from modeling_magnet import AutoMagnetForCausalLM

from .tiny_readers import save_chain

TEXTS = ["She ate the apple", "The", "Given the sentence, find its representation: there was"]
NEW = 12


@pytest.fixture
def stock(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "tiny")
    return LlamaForCausalLM.from_pretrained(tmp_path / "tiny").eval()


def ids_of(written):
    return [one.token_ids for one in written]


def test_reading_from_the_left_is_stock_generate_token_by_token(tiny_model, tiny_tokenizer, stock):
    written = continue_texts(tiny_model, TEXTS, max_new_tokens=NEW, batch_size=3)
    for text, one in zip(TEXTS, written, strict=True):
        ids = tiny_tokenizer(text, return_tensors="pt")
        new = stock.generate(**ids, do_sample=False, max_new_tokens=NEW, pad_token_id=2)[0, ids.input_ids.shape[1] :]
        assert one.token_ids == [token for token in new.tolist() if token != 2]
        assert text + one.text == tiny_tokenizer.decode([*ids.input_ids[0, 1:], *one.token_ids])


def test_a_penalty_of_the_models_generation_config_is_not_applied(tiny_model, tiny_tokenizer, stock):
    plain = continue_texts(tiny_model, TEXTS, max_new_tokens=NEW)
    settings = {"repetition_penalty": 50.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 9.0}
    for config in (tiny_model.generation_config, stock.generation_config):
        config.update(**settings)
    ids = tiny_tokenizer(TEXTS[0], return_tensors="pt")
    penalised = stock.generate(**ids, do_sample=False, max_new_tokens=NEW, pad_token_id=2)
    assert penalised[0, ids.input_ids.shape[1] :].tolist() != plain[0].token_ids
    assert continue_texts(tiny_model, TEXTS, max_new_tokens=NEW) == plain


def test_a_ban_of_the_models_generation_config_is_not_applied_and_stays_there(tiny_model):
    plain = continue_texts(tiny_model, TEXTS, max_new_tokens=NEW)
    first = plain[0].token_ids[0]
    bans = {"bad_words_ids": [[first]], "suppress_tokens": [first], "encoder_repetition_penalty": 3.0}
    tiny_model.generation_config.update(**bans, forced_eos_token_id=2, return_dict_in_generate=True)
    assert continue_texts(tiny_model, TEXTS, max_new_tokens=NEW) == plain
    assert {name: getattr(tiny_model.generation_config, name) for name in bans} == bans


def test_a_padded_batch_writes_what_each_text_alone_gets(tiny_model):
    together = continue_texts(tiny_model, TEXTS, batch_size=3, max_new_tokens=NEW)
    alone = [continue_texts(tiny_model, [text], max_new_tokens=NEW)[0] for text in TEXTS]
    assert together == alone == continue_texts(tiny_model, TEXTS, batch_size=2, max_new_tokens=NEW)
    assert len({tuple(one.token_ids) for one in together}) == len(TEXTS)


def test_an_end_of_text_ends_one_row_and_not_the_others(tiny_model):
    before = [one.token_ids for one in continue_texts(tiny_model, TEXTS, max_new_tokens=NEW)]
    end = next(token for token in before[0] if token not in before[1])
    tiny_model.generation_config.eos_token_id = [2, end]
    after = continue_texts(tiny_model, TEXTS, max_new_tokens=NEW)
    assert after[0].token_ids == before[0][: before[0].index(end)] and after[0].has_ended
    assert after[1].token_ids == before[1]


def test_a_text_that_leaves_no_room_is_refused(tiny_model):
    with pytest.raises(ValueError, match="`max_new_tokens` is 999"):
        continue_texts(tiny_model, TEXTS, max_new_tokens=999)


def test_a_chain_of_words_is_continued_word_by_word(tmp_path):
    model = AutoMagnetForCausalLM.from_pretrained(save_chain(tmp_path / "chain")).eval()
    written = continue_texts(model, ["a b", "c", "b x."], max_new_tokens=5)
    assert [one.text.split() for one in written] == ["c d. a b c".split(), "d. a b c d.".split(), []]
    assert [one.has_ended for one in written] == [False, False, True]
