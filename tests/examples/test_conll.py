"""Read CoNLL-2003 from handwritten lines, from the Hub's columns, and from the real files if available."""

import gzip

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, Entities

from examples.evaluate.conll import read_conll, read_lines, sentences_of, to_iob2

from ..conftest import REPOSITORY

CONLL_FOLDER = REPOSITORY.parent / "shared" / "data" / "conll2003"
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
    spans = [
        [(span.tag, span.start, span.end) for row in Entities([given], scheme=scheme).entities for span in row]
        for given, scheme in ((converted, IOB2), (tags, IOB1))
        if given
    ]
    assert len(spans) == 0 or spans[0] == spans[1]


def test_real_files_have_published_counts():
    if not CONLL_FOLDER.is_dir():
        pytest.skip("no CoNLL-2003 files at ../shared/data/conll2003 beside the repository")
    train, testa = (read_conll(split, folder=CONLL_FOLDER) for split in ("train", "testa"))
    assert (len(train), len(testa)) == (14_041, 3_250)
    assert sum(len(sentence.words) for sentence in train) == 203_621
    # Entities in the introduction of the shared task: LOC, MISC, ORG, PER.
    begins = [tag for sentence in train for tag in sentence.ner if tag.startswith("B-")]
    assert {kind: begins.count(f"B-{kind}") for kind in ("LOC", "MISC", "ORG", "PER")} == {
        "LOC": 7140,
        "MISC": 3438,
        "ORG": 6321,
        "PER": 6600,
    }
    assert len({tag for sentence in train for tag in sentence.tags("ner")}) == 9
