"""Prompts: the paper's, the stored ones, and what is said of one that is not there."""

import pytest

from modeling_magnet.tokenization_magnet import PAPER_PROMPTS, choose_prompt, default_prompts, join_prompt

STORED = {"query": "Find: ", "document": "Text: "}


def choose(**given):
    return choose_prompt(STORED, **{"prompt": None, "prompt_name": None, "default_prompt_name": "document", **given})


def test_a_prompt_is_given_named_or_the_default():
    assert choose() == "Text: "
    assert choose(prompt_name="query") == "Find: "
    assert choose(prompt="") == ""
    assert choose(default_prompt_name=None) is None


def test_a_stored_prompt_is_joined_as_it_is():
    for prompt in default_prompts().values():
        assert join_prompt(prompt, "A cat.") == prompt + "A cat."


def test_the_papers_prompts_have_names_that_mteb_looks_for():
    mteb = pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    for name in PAPER_PROMPTS:
        if name != "STS":  # a type of tasks
            assert mteb.get_task(name).metadata.name == name
    assert mteb.get_task("STSBenchmark").metadata.type == "STS"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt_name": "qurey"}, r"No prompt is named 'qurey'.*Did you mean 'query'\?"),
        ({"prompt_name": "zzz"}, r"stores \['document', 'query'\]\. Or pass `prompt=`"),
        ({"prompt": "p", "prompt_name": "query"}, "Both prompt='p' and prompt_name='query'"),
        ({"prompt": 3}, r"`prompt` is int \(3\)"),
    ],
)
def test_what_is_no_prompt_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        choose(**given)
