"""Test the choice of a reading, and refusals before weights are read."""

import json

import pytest
from transformers import BertConfig

from examples.evaluate.parts.options import make_parser, parse
from examples.evaluate.parts.reading_options import add_reading_options, by_reading, default_reading


def groups(*arguments, tasks=("STS",)):
    parser = make_parser("A driver.", smoke={}, paper={})
    add_reading_options(parser)
    return by_reading(parse(parser, ["--device", "cpu", *arguments]), tasks=tasks)


@pytest.fixture
def folders(tmp_path, tiny_model, tiny_tokenizer):
    """Save one model of each kind with unreadable weights."""
    tiny_model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    plain = {key: value for key, value in config.items() if key not in ("magnet", "auto_map")}
    for name in ("plain", "embedder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(plain))
        tiny_tokenizer.save_pretrained(str(tmp_path / name))
    (tmp_path / "embedder" / "modules.json").write_text("[]")
    (tmp_path / "adapter").mkdir()
    base = {"base_model_name_or_path": str(tmp_path / "plain"), "peft_type": "LORA"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(base))
    BertConfig().save_pretrained(tmp_path / "bert")
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"not read")
    return tmp_path


def test_reading_defaults_to_the_type_of_the_directory(folders):
    kinds = ("saved", "adapter", "plain", "embedder", "bert")
    found = {name: default_reading(str(folders / name)) for name in kinds}
    assert found == dict(zip(kinds, ("magnet", "magnet", "causal", "encoder", "encoder"), strict=True))
    paths = [str(folders / name) for name in kinds]
    by_name = {group.reading: group for group in groups("--model", *paths)}
    assert {reading: list(group.model) for reading, group in by_name.items()} == {
        "magnet": ["saved", "adapter"],
        "causal": ["plain"],
        "encoder": ["embedder", "bert"],
    }
    assert [by_name[reading].pooling for reading in ("magnet", "causal", "encoder")] == ["last", "last", "own"]
    (group,) = groups("--model", *paths[:3], "--reading", "echo")
    assert (list(group.model), group.pooling) == (["saved", "adapter", "plain"], "mean")


def test_complaints_are_reported_together_before_weights_are_read(folders):
    given = ["--model", f"a={folders / 'saved'}", "b=./nowhere", f"c={folders / 'bert'}", f"d={folders / 'plain'}"]
    with pytest.raises(ValueError, match="The arguments cannot be used") as raised:
        groups(*given, "--pooling", "foo", "--prompt", "long " * 300)
    for complaint in (
        "`--model` a: BOS and the prompt 'long",
        "`--model` b: './nowhere' is ",
        "`--pooling` is 'foo'; the reading magnet has last, mean, weighted_mean.",
        "`--pooling` is 'foo'; the reading encoder has own, cls, mean.",
        "`--model` d: BOS and the prompt 'long",
    ):
        assert complaint in str(raised.value)
    with pytest.raises(ValueError, match="`--model` bert: .* a model of type 'bert'"):
        groups("--model", str(folders / "bert"), "--reading", "magnet")
