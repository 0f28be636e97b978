"""Read CoNLL-2003 from handwritten lines, from the Hub's columns, and from the real files if available."""

import gzip

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from seqeval.metrics.sequence_labeling import get_entities

from examples.evaluate.parts.conll import read_conll, read_lines, sentences_of, to_iob2

LINES = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
call NN I-NP O
Monday NNP B-NP O
. . O O

-DOCSTART- -X- O O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""
READ = [
    (
        ["EU", "rejects", "German", "call", "Monday", "."],
        ["B-NP", "B-VP", "B-NP", "I-NP", "B-NP", "O"],
        ["B-ORG", "O", "B-MISC", "O", "O", "O"],
        ["NNP", "VBZ", "JJ", "NN", "NNP", "."],
    ),
    (["Peter", "Blackburn"], ["B-NP", "I-NP"], ["B-PER", "I-PER"], ["NNP", "NNP"]),
]


def test_lines_are_read_as_iob2_sentences_without_document_markers(tmp_path):
    assert list(read_lines(LINES.splitlines(keepends=True), name="x")) == READ
    assert list(read_lines(LINES.rstrip().replace("\n", "\r\n").splitlines(keepends=True), name="x")) == READ
    (tmp_path / "eng.train.gz").write_bytes(gzip.compress(LINES.encode()))
    assert read_conll("train", folder=tmp_path) == READ


def test_hub_columns_give_the_same_sentences():
    names = {
        "chunk_tags": ["O", "B-NP", "I-NP", "B-VP", "I-VP"],
        "ner_tags": ["O", "B-PER", "I-PER", "B-ORG", "B-MISC"],
        "pos_tags": [".", "JJ", "NN", "NNP", "VBZ"],
    }
    words, chunks, entities, pos = zip(*READ, strict=True)
    values = {"chunk_tags": chunks, "ner_tags": entities, "pos_tags": pos}
    columns = {name: [[names[name].index(tag) for tag in tags] for tags in values[name]] + [[0]] for name in names}
    features = {name: Sequence(ClassLabel(names=names[name])) for name in names}
    data = Dataset.from_dict(
        {"tokens": [*words, ["-DOCSTART-"]], **columns},
        features=Features({"tokens": Sequence(Value("string")), **features}),
    )
    assert sentences_of(data) == READ


@pytest.mark.parametrize(
    ("iob1", "iob2"),
    [("I-A I-A O I-A", "B-A I-A O B-A"), ("I-A B-A I-A", "B-A B-A I-A"), ("I-A I-B B-B I-B", "B-A B-B B-B I-B")],
)
def test_to_iob2_keeps_spans_and_marks_each_beginning(iob1, iob2):
    tags, converted = iob1.split(), to_iob2(iob1.split())
    assert converted == iob2.split()
    assert to_iob2(converted) == converted
    assert get_entities(converted) == get_entities(tags)
