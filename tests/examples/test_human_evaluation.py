"""Test the way from stories to records: fills, a form, answers and figures, with interrupted and invalid runs."""

import json

import pytest

pytest.importorskip("sklearn", reason="an optional extra: pip install .[eval]")

from examples.evaluate.human_evaluation import main
from examples.evaluate.parts.fill_systems import FillSystem
from examples.evaluate.parts.records import RecordFile, identify

from .evaluation_files import write_rocstories

SYSTEMS = ("unidirectional", "zero-shot, blank", "one-shot, prefix_suffix", "MAGNET", "other")


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    write_rocstories(tmp_path / "data", number=9)
    return tmp_path / "data"


@pytest.fixture
def models(tmp_path, tiny_model):
    """Save a base and two models that infill, with different weights."""
    tiny_model.config.max_position_embeddings = 2048  # prompts are long in bytes
    folders = {}
    for name in ("base", "MAGNET", "other"):
        tiny_model.model.norm.weight.data *= 1.5
        tiny_model.lm_head.weight.data.add_(0.1 * tiny_model.lm_head.weight.data.roll(len(folders), 0))
        folders[name] = str(tmp_path / name)
        tiny_model.save_pretrained(folders[name])
    return folders


def sample(models, data, output, *options):
    main([
        "sample", "--model", *(f"{name}={path}" for name, path in models.items()),
        "--data", str(data), "--preset", "smoke", "--limit", "5", "--shots", "1", "--max_new_tokens", "6",
        "--batch_size", "2", "--device", "cpu", "--output_dir", str(output), "--systems", *SYSTEMS, *options,
    ])  # fmt: skip
    return json.loads((output / "key.json").read_text())


def answer(key, folder, annotator, rule):
    """Answer by a rule instead of a person."""
    answers = {item: rule(owner) for item, owner in key["items"].items()}
    file = folder / f"answers_{annotator}.json"
    file.write_text(json.dumps({"form": key["form"], "annotator": annotator, "answers": answers}))
    return str(file)


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_sample_and_score_produce_records(models, data, tmp_path, capsys):
    output, results = tmp_path / "out", tmp_path / "results"
    key = sample(models, data, output)
    assert list(key["systems"]) == list(SYSTEMS) == list(key["fills"])
    assert key["systems"]["MAGNET"]["model"] == identify(models["MAGNET"])
    assert key["systems"]["zero-shot, blank"]["model"] == identify(models["base"])
    page = (output / "form.html").read_text()
    assert not any(name in page for name in ("MAGNET", "shot", "unidirectional", "other"))
    assert all(item in page for item in key["items"])

    # One annotator likes every fill of MAGNET, the other only its fills of the first three stories.
    files = [
        answer(key, output, "1", lambda owner: "MAGNET" in owner["systems"]),
        answer(key, output, "2", lambda owner: "MAGNET" in owner["systems"] and owner["story"] < 3),
    ]
    ask = ["score", "--key", str(output / "key.json"), "--answers", *files, "--results", str(results)]
    records = main(ask)
    by_system = {record.system: record for record in records}
    magnet = by_system["MAGNET"]
    assert (magnet.table, magnet.unit, magnet.counts) == ("people", "ROCStories", {"stories": 5, "annotators": 2})
    assert magnet.metrics["appropriate"] == pytest.approx(80)
    assert magnet.metrics["interval_low"] < 80 < magnet.metrics["interval_high"]
    assert magnet.metrics["kappa"] == pytest.approx(0)  # one of them always says yes
    shared = sum({"MAGNET", "other"} <= set(owner["systems"]) for owner in key["items"].values())
    assert (by_system["other"].metrics["appropriate"] == 0) == (shared == 0)
    assert magnet.model == identify(models["MAGNET"]) and magnet.settings["stop_at_sentence_end"]
    assert "pairs of annotators: 0." in capsys.readouterr().out

    assert main(ask) == records == RecordFile(results, "people").read()  # and nothing was appended
    main([*ask[:4], files[0], *ask[6:]])
    assert len(RecordFile(results, "people").read()) == 2 * len(SYSTEMS)
    assert "pairs of annotators: -" in capsys.readouterr().out


def test_resumed_sample_writes_identical_bytes(models, data, tmp_path, monkeypatch):
    calls, dies_at = [], None
    fill = FillSystem.fill

    def counted(self, model, blanks, **options):
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        calls.append((self.name, blanks[0], len(blanks)))
        return fill(self, model, blanks, **options)

    monkeypatch.setattr(FillSystem, "fill", counted)
    sample(models, data, tmp_path / "whole")
    whole, all_calls = files_of(tmp_path / "whole"), sorted(calls)
    assert len(all_calls) == 3 * len(SYSTEMS)
    calls, dies_at, cut = [], 7, tmp_path / "cut"  # in the third system, after its first batch
    with pytest.raises(KeyboardInterrupt):
        sample(models, data, cut)
    dies_at = None
    assert not (cut / "form.html").exists() and not (cut / "key.json").exists()
    with open(cut / "fills" / "one-shot, prefix_suffix.jsonl", "ab") as file:
        file.write(b'{"fill": "half a l')
    sample(models, data, cut)
    assert files_of(cut) == whole
    assert sorted(calls) == all_calls  # no duplicates


def test_form_in_use_is_not_overwritten(models, data, tmp_path):
    output = tmp_path / "out"
    sample(models, data, output)
    before = files_of(output)
    with pytest.raises(ValueError, match="form of another run"):
        sample(models, data, output, "--annotators", "3")
    assert files_of(output) == before
    for name in ("form.html", "key.json"):
        (output / name).unlink()
    with pytest.raises(ValueError, match="max_new_tokens was 6.*7"):
        sample(models, data, output, "--max_new_tokens", "7")
    sample(models, data, output, "--annotators", "3")
    assert all(file.read_bytes() == before[f"fills/{file.name}"] for file in (output / "fills").iterdir())
