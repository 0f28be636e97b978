"""CoNLL-2003 from lines by hand, from the Hub's columns, and from the real files where they are."""

import gzip

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, Entities

from examples.evaluate.conll import missing_files, read_conll, read_lines, sentences_of, split_to_test, to_iob2

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


def test_lines_become_sentences_in_iob2_without_the_beginnings_of_documents(tmp_path):
    assert list(read_lines(LINES.splitlines(keepends=True), name="x")) == READ
    assert list(read_lines(LINES.rstrip().replace("\n", "\r\n").splitlines(keepends=True), name="x")) == READ
    (tmp_path / "eng.train.gz").write_bytes(gzip.compress(LINES.encode()))
    assert read_conll("train", folder=tmp_path) == READ


def test_the_columns_of_the_hub_are_the_same_sentences():
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
def test_iob2_has_the_spans_of_iob1_and_a_begin_at_each(iob1, iob2):
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


def test_the_split_that_is_tested_is_the_one_that_is_there(tmp_path):
    assert split_to_test(None) == "testb"
    assert split_to_test(tmp_path) == "testa"
    assert len(missing_files(tmp_path)) == 2
    for name in ("train", "testa", "testb"):
        (tmp_path / f"eng.{name}.gz").write_bytes(gzip.compress(LINES.encode()))
    assert split_to_test(tmp_path) == "testb"
    assert missing_files(tmp_path) == []


@pytest.mark.parametrize(
    "line", ["EU NNP I-NP", "EU NNP I-NP I-ORG x", "EU NNP I-NP ORG", "EU NNP X-NP O", "a b O I-"]
)
def test_a_line_of_another_form_is_named(line):
    with pytest.raises(ValueError, match=r"Line 2 of 'x' is '.*expected a word, its part of speech"):
        list(read_lines(["EU NNP I-NP I-ORG\n", f"{line}\n"], name="x"))


def test_the_real_files_have_the_published_numbers():
    if not CONLL_FOLDER.is_dir():
        pytest.skip("no CoNLL-2003 files at ../shared/data/conll2003 beside the repository")
    train, testa = (read_conll(split, folder=CONLL_FOLDER) for split in ("train", "testa"))
    assert (len(train), len(testa)) == (14_041, 3_250)
    assert sum(len(sentence.words) for sentence in train) == 203_621
    # Entities of the shared task's introduction: LOC, MISC, ORG, PER.
    begins = [tag for sentence in train for tag in sentence.ner if tag.startswith("B-")]
    assert {kind: begins.count(f"B-{kind}") for kind in ("LOC", "MISC", "ORG", "PER")} == {
        "LOC": 7140,
        "MISC": 3438,
        "ORG": 6321,
        "PER": 6600,
    }
    assert len({tag for sentence in train for tag in sentence.tags("ner")}) == 9
