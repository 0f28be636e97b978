"""Test the settings of a checkpoint."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_magnet import MagnetSettings
from modeling_magnet.configuration_magnet import PAPER_PROMPTS, default_prompts
from modeling_magnet.tokenization_magnet import join_prompt


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
        ({"default_prompt_name": "other"}, r"'other'.*\[.*'sentence'\]"),
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
        ({"temperature": 0.1}, r"\['temperature'\] in 'here'"),
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


def test_a_stored_prompt_is_joined_as_it_is():
    for prompt in default_prompts().values():
        assert join_prompt(prompt, "A cat.") == prompt + "A cat."


def test_the_papers_prompts_have_names_that_mteb_looks_for():
    mteb = pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    for name in PAPER_PROMPTS:
        if name != "STS":  # a type of tasks
            assert mteb.get_task(name).metadata.name == name
    assert mteb.get_task("STSBenchmark").metadata.type == "STS"
