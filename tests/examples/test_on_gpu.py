"""Run the GPU command on a CPU with tiny weights: every benchmark ends or reports why it did not run."""

import json
import sys

import pytest

from examples.benchmarks import on_gpu

pytest.importorskip("sentence_transformers", reason="an optional extra: pip install .[eval]")


def test_figures_are_extracted_from_reports():
    seconds = {name + end: [2.0, 1.0, 9.0] for name in (on_gpu.JOINT, on_gpu.ROWS) for end in ("", on_gpu.COMPILED)}
    training = {
        "seconds": seconds,
        "floor_flop": dict.fromkeys(seconds, 6.0),
        "matrix_flop_per_second": 4.0,
        "ratios": {f"{on_gpu.MNTP} over {on_gpu.JOINT}": 1.1},
    }
    share, a_step = 6 / 4 / 2, 3600 / (4200 * 2)
    figures = [bar.figure(training) for bar in on_gpu.TRAINING]
    assert figures == pytest.approx([share, share, share, share, a_step, a_step, 1.1])
    encoding = {"seconds": {"encode": [2.0]}, "floor_flop": 6.0, "matrix_flop_per_second": 4.0}
    encoding |= {"ratio_default": 1.5, "ratio_best": 1.2}
    assert [bar.figure(encoding) for bar in on_gpu.ENCODING] == [0.75, 1.5, 1.2]
    decoding = {"ratios": {"share of the copying rate": {"median": 0.7}}}
    assert [bar.figure(decoding) for bar in on_gpu.DECODING] == [0.7]


@pytest.mark.nightly  # every benchmark in a separate process: minutes
def test_every_bar_reports_a_figure_or_that_it_did_not_run(tmp_path, wiki_7m, monkeypatch, capfd):
    monkeypatch.setitem(on_gpu.SHAPES, "7b", (16, 24, 2, 2, 2))
    texts, pairs = tmp_path / "texts.txt", tmp_path / "pairs.tsv"
    texts.write_text("\n".join(f"The cat number {n} sat on the mat. Then it slept for a while." for n in range(400)))
    pairs.write_text("first\tsecond\n" + "".join(f"the old dog ran {n}\tthe dog sat then {n}\n" for n in range(200)))
    options = ["--model", str(wiki_7m), "--texts", str(texts), "--pairs", str(pairs), "--results", str(tmp_path)]
    options += ["--device", "cpu", "--batch_size", "2", "--limit", "12", "--seconds", "3000"]
    options += ["--torch_compile_backend", "eager"]
    table = on_gpu.main(options)
    output = capfd.readouterr().out
    assert output.splitlines()[-1] == "on_gpu: OK (gpu_all.json)"
    figures = {row["what"]: row["figure"] for row in table}
    assert all(figure > 0 for figure in figures.values())
    assert json.loads((tmp_path / "gpu_all.json").read_text())["table"] == table
    assert len(figures) == len(table)


def test_failed_or_slow_benchmark_has_no_figure(tmp_path, capsys):
    kept = tmp_path / "report.json"
    for call, seconds, said in (
        (["sleep", "60"], -5, "no time was left"),
        (["sleep", "60"], 0.2, "was ended after 0 s"),
        ([sys.executable, "-c", "raise SystemExit('why it failed')"], 60, "why it failed"),
        (["true"], 60, "failed"),
    ):
        kept.write_text("{}")
        assert on_gpu.run(call, seconds=seconds, file=kept) is None
        assert said in capsys.readouterr().out
        assert not kept.exists(), "it would be taken for this run's"


def test_missing_required_figure_is_an_error(tmp_path, wiki_7m, monkeypatch, capsys):
    monkeypatch.setitem(on_gpu.SHAPES, "7b", (16, 24, 2, 2, 2))
    options = ["--model", str(wiki_7m), "--texts", "t", "--pairs", "p", "--results", str(tmp_path), "--device", "cpu"]
    with pytest.raises(SystemExit, match="There is no figure for: rows of MNTP and MSG"):
        on_gpu.main([*options, "--seconds", "0"])
    assert (tmp_path / "gpu_all.json").exists()
