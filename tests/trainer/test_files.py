"""JSONL logs keep rows with any text, and raise for damaged rows."""

import pytest

from trainer.files import append_rows, resume_rows


def test_rows_and_settings_may_hold_any_text(tmp_path):
    path, wanted = tmp_path / "rows.jsonl", {"name": "\ud800 é"}
    assert resume_rows(path, settings=wanted) == []
    rows = [{"text": "\udc80"}, {"text": "\u2028 é"}]
    append_rows(path, rows)
    assert resume_rows(path, settings=wanted) == rows
    assert "é".encode() in path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", "[1]\n", "Line 1 .*rows.jsonl' is list"),
        ("rows.jsonl", "[" * 100_000 + "\n", "Line 1 .*rows.jsonl' .*nested too deeply"),
        ("rows.jsonl.settings.json", None, "'rows.jsonl.settings.json' .* is missing"),
        ("rows.jsonl.settings.json", "[]", "settings.json' is list, not an object"),
        ("rows.jsonl.settings.json", "{", "settings.json' .*Expecting property name"),
        ("rows.jsonl.settings.json", "[" * 100_000, "settings.json' .*nested too deeply"),
    ],
)
def test_damaged_rows_and_settings_raise(tmp_path, name, content, message):
    path = tmp_path / "rows.jsonl"
    resume_rows(path, settings={"a": 1})
    append_rows(path, [{"b": 2}])
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        resume_rows(path, settings={"a": 1})
