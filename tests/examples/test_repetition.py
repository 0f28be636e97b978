"""Repetition of continuations that are known word by word, from the command line to the records."""

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
def test_beginnings_of_paragraphs_are_five_words_as_they_stand(text, expected):
    assert repetition.first_words(text) == expected


def test_beginnings_are_those_of_the_files_without_headings_and_short_lines(tmp_path):
    folder = write_corpora(tmp_path / "data")
    assert repetition.wikitext_beginnings(folder) == ["a b c d. a"]
    assert repetition.rocstories_beginnings(folder) == ["a b c d.", "a x."]


def test_beginnings_are_drawn_by_the_seed_and_kept_in_order():
    texts = [f"{number:03d}" for number in range(100)]
    drawn = repetition.draw(texts, limit=10, seed=1)
    assert len(set(drawn)) == 10 and drawn == sorted(drawn) == repetition.draw(texts, limit=10, seed=1)
    assert drawn != repetition.draw(texts, limit=10, seed=2)
    assert repetition.draw(texts, limit=1000, seed=1) == texts


def test_a_chain_of_words_repeats_as_counted_by_hand(chain, common, tmp_path, capsys):
    given = ["--model", f"base={chain}", "--limit", "5", "--max_new_tokens", "12", *common]
    wikitext, stories = repetition.main(given)
    # Of "b c d.", "a b c d.", "a b c d." and "a" one sentence repeats another; of 9 4-grams 4 differ.
    assert wikitext.samples == [{"prefix": "a b c d. a", "continuation": " b c d. a b c d. a b c d. a"}]
    assert wikitext.metrics == pytest.approx({"rep_sen": 1 / 4, "rep_4": 5 / 9, "rep_4_tokens": 5 / 9})
    assert wikitext.counts == {"texts": 1, "tokens": 12, "ended": 0}
    # "a b c d." three times: two sentences of three repeat the first; the second story ends at once.
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


def test_texts_of_the_hub_that_cannot_be_had_are_on_record_as_such(chain, tmp_path):
    arguments = ["--model", str(chain), "--preset", "smoke", "--max_new_tokens", "9", "--device", "cpu"]
    records = repetition.main([*arguments, "--results", str(tmp_path)])
    assert [record.unit for record in records] == ["WikiText", "ROCStories"]
    assert all(record.unavailable and not record.metrics for record in records)
