"""Files of texts, pairs, stories and answers: broken bytes, odd types, wrong columns, cut archives."""

import csv
import gzip
import io
import json
import lzma
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from examples.corpus.reading import ChunkStream, open_corpus
from examples.evaluate.clustering import CLUSTERING_SETS
from examples.evaluate.conll import read_conll
from examples.evaluate.side_by_side import read_own
from examples.evaluate.stories import CORPORA, FILE_NAMES, SENTENCES, read_stories
from examples.evaluate.sts import STS_SETS, read_sts
from examples.evaluate.wikitext import FILE_NAME, read_wikitext
from tests.fuzz import inputs
from tests.fuzz.judging import Target, check, naming
from tests.trainer.tiny import tiny_tokenizer
from trainer.datasets import load_texts, texts_to_blocks
from trainer.pairs import dropout_pairs, load_pairs


def table(draw: random.Random, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of texts under these columns, some of which are something else, or missing."""
    rows = []
    for _ in range(draw.randrange(5)):
        row: dict[str, Any] = {column: inputs.unicode_text(draw, 3) for column in columns}
        if draw.random() < 0.2:
            row[draw.choice((*columns, draw.choice(inputs.NAMES)))] = inputs.value(draw, of_json=True)
        if draw.random() < 0.1:
            row.pop(draw.choice([*row]))
        rows.append(row)
    return rows


def raw_file(draw: random.Random, kind: str, rows: list[dict[str, Any]]) -> bytes:
    """The rows as a file of a kind, `.gz` or `.xz` behind it, in some cases damaged."""
    kind, _, packed = kind.partition(".")
    if kind in ("jsonl", "json"):
        raw = b"\n".join(
            inputs.json_bytes(draw, row) if draw.random() < 0.3 else json.dumps(row).encode() for row in rows
        )
    elif kind == "txt":
        raw = "\n".join(str(value) for row in rows for value in row.values()).encode("utf-8", "surrogatepass")
    else:
        stream = io.StringIO()
        writer = csv.writer(stream, delimiter="\t" if kind == "tsv" else ",")
        names = list(rows[0]) if rows else ["text"]
        writer.writerows([names, *(list(row.values()) for row in rows)])
        raw = stream.getvalue().encode("utf-8", "surrogatepass")
    if draw.random() < 0.3:
        raw = inputs.mutated(draw, raw)
    if draw.random() < 0.05:
        raw = draw.choice(
            (b"\xef\xbb\xbf" + raw, raw.decode("utf-8", "replace").encode("utf-16"), b"[" + raw + b"]", raw * 50)
        )
    if packed:
        raw = {"gz": gzip.compress, "xz": lzma.compress}[packed](raw)
        raw = inputs.mutated(draw, raw) if draw.random() < 0.3 else raw
    return raw


KINDS = ("txt", "jsonl", "jsonl", "jsonl", "csv", "tsv", "jsonl.gz", "csv.gz", "txt.xz", "tsv.xz")


def lines(draw: random.Random, folder: Path) -> None:
    """Each row of a corpus is a text or a complaint with its file, and each text can be read by a tokenizer."""
    kind, columns = draw.choice(KINDS), ("text", "id")
    file = folder / f"corpus[1].{kind}"
    rows = [{"text": inputs.unicode_text(draw, 3).replace("\n", " "), **row} for row in table(draw, columns)]
    file.write_bytes(raw_file(draw, kind, rows))
    id_column = None if kind.startswith("txt") else draw.choice((None, "id", "text"))
    with naming("corpus[1]"):
        corpus = open_corpus(str(file), id_column=id_column, limit=draw.choice((None, None, 1, 3)))
        chunks = list(ChunkStream(corpus, chunk_size=draw.choice((1, 2, 100))))
    check(chunks and chunks[-1].num_rows == 0, "no empty chunk ends the corpus")
    number = 0
    for chunk in chunks:
        check(chunk.first_row == number, "rows are numbered on")
        number += chunk.num_rows
        check(len(chunk.texts) + len(chunk.complaints) == chunk.num_rows, f"{chunk}")
        check(len(chunk.places) == len(chunk.texts), "a place for each text")
        for one in (*chunk.texts, *(one for one in chunk.ids if one is not None)):
            one.encode("utf-8")


def parquet(draw: random.Random, folder: Path) -> None:
    """The same for Parquet, whose bytes are read by native code."""
    rows, file = draw.randrange(5), folder / "corpus.parquet"
    texts: Any = [draw.choice((inputs.unicode_text(draw, 2), inputs.unicode_text(draw, 2), None)) for _ in range(rows)]
    kind = draw.choice(
        (pa.string(), pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary())
    )
    column = pa.array([text and text.encode() for text in texts] if kind == pa.binary() else texts, type=kind)
    if kind == pa.string() and draw.random() < 0.3:  # bytes that are no UTF-8 under the name of a string
        column = pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xed")]
        )
    pq.write_table(pa.table({draw.choice(("text", "text", "Text")): column, "id": pa.nulls(len(column))}), file)
    raw = file.read_bytes()
    if draw.random() < 0.6:
        raw = inputs.mutated(draw, raw)
    file.write_bytes(raw)
    with naming(str(file)):
        corpus = open_corpus(str(file), id_column=draw.choice((None, "id")))
        for chunk in ChunkStream(corpus, chunk_size=2):
            check(len(chunk.texts) + len(chunk.complaints) == chunk.num_rows, f"{chunk}")
            corpus.count()


def _cached_below(folder: Path) -> None:
    datasets.config.HF_DATASETS_CACHE = folder / "cache"


def texts(draw: random.Random, folder: Path) -> None:
    """What `load_texts` reads is stripped and not empty, and cut into blocks of the right lengths."""
    kind = draw.choice((*KINDS, "parquet"))
    file = folder / f"corpus.{kind}"
    _cached_below(folder)
    rows = table(draw, ("text",))
    if kind == "parquet":
        pq.write_table(pa.table({"text": [str(row.get("text")) for row in rows]}), file)
        file.write_bytes(inputs.mutated(draw, file.read_bytes()) if draw.random() < 0.5 else file.read_bytes())
    else:
        file.write_bytes(raw_file(draw, kind, rows))
    with naming("corpus"):
        found = load_texts(str(file), limit=draw.choice((None, 2)))
    check(all(text and text == text.strip() for text in found["text"]), "texts are stripped, and none is empty")
    length, least = draw.choice((4, 8, 60)), draw.choice((1, 2))
    blocks = texts_to_blocks(
        found, tiny_tokenizer(), max_length=length, min_length=least, concatenate=draw.random() < 0.5
    )
    check(all(least < len(row) <= length and row[0] == 1 for row in blocks["input_ids"]), "blocks of other lengths")


def pairs(draw: random.Random, folder: Path) -> None:
    """Pairs have two sides with text, whichever columns and labels they come from."""
    _cached_below(folder)
    columns = draw.choice((("anchor", "positive"), ("a", "b"), ("a", "b", "label"), ("a",)))
    kind = draw.choice(("jsonl", "csv", "tsv", "jsonl.gz"))
    file = folder / f"pairs.{kind}"
    rows = table(draw, columns)
    for row in rows:
        if "label" in row:
            row["label"] = draw.choice((1, 1, "1", 0, 1.0, None, "yes"))
    file.write_bytes(raw_file(draw, kind, rows))
    with naming("pairs"):
        found = load_pairs(
            str(file),
            columns=draw.choice((None, None, columns[:2])) if len(columns) > 1 else None,
            label_column=draw.choice((None, "label")),
        )
    check(all(row["anchor"].strip() and row["positive"].strip() for row in found), "a side without text")
    lone = datasets.Dataset.from_dict({"text": found["anchor"]})
    check(all(row["anchor"] == row["positive"] for row in dropout_pairs(lone, min_words=1)), "views of one line")


def _broken(draw: random.Random, raw: bytes, name: str) -> bytes:
    """A file of an evaluation, damaged in its text or in its archive."""
    raw = inputs.mutated(draw, raw) if draw.random() < 0.8 else raw
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
    raw = pack(raw)
    return inputs.mutated(draw, raw) if draw.random() < 0.15 else raw


def _cloze(draw: random.Random) -> bytes:
    names = ["InputStoryid", *(f"InputSentence{k}" for k in range(1, SENTENCES))]
    names += ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"]
    stream = io.StringIO()
    right = draw.choice(("1", "2", "1", "2", "0", "3", "", "x", "-1", "٢"))
    csv.writer(stream).writerows([names, [*(inputs.unicode_text(draw, 2) for _ in names[1:]), right]])
    return stream.getvalue().encode()


def stories(draw: random.Random, folder: Path) -> None:
    """Stories have their sentences, or the file and line are named."""
    corpus = draw.choice(CORPORA)
    sentence = inputs.unicode_text(draw, 2)
    raw = {
        "rocstories": lambda: f"a title <EOT> keys <EOL> </s> {' </s> '.join([sentence] * 5)}\n".encode() * 2,
        "story_cloze": lambda: _cloze(draw),
        "tinystories": lambda: f"Once. {sentence}\n<|endoftext|>\nTwice.".encode(),
    }[corpus]()
    name = FILE_NAMES[corpus]
    (folder / name).write_bytes(_broken(draw, raw, name))
    with naming(name):
        found = read_stories(folder, corpus=corpus)
    check(corpus == "tinystories" or all(len(story) == SENTENCES for story in found), f"{found!r:.200}")


def evaluations(draw: random.Random, folder: Path) -> None:
    """Pairs, tags, titles, paragraphs and a user's own texts: read, or the file is named."""

    def sts() -> Any:
        name = draw.choice([*STS_SETS])
        return STS_SETS[name].file_name, b"a\tb\t1.5\nc\td\tnan\n", lambda: read_sts(name, folder=folder)

    def conll() -> Any:
        return "eng.testa.gz", b"EU NNP I-NP I-ORG\n\nx NN O O\n", lambda: read_conll("testa", folder=folder)

    def clustering() -> Any:
        chosen = draw.choice([one.file for one in CLUSTERING_SETS.values() if one.file is not None])
        raw = b"title\tsubject\nabout cats\tbiology\n"
        if chosen.name.startswith("20news"):
            raw = inputs.json_bytes(
                draw, inputs.changed(draw, {"subject": "Re: a subject of some length here", "label": 3})
            )
        return chosen.name, raw, lambda: chosen.read(folder / chosen.name)

    def wikitext() -> Any:
        return FILE_NAME, b" = A title = \n\n Some @-@ text , here .\n", lambda: read_wikitext(folder, headings=True)

    def own() -> Any:
        row = {"prefix": inputs.text(draw, 2), "suffix": "b", "title": "c"}
        return "own.jsonl", inputs.json_bytes(draw, inputs.changed(draw, row)), lambda: read_own(folder / "own.jsonl")

    name, raw, read = draw.choice((sts, conll, clustering, wikitext, own))()
    (folder / name).write_bytes(_broken(draw, raw, name))
    with naming(name):
        read()


TARGETS = (
    Target(name="lines", run=lines, weight=20, seeds=200),
    Target(name="parquet", run=parquet, weight=10, seeds=80),
    Target(name="texts", run=texts, weight=0.5, seeds=12),
    Target(name="pairs", run=pairs, weight=0.5, seeds=24),
    Target(name="stories", run=stories, weight=20, seeds=150),
    Target(name="evaluations", run=evaluations, weight=20, seeds=150),
)
