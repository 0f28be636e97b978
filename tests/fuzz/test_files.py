"""Read files of other people and programs, some of them damaged: correctly, or with an error that names them."""

import csv
import gzip
import io
import json
import lzma
import os
import shutil
import struct
import tempfile
from contextlib import redirect_stderr
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from unittest import mock

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from examples.adapt import parse_arguments
from examples.corpus.reading import open_corpus
from examples.evaluate.clustering import CLUSTERING_SETS
from examples.evaluate.parts.annotation_form import read_answers, read_key
from examples.evaluate.parts.conll import read_conll
from examples.evaluate.parts.records import Record, read_records
from examples.evaluate.parts.stories import FILE_NAMES, SENTENCES, read_stories
from examples.evaluate.parts.study_plan import read_plan
from examples.evaluate.parts.wikitext import FILE_NAME, read_wikitext
from examples.evaluate.side_by_side import read_own
from examples.evaluate.sts import STS_SETS, read_sts
from examples.evaluate.training_curves import read_report
from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM
from tests.trainer.tiny import tiny_model, tiny_tokenizer
from trainer import dropout_pairs, load_pairs, load_texts, texts_to_blocks

from .strategies import REPOSITORY, changed, clear_errors, damaged, fuzz, json_bytes, mostly, unicode_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder that each input empties, with the cache of `datasets` beside it."""
    made = tmp_path_factory.mktemp("fuzz")
    with mock.patch("datasets.config.HF_DATASETS_CACHE", made / "cache"):
        yield made / "input"


def emptied(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# ---- Checkpoints ----


KEPT = tempfile.TemporaryDirectory(prefix="magnet-fuzz-")


@cache
def saved(kind):
    """Save a tiny model whole, in shards, or as an adapter over it, and return the content of its files."""
    made, place = tiny_model(), Path(KEPT.name, kind)
    made.tokenizer = tiny_tokenizer()
    if kind == "adapter":
        saved("whole")
        made = MagnetLlamaForCausalLM.from_pretrained(f"{KEPT.name}/whole")
        made.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2))
    made.save_pretrained(place, **({"max_shard_size": "10KB"} if kind == "sharded" else {}))
    return {file.name: file.read_bytes() for file in place.iterdir() if file.is_file() and file.suffix != ".py"}


@st.composite
def other_headers(draw, raw):
    """Change the header of safetensors, and possibly its length."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.dumps(draw(changed(json.loads(raw[8 : 8 + length])))).encode()
    size = draw(mostly(st.just(len(header)), st.sampled_from((length, 0, 2**63, len(header) + 1))))
    return struct.pack("<Q", size) + header + raw[8 + length :]


@st.composite
def checkpoints(draw, kind):
    """Draw the files of a checkpoint, up to two of them changed or missing."""
    files = dict(saved(kind))
    names = sorted(name for name in files if name.endswith((".json", ".safetensors")) and "token" not in name)
    for name in draw(st.sets(st.sampled_from(names), max_size=2)):
        raw = files.pop(name)
        other = json_bytes(json.loads(raw)) if name.endswith(".json") else mostly(other_headers(raw), damaged(raw))
        if draw(mostly(st.just(True), st.just(False))):
            files[name] = draw(other)
    return files


