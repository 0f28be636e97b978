"""A step of two checkouts in turns: here both are this one."""

from pathlib import Path

import pytest

from examples.benchmarks import checkout_step

from .tiny_run import save_plain_llama, write_corpus

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.parametrize("compiled", [[], ["--torch_compile"]], ids=["plain", "compiled"])
def test_both_checkouts_take_the_same_step(tmp_path, tiny_tokenizer, monkeypatch, capsys, compiled):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = save_plain_llama(tmp_path / "base", tiny_tokenizer)
    texts = write_corpus(tmp_path / "texts.jsonl.xz", num_texts=60, seed=0)
    options = ["--model", str(model), "--texts", str(texts), "--against", str(REPOSITORY), "--max_length", "64"]
    options += ["--dtype", "float32", "--rounds", "2", "--batch_size", "3", *compiled]
    report = checkout_step.main(options)
    assert capsys.readouterr().out.splitlines()[-1] == "checkout_step: OK"
    ours, theirs = report["steps"]["this"], report["steps"]["other"]
    assert len(ours) == len(theirs) == 2
    assert ours[0]["loss"] == (pytest.approx(theirs[0]["loss"], rel=0.01) if compiled else theirs[0]["loss"])
    assert 0 < report["this"]["of_the_floor"] < 1


def test_steps_that_differ_are_not_timed(tmp_path, monkeypatch):
    answers = iter([{"loss": 2.0, "gradient_norm": 1.0}, {"loss": 2.2, "gradient_norm": 1.0}])

    class Worker:
        stdin = type("Pipe", (), {"close": lambda self: None})()

        def wait(self) -> None:
            pass

    monkeypatch.setattr(checkout_step, "_start", lambda folder, options: Worker())
    monkeypatch.setattr(checkout_step, "_ask", lambda worker: next(answers))
    with pytest.raises(SystemExit, match="steps differ"):
        checkout_step.main(["--model", "m", "--texts", "t", "--against", str(tmp_path)])
