"""Test that `examples/corpus/` numbers every row, unreadable ones included."""

import csv
import gzip
import io
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.corpus.reading import open_corpus

from .tiny_corpus import write_jsonl

TEXTS = ["a cat sat", "", 'the "red" dog, ran', "a\u2028b é 漢 😀", "over\ttwo words"]


def open_tiny(source, *, text_column="text", id_column=None, limit=None):
    return open_corpus([str(source)], text_column=text_column, id_column=id_column, limit=limit)


def read(source, *, chunk_size=2, skip=(), **options):
    """Return all chunks of a corpus."""
    return list(open_tiny(source, **options).chunks(chunk_size, skip=skip))


def rows_of(chunks):
    """Return texts and complaints by row number."""
    texts = {
        chunk.first_row + place: text
        for chunk in chunks
        for place, text in zip(chunk.offsets, chunk.texts, strict=True)
    }
    return texts, {complaint.row: complaint for chunk in chunks for complaint in chunk.complaints}


def write_as(path: Path, texts: list[str]) -> Path:
    """Write the texts in the format of the file's suffix."""
    suffix = Path(path.stem if path.suffix in (".gz", ".xz") else path.name).suffix
    if suffix == ".parquet":
        pq.write_table(pa.table({"other": range(len(texts)), "text": texts}), path, row_group_size=2)
        return path
    buffer = io.StringIO()
    if suffix == ".txt":
        buffer.write("".join(text + "\n" for text in texts))
    elif suffix == ".jsonl":
        buffer.write("".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts))
    else:
        writer = csv.writer(buffer)
        writer.writerows([("other", "text"), *(("x", text) for text in texts)])
    compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(buffer.getvalue().encode()))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz", "a.txt", "a.txt.gz", "a.csv", "a.csv.gz", "a.parquet"])
def test_all_formats_yield_the_same_texts_in_chunks(tmp_path, name):
    chunks = read(write_as(tmp_path / name, TEXTS))
    assert [chunk.texts for chunk in chunks] == [TEXTS[:2], TEXTS[2:4], TEXTS[4:]]
    assert [(chunk.index, chunk.first_row, chunk.num_rows) for chunk in chunks] == [(0, 0, 2), (1, 2, 2), (2, 4, 1)]


def test_quoted_csv_cells_and_literal_tsv_quotes_are_read(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"two\nlines"\n\n2\n3,last\n')
    (chunk,) = read(tmp_path / "a.csv", chunk_size=9, id_column="id")
    assert (chunk.texts, chunk.offsets, chunk.ids) == (["two\nlines", "last"], [0, 2], ["1", "2", "3"])
    (complaint,) = chunk.complaints
    assert (complaint.row, complaint.line, complaint.reason) == (1, 5, "no column 'text'")
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"so\n')
    assert read(tmp_path / "a.tsv")[0].texts == ['"so']


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_malformed_csv_rows_are_reported_and_swallow_no_other_row(tmp_path, compression):
    lines = [
        "id,text",
        '1,"a, b"',
        "2,a, b",  # too many cells
        '3,"never closed',
        "4,fine",
        '5,"two',
        'lines"',
        '6,"closed" too early',
        '7,"never closed',
        '8,"fine, too"',
        '9,"never closed, to the end of the file',
        "10,last",
    ]
    file = tmp_path / f"a.csv{compression}"
    text = "\n".join(lines) + "\n"
    file.write_bytes(gzip.compress(text.encode()) if compression else text.encode())
    texts, complaints = rows_of(read(file, chunk_size=4))
    assert texts == {0: "a, b", 3: "fine", 4: "two\nlines", 7: "fine, too", 9: "last"}
    assert {row: complaint.line for row, complaint in complaints.items()} == {1: 3, 2: 4, 5: 8, 6: 9, 8: 11}
    assert "3 cells under 2 column names" in complaints[1].reason
    assert all("is a quotation mark not closed" in complaints[row].reason for row in (2, 5, 6, 8))
    (tmp_path / "b.csv").write_text('id,"text\n1,a\n')
    with pytest.raises(ValueError, match=r"first line of .*b\.csv'.*column names"):
        read(tmp_path / "b.csv")


def test_unreadable_line_is_reported_with_its_number_and_keeps_its_row(tmp_path):
    lines = {  # each with the reason why it cannot be read
        b'{"text": "fine"}': None,
        b"{broken": "not JSON",
        b"": "not JSON",
        b"[1]": "JSON list",
        b'{"txt": "a"}': "no column 'text'",
        b'{"text": null}': "is null",
        b'{"text": 5}': "type int",
        rb'{"text": "\ud800"}': "not Unicode",
        b'{"text": "\xff"}': "not Unicode",
        b"[" * 100_000: "not JSON",
        b'{"text": "also fine", "junk": "\xff"}': None,
    }
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    texts, complaints = rows_of(read(file, chunk_size=4))
    assert texts == {0: "fine", 10: "also fine"}
    assert sorted(complaints) == list(range(1, 10))
    for row, reason in list(enumerate(lines.values()))[1:10]:
        assert (complaints[row].file, complaints[row].line) == (str(file), row + 1)
        assert reason in complaints[row].reason


def test_files_of_a_folder_or_pattern_are_read_in_order(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ["3", "4"])
    write_jsonl(tmp_path / "a.jsonl", ["1", "2"])
    for source in (tmp_path, tmp_path / "*.jsonl"):
        chunks = read(source, chunk_size=3)
        assert [chunk.texts for chunk in chunks] == [["1", "2", "3"], ["4"]]
    assert [chunk.texts for chunk in read(tmp_path, chunk_size=3, limit=2)] == [["1", "2"]]


@pytest.mark.parametrize("name", ["a.jsonl.xz", "a.jsonl.gz"])
def test_truncated_file_raises_with_its_name(tmp_path, name):
    whole = write_jsonl(tmp_path / "whole.jsonl", [os.urandom(30).hex() for _ in range(3000)]).read_bytes()
    compress = lzma.compress if name.endswith("xz") else gzip.compress
    (tmp_path / name).write_bytes(compress(whole)[:-1000])
    with pytest.raises(ValueError, match=rf"{name}'.*beyond line \d\d+ .*Restore"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"a.jsonl": '{"txt": "a"}\n{broken\n{"t": "b"}\n'}, {}, "no column 'text'; its columns are 'txt', 't'"),
        ({"a.jsonl": '{"text": "a"}\n'}, {"id_column": "id"}, "no column 'id'"),
        ({"a.jsonl": ""}, {}, "have no row"),
        ({"a.txt": ""}, {}, "have no row"),
        ({"a.csv": "text\n"}, {}, "have no row"),
        ({"a.csv": "body\nb\n"}, {}, "no column 'text'; its columns are 'body'"),
        ({"a.txt": "b\n"}, {"text_column": "body"}, "no column 'body'; its columns are 'text'"),
        ({"a.json": '[\n{"text": "a"}\n]'}, {}, "one JSON array"),
        ({"a.json": ' [{"text": "a"}]'}, {}, "one JSON array"),
        ({"a.parquet": "PAR"}, {}, "a.parquet' cannot be read"),
        ({"a.parquet.gz": "PAR"}, {}, "Decompress it"),
        ({"a.xz.jsonl.xz": "not compressed"}, {}, "cannot be read"),
        ({"a.txt": "a\n", "b.jsonl": ""}, {}, "mixes .jsonl, .txt files"),
        ({}, {}, "no data file found"),
    ],
)
def test_invalid_input_is_refused_immediately(tmp_path, content, options, message):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_tiny(tmp_path, **options)
