"""Loading pairs; a killed and resumed paraphrasing writes the same file as an uninterrupted one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, T5ForConditionalGeneration

from trainer.pairs import dropout_pairs, load_pairs, paraphrase_batch, paraphrase_pairs

from .tiny_t5 import save_tiny_t5, sentences

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder with a random T5 and a tokenizer of whole words."""
    return save_tiny_t5(tmp_path_factory.mktemp("tiny-t5"))


def paraphrase(texts: Dataset, output_path: Path, model_id: str, **changes: Any) -> Dataset:
    arguments = {"min_words": 3, "max_length": 8, "batch_size": 4, "num_candidates": 2, **changes}
    return paraphrase_pairs(texts, output_path=output_path, model_id=model_id, **arguments)


# Columns


def test_default_columns_of_pairs(tmp_path):
    (tmp_path / "a.tsv").write_text("id\tleft\tright\n1\t a \tb\n2\tc\t \n3\td\te\n")
    assert load_pairs(tmp_path / "a.tsv")[:] == {"anchor": ["a", "d"], "positive": ["b", "e"]}
    (tmp_path / "a.jsonl").write_text('{"negative": "n", "positive": "p", "anchor": "a"}\n')
    assert load_pairs(tmp_path / "a.jsonl")[:] == {"anchor": ["a"], "positive": ["p"]}


def test_named_columns_are_taken_in_the_order_named(tmp_path):
    (tmp_path / "a.csv").write_text('x,y,z\n"1, 2",b,c\n')
    assert load_pairs(tmp_path / "a.csv", columns=("z", "x"))[:] == {"anchor": ["c"], "positive": ["1, 2"]}


@pytest.mark.parametrize("labels", [("1", "0", "1"), ('"1"', '"0"', '"1"'), ("true", "false", "true")])
def test_a_label_column_keeps_the_rows_that_hold_one(tmp_path, labels):
    rows = [f'{{"label": {label}, "s1": "a{row}", "s2": "b{row}"}}\n' for row, label in enumerate(labels)]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    pairs = load_pairs(tmp_path / "a.jsonl", label_column="label")
    assert pairs[:] == {"anchor": ["a0", "a2"], "positive": ["b0", "b2"]}
    assert load_pairs(tmp_path / "a.jsonl", label_column="label", limit=1)[:] == {"anchor": ["a0"], "positive": ["b0"]}
    assert len(load_pairs(tmp_path / "a.jsonl", columns=("s1", "s2"))) == 3


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("label\ta\tb\n1\tx\ty\n", {}, "column 'label'.*`label_column='label'`"),
        ("label\ta\tb\n0\tx\ty\n", {"label_column": "label"}, r"1 rows .* 1 in 'label' .*\[0\]"),
        ("a\tb\nx\ty\n", {"label_column": "same"}, "no column 'same'; its columns are 'a', 'b'"),
        ("a\tb\nx\ty\n", {"columns": ("a", "c")}, "no column 'c'; its columns are 'a', 'b'"),
        ("a\tb\nx\ty\n", {"columns": ("a", "a")}, r"`columns` is \('a', 'a'\).*different"),
        ("a\tb\tc\nx\ty\tz\n", {}, r"\['a', 'b', 'c'\].*two"),
        ("a\tb\nx\t \n", {}, "None of the 1 rows .* has text in 'a' and 'b'"),
        ("a\tb\nx\ty\n", {"limit": -1}, "`limit` is -1; expected at least 1"),
        ("a\tanchor\tpositive\nx\t1\ty\n", {}, r"'anchor' .*strings.*\['a', 'positive'\]"),
    ],
)
def test_invalid_pairs_raise(tmp_path, content, arguments, message):
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path / "a.tsv", **arguments)


# Pairs by dropout


def test_long_lines_of_a_text_are_paired_with_themselves():
    texts = Dataset.from_dict({"text": ["a b c\n d  e f g \nh", "i j", "k l m"]})
    lines = ["a b c", "d  e f g", "k l m"]
    assert dropout_pairs(texts, min_words=3)[:] == {"anchor": lines, "positive": lines}
    assert dropout_pairs(texts, min_words=3, limit=2)["anchor"][:] == lines[:2]