def write_all(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@fuzz(50)
@given(st.sampled_from(("whole", "sharded", "adapter", "adapter")).flatmap(checkpoints))
def test_changed_checkpoint_opens_or_is_refused(folder, files):
    with clear_errors(), torch.no_grad():
        opened = AutoMagnetForCausalLM.from_pretrained(write_all(emptied(folder), files))
        states = opened.eval()(torch.tensor([[1, 5, 6]]), mode="bidirectional").last_hidden_state
        assert states.shape[:2] == (1, 3)


@fuzz(20)
@given(checkpoints("adapter"))
def test_model_that_refuses_an_adapter_does_not_change(folder, files):
    base = MagnetLlamaForCausalLM.from_pretrained(write_all(emptied(folder), saved("whole")))
    before = dict(base.config.magnet)
    with clear_errors():
        try:
            base.load_adapter(str(write_all(emptied(folder), files)))
        except ValueError:
            assert not getattr(base, "peft_config", None) and base.config.magnet == before
            raise


# ---- JSON that this repository writes ----


def read_recipe(file):
    """Read a recipe of `adapt.py`; `argparse` exits with status 2 if an option is invalid."""
    try:
        with redirect_stderr(io.StringIO()):
            parse_arguments([str(file)])
    except SystemExit as error:
        assert error.code == 2


def read_study(file):
    for run in read_plan(file, preset="paper", output=file.parent / "out").runs:
        assert (file.parent / "out") in Path(os.path.normpath(run.folder)).parents


PLAN = json.loads((REPOSITORY / "examples/evaluate/study_wiki7m.json").read_text(encoding="utf-8"))
RECIPES = [json.loads(file.read_text()) for file in sorted((REPOSITORY / "examples/configs").glob("*.json"))]
FIXED = {"output_dir": "out", "use_cpu": True, "report_to": "none", "model_name_or_path": "m", "train_texts": ["t"]}
RECORD = asdict(Record(table="sts", system="s", unit="STS12", settings={"a": 1}, model={"name": "m"}))
KEY = {"form": "f", "annotators": ["a", "b"], "items": {"i1": {}, "i2": {}}, "systems": ["x"]}
ANSWERS = {"form": "f", "annotator": "a", "answers": {"i1": True, "i2": False}}
REPORT = {"arguments": {"a": 1}, "log_history": [{"step": 1, "loss": 2.0}, {"step": 4}]}
JSON_FILES = {
    "plan.json": ([PLAN], read_study),
    "recipe.json": ([{**recipe, **FIXED} for recipe in RECIPES], read_recipe),
    "records.jsonl": ([RECORD], lambda file: list(read_records(file))),
    "key.json": ([KEY], read_key),
    "answers.json": ([ANSWERS], lambda file: read_answers(KEY, [file])),
    "adapt.json": ([REPORT], lambda file: read_report(file.parent)),
    "own.jsonl": ([{"prefix": "a\u2028", "suffix": "b", "title": "c"}], read_own),
}


@pytest.mark.parametrize("name", JSON_FILES)
@fuzz(40)
@given(st.data())
def test_changed_json_file_is_read_or_named(folder, name, data):
    contents, read = JSON_FILES[name]
    file = emptied(folder) / name
    file.write_bytes(data.draw(st.sampled_from(contents).flatmap(json_bytes)))
    with clear_errors("" if name == "recipe.json" else name):  # an invalid value of a recipe is named by its option
        read(file)


# ---- Corpora ----

some_suffix = st.sampled_from("txt jsonl jsonl csv tsv jsonl.gz csv.gz txt.xz tsv.xz parquet".split())


@st.composite
def packed(draw, raw, suffix):
    """Compress the bytes; occasionally damage them or their archive."""
    raw = draw(mostly(st.just(raw), damaged(raw)))
    raw = {"gz": gzip.compress, "xz": lzma.compress}.get(suffix.rpartition(".")[2], bytes)(raw)
    return draw(mostly(st.just(raw), damaged(raw)))


@st.composite
def tables(draw, columns, suffix, *, damages_json=True):
    """Write rows of texts in the format of the suffix, some with other values or missing cells."""
    label = st.sampled_from((1, 1, "1", 0, 1.0, None, "yes"))
    row = st.fixed_dictionaries({column: label if column == "label" else unicode_text for column in columns})
    rows = draw(st.lists(row.flatmap(lambda row: st.just(row) | changed(row, 1)), max_size=4))
    rows = [row if isinstance(row, dict) else {columns[0]: row} for row in rows]
    stream, kind = io.StringIO(), suffix.partition(".")[0]
    if kind == "jsonl":
        if not damages_json:
            raw = b"\n".join(json.dumps(row).encode() for row in rows)
            return gzip.compress(raw) if suffix.endswith(".gz") else raw
        raw = b"\n".join(draw(json_bytes(row, 1)) for row in rows)
    elif kind == "parquet":
        texts = [str(row.get("text")).encode("utf-8", "replace") for row in rows] + draw(
            mostly(st.just([]), st.just([b"\xff\xed"]))
        )
        column, buffer = pa.array(texts, type=pa.binary()), io.BytesIO()
        column = column if draw(st.booleans()) else column.view(pa.string())
        pq.write_table(pa.table({"text": column}), buffer)
        raw = buffer.getvalue()
    elif kind == "txt":
        raw = "\n".join(str(value) for row in rows for value in row.values()).encode("utf-8", "surrogatepass")
    else:
        writer = csv.writer(stream, delimiter="\t" if kind == "tsv" else ",")
        writer.writerows([list(rows[0]) if rows else ["text"], *(list(row.values()) for row in rows)])
        raw = stream.getvalue().encode("utf-8", "surrogatepass")
    return draw(packed(raw, suffix))


@fuzz(100)
@given(some_suffix, st.sampled_from((None, "id", "text")), st.sampled_from((None, None, 1, 3)), st.data())
def test_corpus_rows_are_texts_or_complaints(folder, suffix, id_column, limit, data):
    file = emptied(folder) / f"corpus[1].{suffix}"
    file.write_bytes(data.draw(tables(("text", "id"), suffix)))
    id_column = None if suffix.startswith(("txt", "parquet")) else id_column
    with clear_errors("corpus[1]"):
        corpus = open_corpus([str(file)], text_column="text", id_column=id_column, limit=limit)
        chunks = list(corpus.chunks(data.draw(st.sampled_from((1, 2, 100)))))
        assert sum(chunk.num_rows for chunk in chunks) == corpus.count()
        number = 0
        for chunk in chunks:
            assert chunk.first_row == number and len(chunk.texts) + len(chunk.complaints) == chunk.num_rows
            number += chunk.num_rows
            for one in (*chunk.texts, *(one for one in chunk.ids if one is not None)):
                one.encode("utf-8")


@fuzz(12)
@given(some_suffix, st.sampled_from((None, 2)), st.booleans(), st.data())
def test_training_texts_are_stripped_and_split_into_blocks(folder, suffix, limit, concatenate, data):
    file = emptied(folder) / f"corpus.{suffix}"
    file.write_bytes(data.draw(tables(("text",), suffix, damages_json=False)))
    with clear_errors("corpus"):
        found = load_texts(str(file), limit=limit)
        assert all(text and text == text.strip() for text in found["text"])
        blocks = texts_to_blocks(found, tiny_tokenizer(), min_length=1, max_length=8, concatenate=concatenate)
        assert all(1 < len(row) <= 8 and row[0] == 1 for row in blocks["input_ids"])


@fuzz(10)
@given(
    st.sampled_from(("jsonl", "csv", "tsv", "jsonl.gz")),
    *(st.sampled_from((("anchor", "positive"), ("a", "b"), ("a", "b", "label"), ("a",))), st.booleans()),
    *(st.sampled_from((None, "label")), st.data()),
)
def test_training_pairs_have_two_sides(folder, suffix, columns, named, label_column, data):
    file = emptied(folder) / f"pairs.{suffix}"
    # Arrow's JSON reader crashes the process on some damaged files.
    file.write_bytes(data.draw(tables(columns, suffix, damages_json=False)))
    with clear_errors("pairs"):
        chosen = columns[:2] if named and len(columns) > 1 else None
        found = load_pairs(str(file), columns=chosen, label_column=label_column)
        assert all(row["anchor"].strip() and row["positive"].strip() for row in found)
        lone = datasets.Dataset.from_dict({"text": found["anchor"]})
        assert all(row["anchor"] == row["positive"] for row in dropout_pairs(lone, min_words=1))


# ---- Evaluation sets ----

CLOZE = ["InputStoryid", *(f"InputSentence{number}" for number in range(1, SENTENCES))]
CLOZE = ",".join([*CLOZE, "RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"])
STORIES = {
    "rocstories": "a title <EOT> keys <EOL> </s> A b. </s> C d. </s> E f. </s> G h. </s> I j.\n" * 2,
    "story_cloze": f"{CLOZE}\n{'A b.,' * 7}1\n",
    "tinystories": "Once. She ate.\n<|endoftext|>\nTwice.",
}
TITLES = {
    "BiorxivClusteringS2S": "title\tsubject\nabout cats\tbiology\n",
    "TwentyNewsgroupsClustering": '{"subject": "Re: a subject of some length here", "label": 3}\n',
}


def read_titles(name, folder):
    return CLUSTERING_SETS[name].file.read(folder / CLUSTERING_SETS[name].file.name)


EVALUATION_SETS = {
    **{FILE_NAMES[name]: (text, partial(read_stories, corpus=name)) for name, text in STORIES.items()},
    **{one.file_name: ("a\tb\t1.5\n", partial(read_sts, name)) for name, one in STS_SETS.items()},
    "eng.testa.gz": ("EU NNP I-NP I-ORG\n\nx NN O O\n", partial(read_conll, "testa")),
    **{CLUSTERING_SETS[name].file.name: (text, partial(read_titles, name)) for name, text in TITLES.items()},
    FILE_NAME: (" = A title = \n\n Some @-@ text , here .\n", partial(read_wikitext, headings=True)),
}


@fuzz(120)
@given(st.sampled_from([*EVALUATION_SETS]), st.data())
def test_damaged_evaluation_set_is_read_or_named(folder, name, data):
    text, read = EVALUATION_SETS[name]
    raw = data.draw(mostly(damaged(text.encode()), st.just(text.encode())))
    (emptied(folder) / name).write_bytes(data.draw(packed(raw, Path(name).suffix)))
    with clear_errors(name):
        read(folder=folder)
