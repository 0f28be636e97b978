"""Compare WikiText as running text with handwritten results and with another project's rules on the real file."""

import json

import pytest

from examples.evaluate.parts import wikitext
from examples.evaluate.parts.wikitext import detokenize, read_wikitext, wikitext_source

from .evaluation_files import write_wikitext


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("a 5 @,@ 000 @.@ 5 m long @-@ range gun", "a 5,000.5 m long-range gun"),
        ('He said " no " , and " go ! " .', 'He said "no", and "go!".'),
        ("( see [ 3 ] ) ; 5 % : yes ?", "(see [3]); 5%: yes?"),
        ("he wo n't , they 're , it 's , don 't", "he won't, they're, it's, don't"),
        ("the Knights ' coach in the ' 80s", "the Knights' coach in the '80s"),
        ("called ' deep sea ' by them", "called 'deep sea' by them"),
        ("a 'do-it-yourself ' razor", "a 'do-it-yourself' razor"),
        ("she called '' nanny '' , for $ 10 ...", 'she called "nanny", for $10...'),
        ("U.S. troops – 24 / 7", "U.S. troops – 24 / 7"),
    ],
)
def test_detokenize_restores_running_text(tokens, text):
    assert detokenize(tokens) == text
    assert detokenize(text) == text


def test_headings_are_skipped_by_default(tmp_path):
    write_wikitext(tmp_path, number=2)
    plain = "The cat sat on the mat, and the dog barked at the cat. She ate the bread-like apple."
    assert read_wikitext(tmp_path) == [f"{plain} Number 0 is unknown.", f"{plain} Number 1 is unknown."]
    assert read_wikitext(tmp_path, keep_unknown=True)[0] == f"{plain} Number 0 is <unk>."
    assert read_wikitext(tmp_path, headings=True)[::3] == ["= The cat =", "== More of it =="]
    assert wikitext_source(tmp_path) == "wiki.valid.tokens.xz"


def test_hub_rows_are_lines(tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    rows = ["", " = A title = \n", " One @-@ off . \n", ""]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    for name, value in (("HUB_ID", str(file)), ("HUB_CONFIG", None), ("HUB_SPLIT", "train")):
        monkeypatch.setattr(wikitext, name, value)
    assert read_wikitext(headings=True) == ["= A title =", "One-off."]
