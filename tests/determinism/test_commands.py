"""Every command twice, in two processes that hash strings differently: the same files to the byte, but for times."""

import pytest

from examples.benchmarks import scaling

from .artefacts import artefacts, fields
from .commands import COMMANDS, LEFT_OUT
from .inputs import write_inputs
from .interpreters import REPOSITORY, Interpreter

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(scope="session")
def interpreters(tmp_path_factory):
    """Two that share nothing: hashes of strings, random states, folders, caches."""
    one, other = (tmp_path_factory.mktemp(name) for name in ("one", "quite_another"))
    with (
        Interpreter(hash_seed=0, folder=one) as first,
        Interpreter(hash_seed=31337, folder=other / "deeper") as second,
    ):
        yield first, second


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, _tiny_weights, tiny_tokenizer):
    return write_inputs(tmp_path_factory.mktemp("inputs"), _tiny_weights, tiny_tokenizer)


def test_every_script_has_an_entry():
    scripts = {
        str(path.relative_to(EXAMPLES).with_suffix(""))
        for path in EXAMPLES.rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert len(scripts) > 25
    assert {command.script for command in COMMANDS} | set(LEFT_OUT) == scripts, "a new script needs an entry"
    assert len({command.label for command in COMMANDS}) == len(COMMANDS)


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.label)
def test_a_command_writes_the_same_bytes_twice(command, interpreters, inputs, request):
    folders, outputs = {"inputs": inputs}, []
    if "{stories260k}" in command.options:
        folders["stories260k"] = request.getfixturevalue("stories260k")
    for interpreter in interpreters:
        output = interpreter.folder / command.label.replace("/", "_").replace(" ", "_")
        output.mkdir()
        if command.script == "benchmarks/scaling":  # it writes into a page
            marks = "".join(f"<!-- {name} -->\nold\n<!-- / -->\n" for name in scaling.TABLES)
            (output / "page.md").write_text(marks)
        outputs.append(output)
        script = EXAMPLES / f"{command.script}.py"
        interpreter.begin(script, command.arguments(**folders, output=output), log=output.with_suffix(".log"))
    codes = [interpreter.end() for interpreter in interpreters]
    assert codes == [0, 0], outputs[0].with_suffix(".log").read_text()
    one, other = (artefacts(output, dropped=command.dropped, unread=command.unread) for output in outputs)
    assert list(one) == list(other)
    assert command.writes in one and any(one.values())
    assert [name for name in one if one[name] != other[name]] == []
    assert set(command.dropped) | set(command.unread) <= fields(outputs[0]), "what is left out is there"
