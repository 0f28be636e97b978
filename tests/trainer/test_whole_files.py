"""JSONL logs keep rows with any text, and raise for damaged rows."""

from pathlib import Path

import pytest

from trainer.whole_files import append_rows, resume_rows


def test_rows_survive_any_characters(tmp_path: Path) -> None:
    rows = [{"anchor": text} for text in ('"quoted"', "a\nb\r\u2028c", "日本\U0001f600", "")]
    assert resume_rows(tmp_path / "a.jsonl", settings={"shape": (1, 2)}) == []
    append_rows(tmp_path / "a.jsonl", rows[:2])
    append_rows(tmp_path / "a.jsonl", rows[2:])
    assert resume_rows(str(tmp_path / "a.jsonl"), settings={"shape": (1, 2)}) == rows


def test_rows_and_settings_may_hold_any_text(tmp_path: Path) -> None:
    path, wanted = tmp_path / "rows.jsonl", {"name": "\ud800 é"}
    assert resume_rows(path, settings=wanted) == []
    rows = [{"text": "\udc80"}, {"text": "\u2028 é"}]
    append_rows(path, rows)
    assert resume_rows(path, settings=wanted) == rows
    assert "é".encode() in path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", "[1]\n", "Line 1 of .*rows.jsonl' is list, not an object"),
        ("rows.jsonl", "[" * 100_000 + "\n", "Line 1 of .*rows.jsonl' is not JSON .*nested too deeply"),
        ("rows.jsonl.settings.json", "[]", "settings.json' is list, not an object"),
        ("rows.jsonl.settings.json", "{", "settings.json' is not JSON .*Expecting property name"),
        ("rows.jsonl.settings.json", "[" * 100_000, "settings.json' is not JSON .*nested too deeply"),
    ],
)
def test_damaged_rows_and_settings_raise(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    resume_rows(path, settings={"a": 1})
    append_rows(path, [{"b": 2}])
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        resume_rows(path, settings={"a": 1})
