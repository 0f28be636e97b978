"""Settings of a checkpoint and the token that hides a context token."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_magnet import MagnetLlamaForCausalLM, MagnetSettings
from modeling_magnet.configuration_magnet import check_tokenizer_fits, resolve_mask_token


def test_settings_survive_a_round_trip():
    chosen = MagnetSettings(
        mask_token="_", mask_token_id=7, prompts={"a": "A: "}, default_prompt_name=None, contrastive_head="tanh"
    )
    assert MagnetSettings.from_dict(chosen.to_dict()) == chosen
    assert MagnetSettings.from_dict({}) == MagnetSettings()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"`magnet` of 'here' is \[\]"),
        (3, "`magnet` of 'here' is 3"),
        ({"prompts": {"a": 3}}, "`prompts` is {'a': 3}"),
        ({"prompts": ["a"]}, r"`prompts` is \['a'\]"),
        ({"prompts": None}, "`prompts` is None"),
        ({"default_prompt_name": "other"}, r"'other', but the stored prompts are \[.*'sentence'\]"),
        ({"default_prompt_name": ["a"]}, r"`default_prompt_name` is \['a'\]"),
        ({"pooling": "cls"}, "`pooling` is 'cls'"),
        ({"similarity_fn_name": "jaccard"}, "`similarity_fn_name` is 'jaccard'"),
        ({"similarity_fn_name": ["cosine"]}, r"`similarity_fn_name` is \['cosine'\]"),
        ({"contrastive_head": "relu"}, r"'relu'; expected one of \(None, 'tanh'\)"),
        ({"adapter_modes": 3}, "`adapter_modes` is 3"),
        ({"adapter_modes": [["infill"]]}, r"`adapter_modes` is \[\['infill'\]\]"),
        ({"adapter_modes": ["off"]}, r"`adapter_modes` is \['off'\]"),
        ({"adapter_modes": "infill"}, "`adapter_modes` is 'infill'"),
        ({"mask_token": 7}, "`mask_token` is 7"),
        ({"mask_token_id": 7.5}, "`mask_token_id` is 7.5"),
        ({"mask_token_id": True}, "`mask_token_id` is True"),
        ({"mask_token_id": -1}, "`mask_token_id` is -1"),
        ({"end_of_span": True}, "`end_of_span` is True"),
        ({"end_of_span": -1}, "`end_of_span` is -1"),
        ({"schema": "x"}, "`schema` is 'x'"),
        ({"schema": None}, "`schema` is None"),
        ({"temperature": 0.1}, r"\['temperature'\] in 'here'; this version knows"),
    ],
)
def test_invalid_settings_raise_and_name_their_source(values, message):
    with pytest.raises(ValueError, match=f"'here'.*{message}|{message}.*"):
        MagnetSettings.from_dict(values, source="'here'")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KNOWN = st.sampled_from(sorted(MagnetSettings().to_dict()))


@settings(max_examples=400, deadline=None)
@given(values=JSON | st.dictionaries(KNOWN, JSON, max_size=3))
def test_any_json_gives_settings_or_a_value_error(values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of newer schemas
        try:
            read = MagnetSettings.from_dict(values)
        except ValueError as error:
            assert "the configuration" in str(error)
        else:
            assert MagnetSettings.from_dict(read.to_dict()) == read


def test_loading_a_plain_llama_finds_its_mask_token(wiki_7m, stories260k, babyllama):
    for directory, token in ((wiki_7m, "_"), (stories260k, "<0x5F>")):
        model = MagnetLlamaForCausalLM.from_pretrained(directory)
        assert model.magnet_settings.mask_token == token
        assert model.magnet_settings.mask_token_id == model.tokenizer.convert_tokens_to_ids(token)
        assert model.config.magnet == model.magnet_settings.to_dict()
    with pytest.raises(ValueError, match=r"No mask token.*vocabulary of 105.*Pass a rare token.*`mask_token`"):
        MagnetLlamaForCausalLM.from_pretrained(babyllama)
    assert MagnetLlamaForCausalLM.from_pretrained(babyllama, mask_token="~").magnet_settings.mask_token == "~"


def test_the_tokenizers_own_mask_token_comes_first(tiny_tokenizer):
    tokenizer = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer, mask_token="~", unk_token="<unk>")
    assert resolve_mask_token(tokenizer) == ("~", tokenizer.convert_tokens_to_ids("~"))
    assert resolve_mask_token(tokenizer, "_")[0] == "_"


@pytest.mark.parametrize("token", ["<unk>", "no such token"])
def test_a_mask_token_outside_the_vocabulary_raises(tiny_tokenizer, token):
    with pytest.raises(ValueError, match=rf"none of \['{token}'\] is a single token"):
        resolve_mask_token(tiny_tokenizer, token)


def test_a_tokenizer_with_more_tokens_than_embeddings_raises(tiny_model, tiny_tokenizer):
    check_tokenizer_fits(tiny_tokenizer, 300)
    with pytest.raises(ValueError, match=r"has 300 tokens, but the model embeds 299.*resize_token_embeddings"):
        check_tokenizer_fits(tiny_tokenizer, 299)
    larger = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer)
    larger.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="has 301 tokens"):
        tiny_model.tokenizer = larger
