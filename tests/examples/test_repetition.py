"""Measure the repetition of known continuations, from the command line to the records."""

import pytest

from examples.evaluate import repetition
from examples.evaluate.records import RecordFile

from .tiny_readers import save_chain, write_corpora


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return save_chain(tmp_path_factory.mktemp("models") / "chain")


@pytest.fixture
def common(tmp_path):
    return ["--data", str(write_corpora(tmp_path / "data")), "--results", str(tmp_path / "results"), "--device", "cpu"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four five six", "one two three four five"),
        ("  It’s\t3.5  km, (about) two miles.", "It’s\t3.5  km, (about) two"),
        ("one two three four five", None),
        ("one two three four five ", None),
        ("one two", None),
        ("", None),
    ],
)
def test_beginnings_are_the_first_five_words_unchanged(text, expected):
    assert repetition.first_words(text) == expected


def test_repetition_of_a_word_chain_matches_manual_count(chain, common, tmp_path, capsys):
    given = ["--model", f"base={chain}", "--limit", "5", "--max_new_tokens", "12", *common]
    wikitext, stories = repetition.main(given)
    # Of "b c d.", "a b c d.", "a b c d." and "a", one sentence repeats another; 4 of 9 4-grams differ.
    assert wikitext.samples == [{"prefix": "a b c d. a", "continuation": " b c d. a b c d. a b c d. a"}]
    assert wikitext.metrics == pytest.approx({"rep_sen": 1 / 4, "rep_4": 5 / 9, "rep_4_tokens": 5 / 9})
    assert wikitext.counts == {"texts": 1, "tokens": 12, "ended": 0}
    # "a b c d." three times: two sentences of three repeat the first; the second story ends immediately.
    assert [sample["continuation"] for sample in stories.samples] == [" a b c d. a b c d. a b c d.", ""]
    assert stories.metrics == pytest.approx({"rep_sen": 2 / 3 / 2, "rep_4": 5 / 18, "rep_4_tokens": 5 / 18})
    assert stories.counts == {"texts": 2, "tokens": 12, "ended": 1}
    assert (wikitext.settings["limit"], wikitext.settings["new_tokens"]) == (5, 12)
    assert wikitext.settings["data"] == "wiki.valid.tokens.xz" and wikitext.settings["prefix"] == "first 5 words"

    assert repetition.main(given) == [wikitext, stories]
    file = RecordFile(tmp_path / "results", "repetition")
    assert file.read() == [wikitext, stories], "what is on record is not measured again"
    at_step = repetition.main([*given, "--step", "400", "--batch_size", "1"])
    assert [record.step for record in file.read()] == [None, None, 400, 400]
    assert [record.metrics for record in at_step] == [wikitext.metrics, stories.metrics]
    assert "repetition: OK (1 models, 2 cells each" in capsys.readouterr().out
