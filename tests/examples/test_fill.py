"""Test filling one text in the terminal."""

import io
import math

from examples import fill
from examples.toy.model import open_model

TEXT = "The cat [blank] the mat. She [blank] it."


def run(capsys, *arguments):
    status = fill.main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_printed_fills_and_probabilities_equal_infill_blanks(checkpoint, capsys):
    sizes = ["--max_new_tokens", "2", "--num_return_sequences", "2"]
    status, out, err = run(capsys, TEXT, "--model_name_or_path", str(checkpoint), *sizes)
    assert (status, err) == (0, "")
    expected = open_model(str(checkpoint)).infill_blanks(
        TEXT, max_new_tokens=2, num_return_sequences=2, return_dict_in_generate=True
    )
    lines = out.splitlines()
    assert lines[0].startswith("Filling with tiny, ")
    answers = [line for line in lines if line.startswith("blank ")]
    fills = [(number, one) for number, many in enumerate(expected.fills[0], start=1) for one in many]
    for line, (number, one) in zip(answers, fills, strict=True):
        share, each = (100 * math.exp(value) for value in (one.logprob, one.mean_logprob))
        figures = f"{share:5.1f} %" if share >= 0.05 else f"{share:.2g} %, {each:.1f} % a token"
        assert line == f"blank {number}: {figures}  {' '.join(one.text.split())}"
    assert "0.0 %" not in out
    first, second = (" ".join(many[0].text.split()) for many in expected.fills[0])
    (both,) = (line for line in lines if line.startswith("from both sides:"))
    assert f"<{first}>" in both and f"<{second}>" in both and both.endswith(" it.")
    assert sum(line.startswith("from the left only:") for line in lines) == 1


def test_standard_input_is_read_and_a_bad_line_does_not_stop_it(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat [blank] mat.\nno blank here\n\nShe [blank].\n"))
    status, out, err = run(capsys, "--model", str(checkpoint), "--max_new_tokens", "1")
    assert status == 1
    assert out.count("from both sides:") == 2
    assert err.startswith("error: ") and "blank" in err and len(err.splitlines()) == 1


def test_unadapted_decoder_is_reported(checkpoint, stories260k, capsys):
    _, out, _ = run(capsys, "The cat [blank] mat.", "--model", str(stories260k), "--max_new_tokens", "1")
    (note,) = (line for line in out.splitlines() if line.startswith("note: "))
    assert "was never adapted by MAGNET (config.json has no `magnet` block)" in note and "adapt.py" in note
    _, out, _ = run(capsys, "The cat [blank] mat.", "--model", str(checkpoint), "--max_new_tokens", "1")
    assert "note: " not in out
