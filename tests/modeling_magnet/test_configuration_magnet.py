"""Settings of a checkpoint and the token that hides a context token."""

import pytest
from transformers import AutoTokenizer

from modeling_magnet import MagnetLlamaForCausalLM, MagnetSettings
from modeling_magnet.configuration_magnet import check_tokenizer_fits, resolve_mask_token


def test_settings_survive_a_round_trip():
    settings = MagnetSettings(
        mask_token="_", mask_token_id=7, prompts={"a": "A: "}, default_prompt_name=None, contrastive_head="tanh"
    )
    assert MagnetSettings.from_dict(settings.to_dict()) == settings
    assert MagnetSettings.from_dict({}) == MagnetSettings()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": {"a": 3}}, r"Prompt 'a' is 3; expected a string"),
        ({"default_prompt_name": "other"}, r"'other', but the stored prompts are \[.*'sentence'\]"),
        ({"pooling": "cls"}, r"`pooling` is 'cls'; expected one of"),
        ({"similarity_fn_name": "jaccard"}, r"`similarity_fn_name` is 'jaccard'; expected one of"),
        ({"contrastive_head": "relu"}, r"'relu'; expected one of \(None, 'tanh'\)"),
        ({"temperature": 0.1}, r"Unknown MAGNET settings \['temperature'\] in the configuration; this version knows"),
    ],
)
def test_settings_that_cannot_be_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        MagnetSettings.from_dict(values)


def test_default_mask_tokens_of_real_llamas(wiki_7m, stories260k, babyllama):
    assert resolve_mask_token(AutoTokenizer.from_pretrained(wiki_7m))[0] == "_"
    assert resolve_mask_token(AutoTokenizer.from_pretrained(stories260k)) == ("<0x5F>", 98)
    with pytest.raises(ValueError, match=r"vocabulary of 105.*Name a rare token.*`mask_token=`"):
        resolve_mask_token(AutoTokenizer.from_pretrained(babyllama))


def test_a_plain_llama_is_given_its_mask_token_when_it_is_loaded(wiki_7m, stories260k, babyllama):
    for directory, token in ((wiki_7m, "_"), (stories260k, "<0x5F>")):
        model = MagnetLlamaForCausalLM.from_pretrained(directory)
        assert model.magnet_settings.mask_token == token
        assert model.magnet_settings.mask_token_id == model.tokenizer.convert_tokens_to_ids(token)
        assert model.config.magnet == model.magnet_settings.to_dict()
    with pytest.raises(ValueError, match="No mask token"):
        MagnetLlamaForCausalLM.from_pretrained(babyllama)
    assert MagnetLlamaForCausalLM.from_pretrained(babyllama, mask_token="~").magnet_settings.mask_token == "~"


def test_the_tokenizers_own_mask_token_comes_first(tiny_tokenizer):
    tokenizer = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer, mask_token="~", unk_token="<unk>")
    assert resolve_mask_token(tokenizer) == ("~", tokenizer.convert_tokens_to_ids("~"))
    assert resolve_mask_token(tokenizer, "_")[0] == "_"


@pytest.mark.parametrize("token", ["<unk>", "no such token"])
def test_a_wish_that_is_no_real_token_is_refused(tiny_tokenizer, token):
    with pytest.raises(ValueError, match=rf"none of \['{token}'\] is one token"):
        resolve_mask_token(tiny_tokenizer, token)


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(tiny_model, tiny_tokenizer):
    check_tokenizer_fits(tiny_tokenizer, 300)
    with pytest.raises(ValueError, match=r"has 300 tokens, but the model embeds 299.*resize_token_embeddings"):
        check_tokenizer_fits(tiny_tokenizer, 299)
    larger = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer)
    larger.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="has 301 tokens"):
        tiny_model.tokenizer = larger
