"""Read files of other people and programs, some of them damaged: correctly, or with an error that names them."""

import csv
import dataclasses
import functools
import gzip
import io
import json
import lzma
import os
import random
import struct
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import LoraConfig

from examples.adapt import parse_arguments
from examples.corpus.reading import open_corpus
from examples.evaluate.annotation_form import read_answers, read_key
from examples.evaluate.clustering import CLUSTERING_SETS
from examples.evaluate.conll import read_conll
from examples.evaluate.records import Record, read_records
from examples.evaluate.side_by_side import read_own
from examples.evaluate.stories import CORPORA, FILE_NAMES, SENTENCES, read_stories
from examples.evaluate.sts import STS_SETS, read_sts
from examples.evaluate.study_plan import read_plan
from examples.evaluate.training_curves import read_report
from examples.evaluate.wikitext import FILE_NAME, read_wikitext
from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM
from tests.fuzz import inputs
from tests.fuzz.judge import REPOSITORY, check, naming
from tests.trainer.tiny import tiny_model, tiny_tokenizer
from trainer import dropout_pairs, load_pairs, load_texts, texts_to_blocks

# ---- Checkpoints ----


@functools.cache
def _saved(kind: str) -> Path:
    """Save a tiny model: whole, in shards, or as an adapter over it."""
    kept = tempfile.TemporaryDirectory(prefix="magnet-fuzz-")
    _KEPT.append(kept)
    made, place = tiny_model(), Path(kept.name) / kind
    made.tokenizer = tiny_tokenizer()
    if kind == "adapter":
        made = MagnetLlamaForCausalLM.from_pretrained(_saved("whole"))
        made.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2))
    made.save_pretrained(place, **({"max_shard_size": "10KB"} if kind == "sharded" else {}))
    return place


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends
_READ = {".json", ".safetensors"}


def _damage(draw: random.Random, kind: str, place: Path) -> Path:
    """Link a saved directory to a new one with up to two changed files."""
    place.mkdir()
    for file in _saved(kind).iterdir():
        if file.suffix != ".py":
            (place / file.name).symlink_to(file)
    names = sorted(file.name for file in place.iterdir() if file.suffix in _READ and "token" not in file.name)
    for name in set(inputs.some(draw, names, 2)):
        file, raw = place / name, (place / name).read_bytes()
        if name.endswith(".json") and draw.random() < 0.8:
            raw = inputs.json_bytes(draw, json.loads(raw), chance=draw.choice((0.05, 0.2, 0.5)))
        elif name.endswith(".safetensors") and draw.random() < 0.5:
            raw = _other_header(draw, raw)
        else:
            raw = inputs.mutated(draw, raw)
        file.unlink()
        if draw.random() < 0.95:
            file.write_bytes(raw)
    return place


