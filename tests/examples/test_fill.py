"""One text of one's own, filled in the terminal."""

import io
import math

import pytest

from examples import fill
from examples.demo.infill import fill_text
from examples.demo.model import open_model

from ..scripts import run_script

TEXT = "The cat [blank] the mat. She [blank] it."


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "mine")
    return str(tmp_path / "mine")


def run(capsys, *arguments):
    status = fill.main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_it_prints_what_infill_blanks_finds_and_how_likely(checkpoint, capsys):
    status, out, err = run(capsys, TEXT, "--model", checkpoint, "--tokens", "2", "--answers", "2")
    assert (status, err) == (0, "")
    expected = open_model(checkpoint).infill_blanks(
        TEXT, max_new_tokens=2, num_return_sequences=2, return_dict_in_generate=True
    )
    lines = out.splitlines()
    assert lines[0].startswith("Filling with mine, ")
    answers = [line for line in lines if line.startswith("blank ")]
    for line, (number, answer) in zip(
        answers, [(n, one) for n, many in enumerate(expected.fills[0], 1) for one in many], strict=True
    ):
        share = 100 * math.exp(sum(answer.logprobs))
        assert line == f"blank {number}: {share:5.1f} %  {' '.join(answer.text.split())}"
    first, second = (" ".join(many[0].text.split()) for many in expected.fills[0])
    (both,) = (line for line in lines if line.startswith("from both sides:"))
    assert f"<{first}>" in both and f"<{second}>" in both and both.endswith(" it.")
    assert sum(line.startswith("from the left alone:") for line in lines) == 1


def test_the_model_chooses_the_length_where_none_is_given(checkpoint, capsys):
    _, out, _ = run(capsys, "The cat [blank] mat.", "--model", checkpoint, "--answers", "1")
    filled = fill_text(open_model(checkpoint), "The cat [blank] mat.", length=None, answers=1)
    assert fill.render(filled) in out


def test_lines_are_read_where_no_text_is_given_and_a_bad_one_stops_nothing(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat [blank] mat.\nno blank here\n\nShe [blank].\n"))
    status, out, err = run(capsys, "--model", checkpoint, "--tokens", "1")
    assert status == 1
    assert out.count("from both sides:") == 2
    assert err.startswith("error: ") and "blank" in err and len(err.splitlines()) == 1


def test_what_cannot_be_opened_is_one_line(tmp_path):
    code, out, err = run_script(fill, "a [blank]", "--model", str(tmp_path))
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and len(err.splitlines()) == 1
