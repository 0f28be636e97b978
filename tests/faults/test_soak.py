"""The soak's arithmetic, and that both of its halves run to their end."""

import json

import pytest

from tests.faults import soak


def test_the_slope_is_that_of_the_line_after_the_warm_up():
    samples = [[t / 10, 900.0 if t < 10 else 100 + 3 * t / 10, t] for t in range(100)]
    found = soak.slope(samples)
    assert found["slope_mb"] == pytest.approx(3) and found["standard_error_mb"] == pytest.approx(0, abs=1e-9)
    assert found["rise_mb"] == pytest.approx(3 * 8.1)
    assert found["done"] == 99


@pytest.mark.long
def test_both_halves_run(stories260k, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak, "SAMPLES", 10)
    soak.main(["--model", str(stories260k), "--minutes", "0.05", "--report", str(tmp_path / "calls.json")])
    soak.main(["--steps", "20", "--report", str(tmp_path / "steps.json")])
    assert capsys.readouterr().out.splitlines()[-1] == "soak: OK"
    for name in ("calls", "steps"):
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert report["done"] > 0 and 50 < report["mean_mb"] < 10_000


def test_calls_need_a_model():
    with pytest.raises(SystemExit):
        soak.main(["--minutes", "1"])
