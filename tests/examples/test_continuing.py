"""Greedy continuations against stock `generate` and against loops that append one mask at a time."""

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, LlamaForCausalLM

from examples.evaluate.continuing import READINGS, continue_texts
from modeling_magnet import AutoMagnetForCausalLM

from .tiny_readers import save_bert, save_chain

TEXTS = ["She ate the apple", "The", "Given the sentence, find its representation: there was"]
NEW = 12


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = save_bert(tmp_path_factory.mktemp("bert"))
    return AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def stock(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "tiny")
    return LlamaForCausalLM.from_pretrained(tmp_path / "tiny").eval()


def ids_of(written):
    return [one.token_ids for one in written]


def test_reading_from_the_left_is_stock_generate_token_by_token(tiny_model, tiny_tokenizer, stock):
    written = continue_texts(tiny_model, tiny_tokenizer, TEXTS, max_new_tokens=NEW, batch_size=3)
    for text, one in zip(TEXTS, written, strict=True):
        ids = tiny_tokenizer(text, return_tensors="pt")
        new = stock.generate(**ids, do_sample=False, max_new_tokens=NEW, pad_token_id=2)[0, ids.input_ids.shape[1] :]
        assert one.token_ids == [token for token in new.tolist() if token != 2]
        assert text + one.text == tiny_tokenizer.decode([*ids.input_ids[0, 1:], *one.token_ids])


def test_a_penalty_of_the_models_generation_config_is_not_applied(tiny_model, tiny_tokenizer, stock):
    plain = continue_texts(tiny_model, tiny_tokenizer, TEXTS, max_new_tokens=NEW)
    settings = {"repetition_penalty": 50.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 9.0}
    for config in (tiny_model.generation_config, stock.generation_config):
        config.update(**settings)
    ids = tiny_tokenizer(TEXTS[0], return_tensors="pt")
    penalised = stock.generate(**ids, do_sample=False, max_new_tokens=NEW, pad_token_id=2)
    assert penalised[0, ids.input_ids.shape[1] :].tolist() != plain[0].token_ids
    assert continue_texts(tiny_model, tiny_tokenizer, TEXTS, max_new_tokens=NEW) == plain


def test_a_ban_of_the_models_generation_config_is_not_applied_and_stays_there(tiny_model, tiny_tokenizer):
    plain = continue_texts(tiny_model, tiny_tokenizer, TEXTS, max_new_tokens=NEW)
    first = plain[0].token_ids[0]
    bans = {"bad_words_ids": [[first]], "suppress_tokens": [first], "encoder_repetition_penalty": 3.0}
    tiny_model.generation_config.update(**bans, forced_eos_token_id=2, return_dict_in_generate=True)
    assert continue_texts(tiny_model, tiny_tokenizer, TEXTS, max_new_tokens=NEW) == plain
    assert {name: getattr(tiny_model.generation_config, name) for name in bans} == bans


@pytest.mark.parametrize("reading", READINGS)
def test_a_padded_batch_writes_what_each_text_alone_gets(reading, tiny_model, tiny_tokenizer, bert):
    model, tokenizer = bert if reading == "masked" else (tiny_model, tiny_tokenizer)
    texts = ["a b c 7 9 11", "d.", "1 2 3"] if reading == "masked" else TEXTS
    options = {"reading": reading, "max_new_tokens": NEW}
    together = continue_texts(model, tokenizer, texts, batch_size=3, **options)
    alone = [continue_texts(model, tokenizer, [text], **options)[0] for text in texts]
    assert together == alone == continue_texts(model, tokenizer, texts, batch_size=2, **options)
    assert len({tuple(ids) for ids in ids_of(together)}) == len(texts)


def test_a_masked_encoder_puts_its_best_token_for_the_mask_behind_the_text(bert):
    model, tokenizer = bert
    for text in ("a b c", "x. 4"):
        ids = tokenizer(text)["input_ids"]
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        expected = []
        for _ in range(NEW):
            row = [*ids[:-1], *expected, tokenizer.mask_token_id, tokenizer.sep_token_id]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row])).logits[0]
            expected.append(int(logits[row.index(tokenizer.mask_token_id)].argmax()))
        (written,) = continue_texts(model, tokenizer, [text], reading="masked", max_new_tokens=NEW)
        length = expected.index(2) if 2 in expected else NEW
        assert (written.token_ids, written.has_ended) == (expected[:length], 2 in expected)
        assert len(set(expected)) > 1


def test_appended_masks_are_read_at_the_position_before_them_by_a_model_that_sees_everything(
    tiny_model, tiny_tokenizer, stock
):
    mask = tiny_tokenizer.convert_tokens_to_ids("_")
    assert tiny_model.magnet_settings.mask_token_id == mask
    for text in TEXTS:
        ids = tiny_tokenizer(text)["input_ids"]
        expected = []
        for _ in range(NEW):
            row = torch.tensor([[*ids, *expected, mask]])
            everything = torch.zeros(1, 1, row.shape[1], row.shape[1])
            with torch.no_grad():
                logits = stock(row, attention_mask=everything, use_cache=False).logits[0]
            expected.append(int(logits[-2].argmax()))
        (written,) = continue_texts(tiny_model, tiny_tokenizer, [text], reading="appended_masks", max_new_tokens=NEW)
        length = expected.index(2) if 2 in expected else NEW
        assert (written.token_ids, written.has_ended) == (expected[:length], 2 in expected)


@pytest.mark.parametrize("reading", READINGS)
def test_an_end_of_text_ends_one_row_and_not_the_others(reading, tiny_model, tiny_tokenizer, bert):
    model, tokenizer = bert if reading == "masked" else (tiny_model, tiny_tokenizer)
    texts = ["a b c 7 9 11", "d.", "1 2 3"] if reading == "masked" else TEXTS
    options = {"reading": reading, "max_new_tokens": NEW}
    before = ids_of(continue_texts(model, tokenizer, texts, **options))
    end = next(token for token in before[0] if token not in before[1])
    if reading == "masked":
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    else:
        model.generation_config.eos_token_id = [2, end]
    try:
        after = continue_texts(model, tokenizer, texts, **options)
    finally:
        if reading == "masked":
            tokenizer.eos_token = None
    assert after[0].token_ids == before[0][: before[0].index(end)] and after[0].has_ended
    assert after[1].token_ids == before[1]


def test_a_chain_of_words_is_continued_word_by_word(tmp_path):
    model = AutoMagnetForCausalLM.from_pretrained(save_chain(tmp_path / "chain")).eval()
    written = continue_texts(model, model.tokenizer, ["a b", "c", "b x."], max_new_tokens=5)
    assert [one.text.split() for one in written] == ["c d. a b c".split(), "d. a b c d.".split(), []]
    assert [one.has_ended for one in written] == [False, False, True]