def test_texts_without_a_long_line_raise():
    with pytest.raises(ValueError, match="1 texts .*`min_words`=21"):
        dropout_pairs(Dataset.from_dict({"text": ["too short"]}))
    with pytest.raises(ValueError, match="`min_words` is 0; expected at least 1"):
        dropout_pairs(Dataset.from_dict({"text": ["a"]}), min_words=0)
    with pytest.raises(ValueError, match="no column 'text'; its columns are 'body'"):
        dropout_pairs(Dataset.from_dict({"body": ["a"]}))
    with pytest.raises(ValueError, match=r"expected a name that ends in '\.jsonl'"):
        paraphrase_pairs(["a"], output_path="a.txt")


# Paraphrases


def test_each_line_gets_one_of_its_candidates(tiny_t5, monkeypatch):
    """Outputs of beams are the same as for a single line: rows are not mixed up and padding has no effect."""
    monkeypatch.setattr("trainer.pairs._GENERATION", {"num_beams": 2})
    model = T5ForConditionalGeneration.from_pretrained(tiny_t5).eval()
    arguments: dict[str, Any] = {"model": model, "tokenizer": AutoTokenizer.from_pretrained(tiny_t5)}
    arguments |= {"max_length": 8, "num_candidates": 2, "seed": 0}
    lines = sentences(6)["text"][:]
    together = paraphrase_batch(lines, **arguments)
    assert together == [paraphrase_batch([line], **arguments)[0] for line in lines]
    assert len(set(together)) > 1


def test_the_callers_random_state_is_untouched(tiny_t5, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    paraphrase(sentences(4), tmp_path / "a.jsonl", tiny_t5)
    assert torch.equal(torch.rand(2), expected)


def test_paraphrases_are_one_row_per_line_in_order(tiny_t5, tmp_path):
    texts = sentences(10)
    pairs = paraphrase(texts, tmp_path / "new" / "a.jsonl", tiny_t5)
    assert pairs["anchor"][:] == texts["text"][:]
    assert sum(a != p for a, p in zip(pairs["anchor"], pairs["positive"], strict=True)) > 5
    assert load_pairs(tmp_path / "new" / "a.jsonl")[:] == pairs[:]


def test_seed_changes_the_paraphrases(tiny_t5, tmp_path):
    variants: list[dict[str, Any]] = [{}, {"seed": 1}]
    files = [tmp_path / f"{number}.jsonl" for number in range(len(variants))]
    for file, variant in zip(files, variants, strict=True):
        paraphrase(sentences(12), file, tiny_t5, **variant)
    assert len({file.read_bytes() for file in files}) == 2
    hidden = Path(tiny_t5).rename(tiny_t5 + "-hidden")
    try:  # a finished file needs no model
        assert len(paraphrase(sentences(12), files[0], tiny_t5)) == 12
    finally:
        hidden.rename(tiny_t5)


def test_a_file_cut_anywhere_is_completed_byte_for_byte(tiny_t5, tmp_path):
    whole = tmp_path / "whole.jsonl"
    paraphrase(sentences(10), whole, tiny_t5)
    expected = whole.read_bytes()
    for size in [*range(0, len(expected), len(expected) // 12), len(expected) - 1, len(expected)]:
        with open(whole, "rb+") as file:
            file.truncate(size)
        paraphrase(sentences(10), whole, tiny_t5)
        assert whole.read_bytes() == expected, f"cut after {size} bytes"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, "seed was 42 and is now 7"),
        ({"batch_size": 2, "num_candidates": 3}, "batch_size was 4.*2.*num_candidates was 2.*3"),
        ({"texts": ["word1 word2 word3"] * 5}, "lines_sha256 was"),
    ],
)
def test_file_of_another_job_raises_and_is_not_changed(tiny_t5, tmp_path, changes, message):
    paraphrase(sentences(5), tmp_path / "a.jsonl", tiny_t5)
    before = (tmp_path / "a.jsonl").read_bytes()
    changed = {"texts": sentences(5)["text"][:], **changes}
    texts = Dataset.from_dict({"text": changed.pop("texts")})
    with pytest.raises(ValueError, match=message):
        paraphrase(texts, tmp_path / "a.jsonl", tiny_t5, **changed)
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_edited_file_raises(tiny_t5, tmp_path):
    path = tmp_path / "a.jsonl"
    paraphrase(sentences(5), path, tiny_t5)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="not the lines of `texts` in order"):
        paraphrase(sentences(5), path, tiny_t5)
