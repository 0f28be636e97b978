"""Test what progress bars count and when they are shown."""

import re

import pytest
from transformers.utils import logging

from modeling_magnet.batching_magnet import PROGRESS_FROM_BATCHES

TEXTS = [f"The cat number {number} sat" for number in range(PROGRESS_FROM_BATCHES)]


def last_bar(capsys):
    """Return the name, the count, the total and the unit of the last progress bar."""
    drawn = re.findall(
        r"(\w+): 100%\|.*?\| (\d+)/(\d+) \[[\d:]+<[\d:]+, [^\]]*?([a-z]+)(?:/s)?\]", capsys.readouterr().err
    )
    return drawn[-1] if drawn else None


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 5},
        {"max_new_tokens": 5, "chunk_size": 2, "num_return_sequences": 2},
        {"max_new_tokens": 5, "stop_strings": ["a", "e", " "]},
    ],
    ids=["at once", "in chunks", "ended early"],
)
def test_the_bar_ends_at_the_tokens_of_all_spans(tiny_model, capsys, options):
    tiny_model.infill(TEXTS[:3], [" on the mat."] * 3, batch_size=2, show_progress_bar=True, **options)
    tokens = str(3 * 5 * options.get("num_return_sequences", 1))
    assert last_bar(capsys) == ("Filling", tokens, tokens, "token")


def test_bars_are_shown_from_a_number_of_batches(tiny_model, capsys):
    suffixes = [" on the mat."] * len(TEXTS)
    tiny_model.infill(TEXTS[1:], suffixes[1:], max_new_tokens=2, batch_size=1)
    tiny_model.score_infill(TEXTS, [[" there"]] * len(TEXTS), suffixes)
    assert last_bar(capsys) is None
    tiny_model.infill(TEXTS, suffixes, max_new_tokens=2, batch_size=1)
    assert last_bar(capsys) == ("Filling", "16", "16", "token")
    tiny_model.score_infill(TEXTS, [[" there", " here"]] * len(TEXTS), suffixes, batch_tokens=64)
    assert last_bar(capsys) == ("Scoring", "16", "16", "row")
    tiny_model.infill(TEXTS, suffixes, max_new_tokens=2, batch_size=1, show_progress_bar=False)
    assert last_bar(capsys) is None


def test_bars_disabled_in_transformers_are_hidden(tiny_model, capsys):
    suffixes = [" on the mat."] * len(TEXTS)
    shown = tiny_model.infill(TEXTS, suffixes, max_new_tokens=2, batch_size=1)
    assert logging.is_progress_bar_enabled() and last_bar(capsys) is not None
    logging.disable_progress_bar()
    try:
        assert tiny_model.infill(TEXTS, suffixes, max_new_tokens=2, batch_size=1) == shown
        tiny_model.score_infill(TEXTS, [[" there"]] * len(TEXTS), suffixes)
        tiny_model.encode(TEXTS, batch_size=1, show_progress_bar=True)
        tiny_model.encode_words("The cat sat. " * 10, max_length=9, show_progress_bar=True)
    finally:
        logging.enable_progress_bar()
    assert last_bar(capsys) is None
