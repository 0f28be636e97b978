"""Measure the repetition of known continuations, from the command line to the records."""

import pytest

from examples.evaluate import repetition
from examples.evaluate.parts.continuing import Continuation
from examples.evaluate.parts.records import RecordFile

from .evaluation_files import write_rocstories, write_wikitext


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


def test_repetition_matches_manual_count(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    write_wikitext(tmp_path / "data", number=1)
    write_rocstories(tmp_path / "data", number=2)
    chain = "a b c d. a b c d. a b c d."
    written = {
        "The cat sat on the": Continuation(f"b c d. {chain[:18]}a", list(range(4)) * 3, False),
        "tom 0 was sad.": Continuation(chain, list(range(4)) * 3, False),
        "tom 1 was sad.": Continuation("", [], True),
    }
    monkeypatch.setattr(repetition, "continue_texts", lambda model, texts, **_: [written[text] for text in texts])
    given = ["--model", f"base={checkpoint}", "--limit", "5", "--max_new_tokens", "12", "--device", "cpu"]
    given += ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    wikitext, stories = repetition.main(given)
    # Of "b c d.", "a b c d.", "a b c d." and "a", one sentence repeats another; 4 of 9 4-grams differ.
    assert wikitext.samples == [{"prefix": "The cat sat on the", "continuation": "b c d. a b c d. a b c d. a"}]
    assert wikitext.metrics == pytest.approx({"rep_sen": 1 / 4, "rep_4": 5 / 9, "rep_4_tokens": 5 / 9})
    assert wikitext.counts == {"texts": 1, "tokens": 12, "ended": 0}
    # "a b c d." three times: two sentences of three repeat the first; the second story ends immediately.
    assert [sample["continuation"] for sample in stories.samples] == [chain, ""]
    assert stories.metrics == pytest.approx({"rep_sen": 2 / 3 / 2, "rep_4": 5 / 18, "rep_4_tokens": 5 / 18})
    assert stories.counts == {"texts": 2, "tokens": 12, "ended": 1}
    assert (wikitext.settings["limit"], wikitext.settings["new_tokens"]) == (5, 12)
    assert wikitext.settings["data"] == "wiki.valid.tokens.xz" and wikitext.settings["prefix"] == "first 5 words"
    repetition.main([*given, "--step", "400"])
    records = RecordFile(tmp_path / "results", "repetition").read()
    assert [record.step for record in records] == [None, None, 400, 400]
    assert "repetition: OK (1 models, 2 cells each" in capsys.readouterr().out
