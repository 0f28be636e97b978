"""Formats of files, and invalid sources."""

import gzip
import json
import lzma
from collections.abc import Callable

import datasets
import pytest

from trainer.sources import read_source

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
SAME_ROWS = {
    ".txt": "Ünï one\ntwo\n",
    ".tokens": "Ünï one\ntwo\n",
    ".jsonl": '{"text": "Ünï one"}\n{"text": "two"}\n',
    ".json": '[{"text": "Ünï one"}, {"text": "two"}]',
    ".csv": 'text\n"Ünï one"\ntwo\n',
    ".tsv": "text\nÜnï one\ntwo\n",
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", SAME_ROWS)
def test_every_format_and_compression_gives_the_same_rows(tmp_path, suffix, compression):
    path = tmp_path / f"corpus{suffix}{compression}"
    path.write_bytes(COMPRESSIONS[compression](SAME_ROWS[suffix].encode()))
    assert read_source(path, columns=["text"])["text"][:] == ["Ünï one", "two"]


def test_parquet_is_read(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(str(tmp_path / "corpus.parquet"))
    assert read_source(str(tmp_path / "corpus.parquet"), columns=["text"])["text"][:] == ["a", "b"]


def test_folder_pattern_and_list_read_the_same_files_in_name_order(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    (tmp_path / "README.md").write_text("Not data.\n")
    folder, pattern = read_source(tmp_path), read_source(str(tmp_path / "*.txt"))
    listed = read_source([tmp_path / "b.txt", tmp_path / "a.txt"])
    assert folder["text"][:] == pattern["text"][:] == ["a", "b"]
    assert listed["text"][:] == ["b", "a"]


@pytest.mark.parametrize(
    "text",
    [
        "id,text\n1,a,x\n2,b,y\n",  # would be read with each cell under the next name
        "id,text\n1,a\n2,b,y\n",
        "id,text\n" + "1,a\n" * 20_000 + "2,b,y\n",  # far after the first rows
        'id,text\n1,a\n2,"never closed\n3,c\n',
    ],
    ids=["all", "one", "late", "quote"],
)
@pytest.mark.parametrize("first", ["", "id,text\n0,fine\n"])
def test_extra_cells_and_open_quotes_raise(tmp_path, text, first):
    (tmp_path / "b.csv").write_text(text)
    if first:
        (tmp_path / "a.csv").write_text(first)
    with pytest.raises(ValueError, match=r"`source`.*\.csv'.*read as csv"):
        read_source(tmp_path, columns=["text"])


def test_brackets_in_a_file_name_are_not_a_pattern(tmp_path):
    (tmp_path / "part[1].txt").write_text("a\n")
    assert read_source(tmp_path / "part[1].txt")["text"][:] == ["a"]


def test_quotation_marks_and_the_word_na_are_text(tmp_path):
    (tmp_path / "a.tsv").write_text('left\tright\n"Open\tNA\nnull\tclose"\n')
    assert read_source(tmp_path / "a.tsv")[:] == {"left": ['"Open', "null"], "right": ["NA", 'close"']}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz"])
def test_a_rewritten_file_is_read_again(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for text in ("old", "new"):  # same length, same second
        path.write_bytes(COMPRESSIONS[suffix.removeprefix(".jsonl")](json.dumps({"text": text}).encode() + b"\n"))
        assert read_source(path)["text"][:] == [text]


def test_a_slice_of_a_file_is_a_slice(tmp_path):
    (tmp_path / "a.txt").write_text("a\nb\nc\n")
    assert read_source(tmp_path / "a.txt", split="train[1:]")["text"][:] == ["b", "c"]


@pytest.mark.parametrize(
    ("files", "source", "arguments", "message"),
    [
        ({}, "absent.jsonl", {}, r"absent\.jsonl': no data file found .*existing"),
        ({}, "absent/*.txt", {}, r"absent/\*\.txt': no data file found"),
        ({"README.md": "x"}, ".", {}, r"no data file found .* of \.txt, \.tokens,"),
        ({"a.docx": "x"}, "a.docx", {}, r"unknown type, .*a\.docx'\]; expected \.txt"),
        ({"a.txt": "x", "b.csv": "y\nz"}, ".", {}, r"mixes \.csv, \.txt files; .*'\*\.csv\*'"),
        ({"a.csv": "y\nz", "b.tsv": "y\nz"}, ".", {}, r"mixes \.csv, \.tsv"),
        ({"a.jsonl": '{"id": 1, "body": "x"}'}, "a.jsonl", {"columns": ["text"]}, "no column 'text'.*'id', 'body'"),
        ({"a.jsonl": '{"text": 1, "body": "x"}'}, "a.jsonl", {"columns": ["text"]}, "int64.*expected strings.*'body'"),
        ({"a.csv": f"text,id\nx,{2**64}\ny,{-(2**70)}"}, "a.csv", {}, "cannot be read"),
        ({"a.txt": ""}, "a.txt", {}, "not empty"),
        ({"a.jsonl": ""}, "a.jsonl", {}, "not empty"),
        ({"a.jsonl": "{"}, "a.jsonl", {}, "cannot be read as json .*Check that"),
        ({"a.txt.gz": "plain"}, "a.txt.gz", {}, "cannot be read as text .*Check that"),
        ({"a.txt.xz": "plain"}, "a.txt.xz", {}, "cannot be read as text .*Check that"),
        ({"a.txt": "x"}, "a.txt", {"split": "test"}, "`split` is 'test' .*'train'"),
        ({"a.txt": "x"}, "a.txt", {"config_name": "raw"}, "`config_name` 'raw'.*no configurations"),
    ],
)
def test_invalid_source_raises(tmp_path, files, source, arguments, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_source(tmp_path / source, **arguments)


def test_empty_list_raises():
    with pytest.raises(ValueError, match="empty list; expected files"):
        read_source([])


def test_unknown_hub_id_raises():
    with pytest.raises(ValueError, match=r"'nobody/nothing-of-this-name'.*spelling"):
        read_source("nobody/nothing-of-this-name")


def test_damaged_archives_and_invalid_bytes_raise(tmp_path):
    raw = bytearray(gzip.compress(b"id,text\n" + b"1,some text\n" * 400))
    for place in range(12, len(raw) - 8):  # the stream of the archive, after its header
        damaged = bytearray(raw)
        damaged[place] ^= 0xFF
        (tmp_path / "a.csv.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"`source`.*a\.csv\.gz'.* cannot be read"):
            read_source(tmp_path / "a.csv.gz", columns=["text"])
    (tmp_path / "b.csv").write_bytes(b"id,text\n" + b"1,some text\n" * 200_000 + b"2,\xff\n")
    with pytest.raises(ValueError, match=r"`source`.*b\.csv'.*read as csv"):
        read_source(tmp_path / "b.csv", columns=["text"])


def test_rows_with_different_columns_raise(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "more": 1}\n')
    message = r"(?s)a\.jsonl', which cannot be read as json .*(column names don't|1 new columns)"
    with pytest.raises(ValueError, match=message):
        read_source(tmp_path / "*.jsonl", columns=["text"])
    (tmp_path / "c.tsv").write_bytes(b'\0a\r\n","a\r\n","')
    with pytest.raises(ValueError, match=r"(?s)c\.tsv'.*read as csv.*1 new columns"):
        read_source(tmp_path / "c.tsv")
