"""Run every command in two processes with different hash seeds, and compare all files except for times."""

import pytest

from modeling_magnet import AutoMagnetForCausalLM

from .artefacts import artefacts, fields
from .commands import COMMANDS, LEFT_OUT, OFTEN, PRINTED
from .interpreters import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def run_twice(interpreters, script, arguments, *, name, printed=None):
    """Run a script in both interpreters and return the output folders; `printed` names a file for its output."""
    outputs, logs = [], []
    for interpreter in interpreters:
        outputs.append(interpreter.folder / name.replace("/", "_").replace(" ", "_"))
        outputs[-1].mkdir()
        logs.append(outputs[-1] / printed if printed else outputs[-1].with_suffix(".log"))
        interpreter.begin(script, arguments(outputs[-1]), log=logs[-1])
    codes = [interpreter.end() for interpreter in interpreters]
    assert codes == [0, 0], logs[0].read_text()
    return outputs


def check_same(outputs, *, dropped, unread, writes):
    """Check that both folders contain the same files with the same bytes, and that all dropped names exist."""
    one, other = (artefacts(output, dropped=dropped, unread=unread) for output in outputs)
    assert list(one) == list(other)
    assert writes in one and any(one.values())
    assert [name for name in one if one[name] != other[name]] == []
    assert {*dropped, *unread} <= fields(outputs[0]), "what is left out is there"


@pytest.fixture
def longer(tmp_path, stories260k):
    """Return the tokenizer and one layer of a real model with 2048 positions."""
    model = AutoMagnetForCausalLM.from_pretrained(stories260k)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    model.config.max_position_embeddings = model.tokenizer.model_max_length = 2048
    model.save_pretrained(tmp_path / "longer")
    return tmp_path / "longer"


def test_every_script_has_an_entry():
    scripts = {
        str(path.relative_to(EXAMPLES).with_suffix(""))
        for path in EXAMPLES.rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert len(scripts) > 20
    assert {command.script for command in COMMANDS} | set(LEFT_OUT) == scripts, "a new script needs an entry"
    labels = {command.label for command in COMMANDS}
    assert len(labels) == len(COMMANDS) and labels > OFTEN


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            command, id=command.label, marks=pytest.mark.long if command.label in OFTEN else pytest.mark.nightly
        )
        for command in COMMANDS
    ],
)
def test_commands_write_identical_bytes_twice(command, interpreters, inputs, request):
    folders = {"inputs": inputs}
    if "{longer}" in command.options:
        folders["longer"] = request.getfixturevalue("longer")
    outputs = run_twice(
        interpreters,
        EXAMPLES / f"{command.script}.py",
        lambda output: command.arguments(**folders, output=output),
        name=command.label,
        printed=PRINTED if command.writes == PRINTED else None,
    )
    check_same(outputs, dropped=command.dropped, unread=command.unread, writes=command.writes)


@pytest.mark.long
def test_library_calls_write_identical_bytes_twice(interpreters, inputs):
    given = [inputs / "magnet", inputs / "t5", inputs / "train.jsonl.xz"]
    outputs = run_twice(
        interpreters,
        REPOSITORY / "tests" / "determinism" / "library_calls.py",
        lambda output: [str(path) for path in (*given, output)],
        name="library",
    )
    # The training arguments contain the name of the folder.
    folder = "training_args.bin"
    check_same(outputs, dropped=[folder], unread=[folder], writes="adapter/adapter_config.json")