def _other_header(draw: random.Random, raw: bytes) -> bytes:
    """Change the header of safetensors, and possibly its length."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    odd = {
        "dtype": ("F16", "F64", "I64", "BOOL", "X", 3, None),
        "shape": ([0], [-1, 4], [2**62, 2**62], [1] * 100, "4", [1.5]),
        "data_offsets": ([0, 4], [4, 0], [0, 2**63], [-4, 0], [], None, [0, 1, 2]),
    }
    for name in set(inputs.some(draw, sorted(set(header) - {"__metadata__"}), 2)):
        kind = draw.choice((*odd, "name", "entry"))
        if kind in odd:
            header[name][kind] = draw.choice(odd[kind])
        else:
            new = draw.choice((f"{name}.x", "", "\ud800", "lm_head.weight")) if kind == "name" else name
            header[new] = header.pop(name) if kind == "name" else inputs.value(draw, of_json=True)
    told = inputs.json_bytes(draw, header, chance=0.0)
    size = draw.choice((len(told), len(told), len(told), length, 0, 2**63, len(told) + 1))
    return struct.pack("<Q", size) + told + raw[8 + length :]


def loading(draw: random.Random, folder: Path) -> None:
    """Open a changed directory: the model computes, or the error says what is wrong."""
    kind = draw.choice(("whole", "sharded", "adapter", "adapter"))
    opened = AutoMagnetForCausalLM.from_pretrained(_damage(draw, kind, folder / kind))
    with torch.no_grad():
        states = opened.eval()(torch.tensor([[1, 5, 6]]), mode="bidirectional").last_hidden_state
    check(states.shape[:2] == (1, 3), f"states of shape {tuple(states.shape)}")


@functools.cache
def _base() -> Any:
    return MagnetLlamaForCausalLM.from_pretrained(_saved("whole"))


def adapting(draw: random.Random, folder: Path) -> None:
    """Load a damaged adapter: a model that refuses it does not change."""
    place, base = _damage(draw, "adapter", folder / "adapter"), _base()
    before = dict(base.config.magnet)
    try:
        base.load_adapter(str(place))
        base.delete_adapter("default")
    finally:
        left = getattr(base, "peft_config", None)
        if left:
            _base.cache_clear()
        base.config.magnet.update(before)
    check(not left, f"an adapter that was refused is still there: {left}")


# ---- JSON that this repository writes ----


def _read_recipe(file: Path) -> None:
    """Read a recipe of `adapt.py`; `argparse` exits with status 2 if an option is invalid."""
    try:
        with redirect_stderr(io.StringIO()):
            parse_arguments([str(file)])
    except SystemExit as error:
        check(error.code == 2, f"it ended with {error.code}")


def _read_plan(file: Path) -> None:
    plan = read_plan(file, preset="paper", output=file.parent / "out")
    for run in plan.runs:
        inside = (file.parent / "out") in Path(os.path.normpath(run.folder)).parents
        check(inside, f"{str(run.folder)!r} is outside the study's folder")


_PLAN = json.loads((REPOSITORY / "examples/evaluate/study_wiki7m.json").read_text(encoding="utf-8"))
_RECIPES = [json.loads(file.read_text()) for file in sorted((REPOSITORY / "examples/configs").glob("*.json"))]
_FIXED = {"output_dir": "out", "use_cpu": True, "report_to": "none", "model_name_or_path": "m", "train_texts": ["t"]}
_RECORD = dataclasses.asdict(Record(table="sts", system="s", unit="STS12", settings={"a": 1}, model={"name": "m"}))
_KEY = {"form": "f", "annotators": ["a", "b"], "items": {"i1": {}, "i2": {}}, "systems": ["x"]}
_ANSWERS = {"form": "f", "annotator": "a", "answers": {"i1": True, "i2": False}}
_REPORT = {"arguments": {"a": 1}, "log_history": [{"step": 1, "loss": 2.0}, {"step": 4}]}
_JSON: tuple[tuple[str, Any, Callable[[Path], Any]], ...] = (
    ("plan.json", _PLAN, _read_plan),
    *(("recipe.json", {**recipe, **_FIXED}, _read_recipe) for recipe in _RECIPES),
    ("records.jsonl", _RECORD, lambda file: list(read_records(file))),
    ("key.json", _KEY, read_key),
    ("answers.json", _ANSWERS, lambda file: read_answers(_KEY, [file])),
    ("adapt.json", _REPORT, lambda file: read_report(file.parent)),
    ("own.jsonl", {"prefix": "a\u2028", "suffix": "b", "title": "c"}, read_own),
)


def json_files(draw: random.Random, folder: Path) -> None:
    """Read a changed JSON file of this repository."""
    name, values, read = draw.choice(_JSON)
    (folder / name).write_bytes(inputs.json_bytes(draw, values, chance=draw.choice((0.0, 0.02, 0.1, 0.4))))
    with naming("" if name == "recipe.json" else name):  # an invalid value of a recipe is named by its option
        read(folder / name)


# ---- Corpora ----

_KINDS = ("txt", "jsonl", "jsonl", "csv", "tsv", "jsonl.gz", "csv.gz", "txt.xz", "tsv.xz", "parquet")


def _rows(draw: random.Random, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Draw rows of texts under these columns, some with other values or missing cells."""
    rows = []
    for _ in range(draw.randrange(5)):
        row: dict[str, Any] = {column: inputs.unicode_text(draw, 3) for column in columns}
        if "label" in row:
            row["label"] = draw.choice((1, 1, "1", 0, 1.0, None, "yes"))
        if draw.random() < 0.2:
            row[draw.choice((*columns, draw.choice(inputs.NAMES)))] = inputs.value(draw, of_json=True)
        if draw.random() < 0.1:
            row.pop(draw.choice([*row]))
        rows.append(row)
    return rows


