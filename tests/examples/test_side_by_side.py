"""Test the side-by-side output: the user's or drawn texts, the output of every system, recorded once."""

import json

import pytest

from examples.evaluate.parts.continuing import continue_texts
from examples.evaluate.parts.fill_systems import fill_systems, first_sentence
from examples.evaluate.parts.prompted_infilling import PromptedInfiller
from examples.evaluate.parts.records import RecordFile
from examples.evaluate.side_by_side import main
from modeling_magnet import AutoMagnetForCausalLM

from .evaluation_files import write_story_cloze, write_wikitext

OWN = [
    {"prefix": "Tom fell.", "suffix": "Mum came.", "title": "A fall"},
    {"prefix": "a b c"},
    {"prefix": "She ate the apple. ", "suffix": " It was good."},
]


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, OWN)) + "\n\n")
    return file


@pytest.fixture
def ask(tmp_path, tiny_model):
    """Return the arguments of a small run."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_story_cloze(folder)
    write_wikitext(folder)
    tiny_model.config.max_position_embeddings = 2048  # prompts are long in bytes
    for name in ("base", "magnet"):
        tiny_model.lm_head.weight.data = tiny_model.lm_head.weight.data.roll(1, 0)  # another token each time
        tiny_model.save_pretrained(tmp_path / name)
    return [
        "--model", f"base={tmp_path / 'base'}", f"MAGNET={tmp_path / 'magnet'}",
        "--data", str(folder), "--results", str(tmp_path / "results"),
        "--preset", "smoke", "--shots", "1", "--max_new_tokens", "6", "--continuation_tokens", "5", "--device", "cpu",
    ]  # fmt: skip


def by_cell(records):
    return {(record.system, record.unit): record for record in records}


def test_user_texts_are_filled_and_continued_as_by_each_system_separately(ask, own, tmp_path, capsys):
    records = main([*ask, "--stories", str(own)])
    cells = by_cell(records)
    filling = [system.name for system in fill_systems(shots=1)]
    assert list(cells) == [
        *[(name, "infilling") for name in filling[:-1]], ("base", "continuation"),
        ("MAGNET", "infilling"), ("MAGNET", "continuation"),
    ]  # fmt: skip
    base, magnet = (AutoMagnetForCausalLM.from_pretrained(tmp_path / name).eval() for name in ("base", "magnet"))
    blanks = [("Tom fell.", " Mum came."), ("She ate the apple.", " It was good.")]
    for name, expected in {
        "MAGNET": magnet.infill(*zip(*blanks, strict=True), max_new_tokens=6, stop_at_sentence_end=True),
        "unidirectional": PromptedInfiller(base, base.tokenizer).infill(
            *(list(side) for side in zip(*blanks, strict=True)), max_new_tokens=6
        ),
    }.items():
        assert cells[name, "infilling"].samples == [
            {"title": title, "prefix": prefix, "fill": first_sentence(text), "suffix": suffix.strip()}
            for title, (prefix, suffix), text in zip(["A fall", "Line 3"], blanks, expected, strict=True)
        ]
    for name, model in (("base", base), ("MAGNET", magnet)):
        (expected,) = continue_texts(model, ["a b c"], max_new_tokens=5)
        assert cells[name, "continuation"].samples == [
            {"title": "Line 2", "prefix": "a b c", "continuation": expected.text}
        ]
    assert cells["base", "continuation"].samples != cells["MAGNET", "continuation"].samples
    out = capsys.readouterr().out
    assert "infilling, A fall: Tom fell. [...] Mum came." in out and "continuation, Line 2: a b c [...]\n" in out
    assert out.splitlines()[-1].startswith("side_by_side: OK (2 blanks, 1 beginnings;")

    again = main([*ask, "--stories", str(own)])  # nothing is written twice
    assert again == records == RecordFile(tmp_path / "results", "side_by_side").read()


def test_overlong_text_is_recorded_as_unavailable(ask, own, tmp_path, capsys):
    own.write_text(json.dumps({"prefix": "a " * 1500}) + "\n" + json.dumps({"prefix": "b " * 2048, "suffix": "c"}))
    cells = by_cell(main([*ask, "--stories", str(own)]))
    assert "the model 256 positions" in cells["base", "continuation"].unavailable
    assert "exceeds the model's context by" in cells["zero-shot, blank", "infilling"].unavailable
    assert cells["MAGNET", "infilling"].unavailable
    assert "base, continuation: not available here:" in capsys.readouterr().out
