"""The base and data in the card of a run; invalid cards of a base do not stop a run."""

import json

import pytest

from trainer.model_card import describe_data, run_card

from .tiny import tiny_args, tiny_model, tiny_tokenizer


@pytest.fixture
def write(tmp_path):
    """Return a function that writes the card of a run on a base with this config and card."""

    def make(config, card):
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
        (tmp_path / "base" / "README.md").write_bytes(card)
        model = tiny_model()
        model.tokenizer = tiny_tokenizer()
        model.config._name_or_path = str(tmp_path / "base")
        return run_card(model, "mine", args=tiny_args(tmp_path / "run"), log_history=[])

    return make


@pytest.mark.parametrize(
    "card",
    [b"---\na: [\n---\n", b"---\n1: x\nlanguage: 5\n---\n", b"---\nlanguage: 5\nlicense: [a]\n---\n", b"\xff\xfe"],
    ids=["broken", "numbers", "other types", "no text"],
)
def test_broken_base_card_is_ignored(write, card):
    assert "adapted from `base`" in write({}, card)


@pytest.mark.parametrize(
    ("config", "card", "found"),
    [
        ({"_name_or_path": "google/gemma-3-270m"}, "", "google/gemma-3-270m"),
        ({}, "base_model: meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b"),
        ({}, "base_model:\n- meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b"),
        ({"_name_or_path": "outputs/mine"}, "", None),
        ({"_name_or_path": "/home/me/model"}, "base_model:\n- a/b\n- c/d", None),
        ({"_name_or_path": 3}, "base_model: 3", None),
    ],
    ids=["config", "card", "card-list", "path", "merge", "broken"],
)
def test_the_card_names_the_base_of_a_local_directory(write, tmp_path, config, card, found):
    text = write(config, f"---\nlicense: llama2\n{card}\n---\n".encode())
    assert f"adapted from `{found or 'base'}`" in text and "license: llama2" in text
    expected = f"| base model | base, a directory whose files name {found} |"
    assert (expected in text) == (found is not None)
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("named", "expected"),
    [("train*.xz", "2 files: train.xz, train2.xz"), ("data", "2 files: a.txt, b.txt"), ("train.xz", "train.xz")],
    ids=["glob", "folder", "file"],
)
def test_the_card_names_the_files_of_the_training_data(tmp_path, named, expected):
    (tmp_path / "data").mkdir()
    for name in ("train.xz", "train2.xz", "data/a.txt", "data/b.txt"):
        (tmp_path / name).touch()
    assert describe_data([str(tmp_path / named)]) == expected