def _write(draw: random.Random, file: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows in the format of the suffix, possibly compressed, sometimes damaged."""
    _, kind, *packed = file.name.split(".")
    stream: Any = io.BytesIO() if kind == "parquet" else io.StringIO()
    if kind == "jsonl":
        raw = b"\n".join(inputs.json_bytes(draw, row, chance=0.1) for row in rows)
    elif kind == "parquet":
        texts = [str(row.get("text")).encode() + draw.choice((b"", b"", b"\xff\xed")) for row in rows]
        column = pa.array(texts, type=pa.binary())
        pq.write_table(pa.table({"text": column if draw.random() < 0.3 else column.view(pa.string())}), stream)
        raw = stream.getvalue()
    elif kind == "txt":
        raw = "\n".join(str(value) for row in rows for value in row.values()).encode("utf-8", "surrogatepass")
    else:
        names = list(rows[0]) if rows else ["text"]
        writer = csv.writer(stream, delimiter="\t" if kind == "tsv" else ",")
        writer.writerows([names, *(list(row.values()) for row in rows)])
        raw = stream.getvalue().encode("utf-8", "surrogatepass")
    file.write_bytes(_packed(draw, raw, "".join(packed)))


def _packed(draw: random.Random, raw: bytes, suffix: str, *, chance: float = 0.3) -> bytes:
    """Compress the bytes; occasionally damage them or their archive."""
    raw = inputs.mutated(draw, raw) if draw.random() < chance else raw
    raw = {"gz": gzip.compress, "xz": lzma.compress}.get(suffix, bytes)(raw)
    return inputs.mutated(draw, raw) if draw.random() < 0.15 else raw


def corpora(draw: random.Random, folder: Path) -> None:
    """Read a corpus: each row is a text or a complaint, and each text can be encoded."""
    kind = draw.choice(_KINDS)
    file = folder / f"corpus[1].{kind}"
    _write(draw, file, _rows(draw, ("text", "id")))
    id_column = None if kind.startswith(("txt", "parquet")) else draw.choice((None, "id", "text"))
    with naming("corpus[1]"):
        limit = draw.choice((None, None, 1, 3))
        corpus = open_corpus([str(file)], text_column="text", id_column=id_column, limit=limit)
        chunks = list(corpus.chunks(draw.choice((1, 2, 100))))
        check(sum(chunk.num_rows for chunk in chunks) == corpus.count(), "rows are missing")
    number = 0
    for chunk in chunks:
        check(chunk.first_row == number, "rows are numbered on")
        number += chunk.num_rows
        check(len(chunk.texts) + len(chunk.complaints) == chunk.num_rows, f"{chunk}")
        for one in (*chunk.texts, *(one for one in chunk.ids if one is not None)):
            one.encode("utf-8")


def training_files(draw: random.Random, folder: Path) -> None:
    """Read texts and pairs for training: texts are stripped and split into blocks, and pairs have two sides."""
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    if draw.random() < 0.5:
        file = folder / f"corpus.{draw.choice(_KINDS)}"
        _write(draw, file, _rows(draw, ("text",)))
        with naming("corpus"):
            found = load_texts(str(file), limit=draw.choice((None, 2)))
        check(all(text and text == text.strip() for text in found["text"]), "a text is empty or not stripped")
        blocks = texts_to_blocks(found, tiny_tokenizer(), max_length=8, concatenate=draw.random() < 0.5)
        check(all(1 < len(row) <= 8 and row[0] == 1 for row in blocks["input_ids"]), "blocks of other lengths")
        return
    columns = draw.choice((("anchor", "positive"), ("a", "b"), ("a", "b", "label"), ("a",)))
    file = folder / f"pairs.{draw.choice(('jsonl', 'csv', 'tsv', 'jsonl.gz'))}"
    _write(draw, file, _rows(draw, columns))
    named = draw.choice((None, None, columns[:2])) if len(columns) > 1 else None
    with naming("pairs"):
        found = load_pairs(str(file), columns=named, label_column=draw.choice((None, "label")))
    check(all(row["anchor"].strip() and row["positive"].strip() for row in found), "a side without text")
    lone = datasets.Dataset.from_dict({"text": found["anchor"]})
    check(all(row["anchor"] == row["positive"] for row in dropout_pairs(lone, min_words=1)), "two sides of one line")


# ---- Evaluation sets ----


def _cloze(draw: random.Random) -> bytes:
    names = ["InputStoryid", *(f"InputSentence{k}" for k in range(1, SENTENCES))]
    names += ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"]
    stream, right = io.StringIO(), draw.choice(("1", "2", "1", "2", "0", "3", "", "x", "-1", "٢"))
    csv.writer(stream).writerows([names, [*(inputs.unicode_text(draw, 2) for _ in names[1:]), right]])
    return stream.getvalue().encode()


def evaluations(draw: random.Random, folder: Path) -> None:
    """Read the file of an evaluation set, damaged in its text or archive: it is read, or named in the error."""
    sentence, corpus, sts = inputs.unicode_text(draw, 2), draw.choice(CORPORA), draw.choice([*STS_SETS])
    story = {
        "rocstories": f"a title <EOT> keys <EOL> </s> {' </s> '.join([sentence] * 5)}\n".encode() * 2,
        "story_cloze": _cloze(draw),
        "tinystories": f"Once. {sentence}\n<|endoftext|>\nTwice.".encode(),
    }[corpus]
    clustering = draw.choice([one.file for one in CLUSTERING_SETS.values() if one.file is not None])
    titles = b"title\tsubject\nabout cats\tbiology\n"
    if clustering.name.startswith("20news"):
        titles = inputs.json_bytes(draw, {"subject": "Re: a subject of some length here", "label": 3})
    tagged = b"EU NNP I-NP I-ORG\n\nx NN O O\n"
    readers: tuple[tuple[str, bytes, Callable[[], Any]], ...] = (
        (FILE_NAMES[corpus], story, lambda: read_stories(folder, corpus=corpus)),
        (STS_SETS[sts].file_name, b"a\tb\t1.5\nc\td\tnan\n", lambda: read_sts(sts, folder=folder)),
        ("eng.testa.gz", tagged, lambda: read_conll("testa", folder=folder)),
        (clustering.name, titles, lambda: clustering.read(folder / clustering.name)),
        (FILE_NAME, b" = A title = \n\n Some @-@ text , here .\n", lambda: read_wikitext(folder, headings=True)),
    )
    name, raw, read = draw.choice(readers)
    (folder / name).write_bytes(_packed(draw, raw, Path(name).suffix[1:], chance=0.8))
    with naming(name):
        read()
