"""The golden script tells equal values from changed ones."""

import json

import pytest
import torch

from . import golden


def test_digest_depends_on_dtype_shape_and_bits():
    value = torch.zeros(2, 3)
    others = [value.half(), value.view(3, 2), value - 0.0, torch.full((2, 3), 1e-45), [value], {"a": value}, b"", "0"]
    digests = [golden.digest(other) for other in [value, *others]]
    assert digests[3] == digests[0], "0.0 - 0.0 is 0.0"
    assert len(set(digests)) == len(others)
    assert golden.digest(value.t()) == golden.digest(value.t().contiguous()), "strides are no part of a value"


def test_changed_value_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(golden, "training_values", lambda model_type, lora: iter([("loss", 1.5)]))
    record = tmp_path / "golden.json"
    golden.main(["record", str(record), "--family=llama"])
    golden.main(["check", str(record), "--family=llama"])
    kept = json.loads(record.read_text())
    assert {"tiny llama/infill/greedy", "tiny llama/saved/config.json"} <= kept["digests"].keys()

    monkeypatch.setattr(golden, "BLANKS", "A [blank] day.")
    with pytest.raises(SystemExit):
        golden.main(["check", str(record), "--family=llama"])
    captured = capsys.readouterr()
    changed = [line for line in captured.err.splitlines() if line.startswith("CHANGED")]
    assert changed == ["CHANGED  tiny llama/infill_blanks"]
    assert f"{len(kept['digests']) - 1} of {len(kept['digests'])}" in captured.out
