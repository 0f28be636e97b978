"""Test Table 1 from files to records: three probes share one pass, and a resumed run gives the same figures."""

import gzip
import random

import pytest

from examples.evaluate import word_probes

from .tiny_encoder import save_bert

# Words with their tags: a word determines all tags, so that a probe can learn them.
WORDS = {
    "the": ("DT", "I-NP", "O"),
    "cat": ("NN", "I-NP", "O"),
    "sat": ("VBD", "I-VP", "O"),
    "on": ("IN", "I-PP", "O"),
    "Given": ("NNP", "I-NP", "I-PER"),
    "forest": ("NNP", "I-NP", "I-LOC"),
    ".": (".", "O", "O"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write the files of the shared task without the test set."""
    folder = tmp_path_factory.mktemp("conll")
    draw = random.Random(0)
    for name, number in (("train", 60), ("testa", 20)):
        rows = [[draw.choice(list(WORDS)) for _ in range(draw.randint(2, 8))] for _ in range(number)]
        text = "\n\n".join("\n".join(f"{word} {' '.join(WORDS[word])}" for word in row) for row in rows)
        (folder / f"eng.{name}.gz").write_bytes(gzip.compress(f"-DOCSTART- -X- O O\n\n{text}\n".encode()))
    return folder


@pytest.fixture
def command(tmp_path, checkpoint, data):
    sizes = ["--steps", "100", "--learning_rate", "0.05", "--device", "cpu"]
    return ["--model", f"m={checkpoint}", "--data", str(data), "--results", str(tmp_path / "results"), *sizes]


@pytest.fixture
def openings(monkeypatch):
    """Record the readings in which models are opened."""
    seen, opened = [], word_probes.open_reader
    monkeypatch.setattr(
        word_probes, "open_reader", lambda *a, reading: seen.append(reading) or opened(*a, reading=reading)
    )
    return seen


def test_probes_share_one_pass_and_are_recorded(command, openings, capsys):
    records = word_probes.main([*command, "--shift", "same"])
    assert openings == ["bidirectional"]
    assert [record.unit for record in records] == ["chunking", "ner", "pos"]
    for record in records:
        assert 0 < record.metrics["f1"] <= record.metrics["accuracy"] <= 100
        assert record.counts["train_sentences"] == 60 and record.counts["words_without_tokens"] == 0
    assert records[2].metrics["f1"] == records[2].metrics["accuracy"] > 60, "far above a guess among six"
    assert records[2].counts["labels"] == 6
    settings = records[0].settings
    assert (settings["tested"], settings["reading"], settings["shift"]) == ("testa", "bidirectional", "same")
    assert (settings["steps"], settings["batch_size"], settings["dropout"]) == (100, 8, 0.1)
    assert "words: OK (1 models, 3 cells each" in capsys.readouterr().out.splitlines()[-1]


def test_recorded_figures_are_of_the_texts_and_the_seed(command, openings, data):
    records = word_probes.main(command)
    assert word_probes.main(command) == records and len(openings) == 1
    file = data / "eng.testa.gz"
    whole = file.read_bytes()
    file.write_bytes(gzip.compress(gzip.decompress(whole) + b"\n\nthe DT I-NP O\n"))
    assert word_probes.main(command)[0].counts["test_sentences"] == 21, "other texts are another question"
    file.write_bytes(whole)
    other = word_probes.main([*command, "--seed", "1", "--steps", "3"])
    assert other[0].metrics != records[0].metrics


def test_causal_control_has_read_the_probed_word(command):
    command = [*command, "--reading", "causal", "--steps", "300"]
    records = word_probes.main(command)
    assert {record.settings["shift"] for record in records} == {"same"}
    assert records[2].metrics["accuracy"] > 90, "a word alone tells its part of speech"
    blind = word_probes.main([*command, "--shift", "next"])
    assert blind[2].metrics["accuracy"] < 60, "what stands before a random word does not"


def test_encoders_and_decoders_can_share_one_command(command, checkpoint, tmp_path, openings, capsys):
    save_bert(tmp_path / "bert")
    command.insert(2, f"bert={tmp_path / 'bert'}")
    command.insert(3, f"again={checkpoint}")
    records = word_probes.main(command)
    assert openings == ["bidirectional", "bidirectional", "encoder"]
    assert [(record.system, record.settings["reading"], record.settings["shift"]) for record in records[::3]] == [
        ("m", "bidirectional", "next"),
        ("again", "bidirectional", "next"),
        ("bert", "encoder", "same"),
    ]
    assert records[0].metrics == records[3].metrics
    assert records[8].metrics["accuracy"] > 60, "far above a guess among six"
    table = capsys.readouterr().out.split("words: OK")[-1]
    assert all(name in table for name in ("m ", "again ", "bert "))
