"""Every command twice, in two processes that hash strings differently: the same files to the byte, but for times."""

import pytest

from examples.benchmarks import scaling

from .artefacts import artefacts, fields
from .commands import COMMANDS
from .interpreters import REPOSITORY, Interpreter
from .inputs import write_inputs

# What `scaling.py` writes into.
PAGE = "".join(f"<!-- {name} -->\nold\n<!-- / -->\n" for name in scaling.TABLES)
EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(scope="session")
def interpreters(tmp_path_factory):
    first, second = (tmp_path_factory.mktemp(name) for name in ("one", "quite_another"))
    with (
        Interpreter(hash_seed=0, folder=first) as one,
        Interpreter(hash_seed=31337, folder=second / "deeper") as other,
    ):
        yield one, other


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, _tiny_weights, tiny_tokenizer):
    _tiny_weights.tokenizer = tiny_tokenizer
    return write_inputs(tmp_path_factory.mktemp("inputs"), _tiny_weights)


def test_every_script_has_an_entry():
    scripts = {
        str(path.relative_to(EXAMPLES).with_suffix(""))
        for path in EXAMPLES.rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert len(scripts) > 25
    assert {command.script for command in COMMANDS} == scripts


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.id)
def test_a_command_writes_the_same_bytes_twice(command, interpreters, inputs):
    outputs = []
    for interpreter in interpreters:
        output = interpreter.folder / command.id.replace("/", "_").replace(" ", "_")
        output.mkdir()
        if command.script == "benchmarks/scaling":
            (output / "page.md").write_text(PAGE)
        outputs.append(output)
        interpreter.begin(
            EXAMPLES / f"{command.script}.py", command.arguments(inputs, output), log=output.with_suffix(".log")
        )
    for interpreter, output in zip(interpreters, outputs, strict=True):
        assert interpreter.end() == 0, output.with_suffix(".log").read_text()
    one, other = (artefacts(output, dropped=command.dropped, unread=command.unread) for output in outputs)
    assert list(one) == list(other)
    assert one.get(command.writes)
    assert [name for name in one if one[name] != other[name]] == []
    assert set(command.dropped) <= fields(outputs[0]), "what is left out is there"
