"""Test the drivers' command line and records: recorded cells are not measured again, incomplete lines are skipped."""

import json
import weakref
from dataclasses import replace

import pytest

from examples.evaluate.parts import driver, options
from examples.evaluate.parts.driver import Measurement, NotAvailableError, Unit
from examples.evaluate.parts.records import Record, RecordFile, identify, newest


def parse(*arguments, smoke=None, paper=None):
    parser = options.make_parser("A driver.", smoke=smoke or {}, paper=paper or {})
    parser.add_argument("--limit", type=int)
    return options.parse(parser, list(arguments))


@pytest.fixture
def given(tmp_path, checkpoint):
    return ["--model", f"m={checkpoint}", "--results", str(tmp_path / "results"), "--device", "cpu"]


class Counter:
    """Count the calls of a unit's measurement."""

    def __init__(self, **metrics):
        self.metrics, self.calls = metrics, 0

    def __call__(self, model):
        self.calls += 1
        return Measurement(metrics=self.metrics, counts={"texts": 3})


def test_preset_fills_unset_options():
    sizes = {"smoke": {"limit": 3}, "paper": {"limit": None}}
    assert parse("--model", "x", "--preset", "smoke", **sizes).limit == 3
    assert parse("--model", "x", "--preset", "smoke", "--limit", "5", **sizes).limit == 5
    assert parse("--model", "x", **sizes).limit is None
    assert parse("--model", "some/where", "b=c").model == {"where": "some/where", "b": "c"}


def test_complaints_are_reported_together():
    with pytest.raises(ValueError, match="The arguments cannot be used") as raised:
        parse("--model", "a=x", "a=y", "=", "--device", "warp", "--data", "nowhere")
    assert all(value in str(raised.value) for value in ("'a' twice", "`--model` has '='", "'warp'", "'nowhere'"))


def test_resumed_run_appends_missing_records(tmp_path, given, capsys):
    args = parse(*given)
    one, broken = Counter(score=0.25), Counter(score=0.5)

    def fails(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        driver.run("table", args, [Unit("one", {"prompt": ""}, one), Unit("two", {}, fails)])
    records = driver.run("table", args, [Unit("one", {"prompt": ""}, one), Unit("two", {}, broken)])

    assert (one.calls, broken.calls) == (1, 1)
    assert [record.metrics for record in records] == [{"score": 0.25}, {"score": 0.5}]
    assert records == RecordFile(tmp_path / "results", "table").read()
    first = records[0]
    assert first.settings == {"prompt": "", "dtype": "float32", "preset": "paper"}
    assert first.model["name"] == "tiny" and first.model["weights"]
    assert first.versions["torch"] and first.time and first.counts == {"texts": 3}
    out = capsys.readouterr().out
    assert "0.2500" in out and out.splitlines()[-1].startswith("table: OK (1 models, 2 cells each")

    driver.run("table", parse(*given, "--again"), [Unit("one", {"prompt": ""}, one)])
    assert one.calls == 2
    assert len(RecordFile(tmp_path / "results", "table").read()) == 3


def test_changed_settings_or_weights_are_measured_again(tmp_path, given, checkpoint, tiny_model):
    args = parse(*given)
    unit = Counter(score=1.0)
    driver.run("table", args, [Unit("one", {"prompt": "a"}, unit)])
    driver.run("table", args, [Unit("one", {"prompt": "b"}, unit)])
    tiny_model.lm_head.weight.data += 1
    tiny_model.save_pretrained(checkpoint)
    driver.run("table", args, [Unit("one", {"prompt": "b"}, unit)])
    assert unit.calls == 3
    records = RecordFile(tmp_path / "results", "table").read()
    assert len(records) == 3
    assert newest(records) == records[-1:]
    smoke = parse(*given, "--preset", "smoke")
    driver.run("table", smoke, [Unit("one", {"prompt": "b"}, unit)])
    for _ in range(2):
        driver.run("table", args, [Unit("one", {"prompt": "b"}, unit)])
    found = RecordFile(tmp_path / "results", "table").read()
    assert unit.calls == 4 and len(found) == 5, "found on record, and written after the trial's, once"
    assert newest(found) == records[-1:]


def test_no_model_is_measured_if_one_is_missing(tmp_path, checkpoint):
    unit = Counter(score=1.0)
    args = parse("--model", f"m={checkpoint}", "--model", "b=./nowhere", "c=./neither", "--device", "cpu")
    args.results = tmp_path
    with pytest.raises(ValueError, match=r"`--model` b: './nowhere'.*\n.*`--model` c: "):
        driver.run("table", args, [Unit("one", {}, unit)])
    assert unit.calls == 0


def test_only_one_model_is_loaded_at_a_time(tmp_path, checkpoint):
    class Opened:
        pass

    held = []

    def open_model(path, args):
        assert [one for one in held if one() is not None] == []
        model = Opened()
        held.append(weakref.ref(model))
        return model

    args = parse("--model", f"a={checkpoint}", f"b={checkpoint}", "--results", str(tmp_path), "--device", "cpu")
    driver.run("table", args, [Unit("one", {}, Counter(score=1.0))], open_model=open_model)
    assert len(held) == 2


def test_unavailable_data_is_recorded_and_retried(tmp_path, given, capsys):
    args = parse(*given)

    def missing(model):
        raise NotAvailableError("no network")

    (record,) = driver.run("table", args, [Unit("one", {}, missing)])
    assert (record.unavailable, record.metrics) == ("no network", {})
    out = capsys.readouterr().out
    assert "m, one: not available here: no network" in out and "OK" not in out
    given = "table: FAILED (nothing measured; not available: one; looked for in the Hub, since `--data` was left out)"
    assert out.splitlines()[-1] == given
    driver.run("table", args, [Unit("one", {}, missing)])
    assert len(RecordFile(tmp_path / "results", "table").read()) == 1, "the same reason is no news"
    (record,) = driver.run("table", args, [Unit("one", {}, Counter(score=2.0))])
    assert record.metrics == {"score": 2.0} and record.unavailable is None
    capsys.readouterr()
    driver.run("table", args, [Unit("one", {}, Counter(score=2.0)), Unit("two", {}, missing)])
    assert "table: OK (1 models, 2 cells each, 1 not available; " in capsys.readouterr().out


def test_incomplete_line_is_skipped_and_truncated(tmp_path):
    file = RecordFile(tmp_path, "table")
    record = Record(table="table", system="s", unit="u", settings={}, model={"name": "m"}, metrics={"score": 1.0})
    file.append(record)
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="Line 2 .* was not written to its end"):
        assert file.read() == [record]
    file.append(record)
    with pytest.warns(UserWarning, match="Line 2"):
        assert file.read() == [record, record]
    file.path.write_text("[" * 100_000 + "\n")
    with pytest.warns(UserWarning, match="Line 1"):
        assert file.read() == []
    odd = replace(record, system="\ud800")
    file.append(odd)
    with pytest.warns(UserWarning, match="Line 1"):
        assert file.read() == [odd]
    file.path.write_text(json.dumps({"what": 1}) + "\n")
    with pytest.raises(ValueError, match="is not a record"):
        file.read()


def test_identity_of_a_model_includes_its_weights_and_base(tmp_path, checkpoint, tiny_model):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(checkpoint)}))
    before = identify(str(adapter))
    assert before["name"] == "adapter"
    tiny_model.lm_head.weight.data += 1
    tiny_model.save_pretrained(checkpoint)
    assert identify(str(adapter))["weights"] != before["weights"]
    with pytest.raises(ValueError, match="directory here"):
        identify("no-such/model")
