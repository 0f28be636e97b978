"""Test the script that fills blanks: rows, resumption, invalid rows, and an escaped page."""

import json
import re

import pytest

from examples.demo.fills import render_page
from examples.infill_stories import main
from modeling_magnet import MagnetLlamaForCausalLM

TEXTS = [
    "Lily went to the [blank] with her mom. They saw a [blank].",
    "No blank here.",
    r"Write \[blank] where <b>[blank]</b> is missing.",
    "Once upon a time there was [blank].",
]


@pytest.fixture(scope="module")
def checkpoint(stories260k, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "magnet"
    MagnetLlamaForCausalLM.from_pretrained(stories260k).save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def run(checkpoint, corpus, output, *options):
    main(["--model", str(checkpoint), "--texts", str(corpus), "--output", str(output), "--batch_size", "2", *options])
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_rows_are_filled_in_order_and_bad_rows_reported(checkpoint, corpus, tmp_path, capsys):
    rows = run(checkpoint, corpus, tmp_path / "out.jsonl", "--max_new_tokens", "4", "--num_return_sequences", "2")
    assert [row["row"] for row in rows] == [0, 1, 2, 3]
    assert "has no blank" in rows[1]["error"]
    assert "4 rows, 1 that could not be filled" in capsys.readouterr().out
    model = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    for index in (0, 2, 3):
        expected = model.infill_blanks(TEXTS[index], max_new_tokens=4, num_return_sequences=2)
        assert [[fill["text"] for fill in gap] for gap in rows[index]["fills"]] == expected
        for gap in rows[index]["fills"]:
            for fill in gap:
                assert len(fill["tokens"]) == len(fill["logprobs"]) == 4
                assert "".join(fill["tokens"]) == fill["text"]
                assert fill["logprob"] == pytest.approx(sum(fill["logprobs"]), abs=1e-3)
    filled = rows[2]["filled"]
    assert filled.startswith("Write [blank] where <b>" + rows[2]["fills"][0][0]["text"] + "</b>")


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_resumed_run_writes_identical_bytes(checkpoint, corpus, tmp_path, lines):
    options = ("--num_tokens", "2", "5", "--do_sample", "--top_p", "0.9")
    run(checkpoint, corpus, tmp_path / "whole.jsonl", *options)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    cut = tmp_path / "cut.jsonl"
    run(checkpoint, corpus, cut, *options)
    kept = b"".join(whole.splitlines(keepends=True)[:lines])
    cut.write_bytes(kept + b'{"row": 9, "pie')  # killed while it wrote a line
    run(checkpoint, corpus, cut, *options)
    assert cut.read_bytes() == whole
    with pytest.raises(ValueError, match="begun with other settings: .*num_tokens was"):
        run(checkpoint, corpus, cut, "--num_tokens", "auto")


def test_html_page_shows_fills_in_place_and_escapes_text(checkpoint, corpus, tmp_path):
    page = tmp_path / "page.html"
    options = ["--max_new_tokens=3", "--num_return_sequences=2", "--stop_at_sentence_end", f"--html={page}"]
    rows = run(checkpoint, corpus, tmp_path / "out.jsonl", *options)
    text = page.read_text()
    assert "<b>" not in text and "&lt;b&gt;" in text
    assert text.count("<article>") == len(rows)
    assert 'class="error"' in text
    # Without tags, the best fills appear within their texts.
    shown = re.sub(r"<[^>]*>", "", text)
    assert rows[0]["filled"] in shown
    bad = {"row": 0, "text": "<script>", "error": "<script>alert(1)</script>"}
    assert "<script" not in render_page([bad], title="<script>")


def test_tokens_of_a_row_join_to_its_fill(wiki_7m, tmp_path):
    """Check characters of several tokens and truncated fills: no token's text is lost or doubled."""
    texts = tmp_path / "texts.jsonl"
    given = ["The Chinese name is 北[blank] (Beijing).", "日本の[blank]は 😀 [blank]!", "def f(x):\n    [blank]\n"]
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in given))
    for number, options in enumerate((["--heal", "none"], ["--stop_at_sentence_end"], ["--trim_overlap"])):
        rows = run(wiki_7m, texts, tmp_path / f"{number}.jsonl", "--max_new_tokens", "6",
                   "--num_return_sequences", "3", *options)  # fmt: skip
        for fill in (fill for row in rows for gap in row["fills"] for fill in gap):
            assert "".join(fill["tokens"]) == fill["text"]
            assert "\ufffd" not in fill["text"]
