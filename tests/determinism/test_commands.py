"""Run every command in two processes with different hash seeds, and compare all files except for times."""

import pytest

from ..conftest import REPOSITORY
from .commands import COMMANDS, LEFT_OUT, OFTEN, PRINTED
from .comparing import check_same, run_twice

EXAMPLES = REPOSITORY / "examples"
MARKED = [
    pytest.param(one, id=one.label, marks=pytest.mark.long if one.label in OFTEN else pytest.mark.nightly)
    for one in COMMANDS
]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, _tiny_weights, tiny_tokenizer):
    from .inputs import write_inputs  # imports lm-eval, which most of these tests do not need

    return write_inputs(tmp_path_factory.mktemp("inputs"), _tiny_weights, tiny_tokenizer)


def test_every_script_has_an_entry():
    scripts = {
        str(path.relative_to(EXAMPLES).with_suffix(""))
        for path in EXAMPLES.rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert {command.script for command in COMMANDS} | set(LEFT_OUT) == scripts, "a new script needs an entry"
    assert OFTEN < {command.label for command in COMMANDS}


@pytest.mark.parametrize("command", MARKED)
def test_commands_write_identical_bytes_twice(command, inputs, tmp_path):
    printed = PRINTED if command.writes == PRINTED else None
    outputs = run_twice(tmp_path, EXAMPLES / f"{command.script}.py", command.options, printed=printed, inputs=inputs)
    check_same(outputs, writes=command.writes, dropped=command.dropped, unread=command.unread)


@pytest.mark.long
def test_library_computes_identical_bits_twice(tmp_path):
    options = "record {output}/golden.json --family=llama --family=gemma3_text"
    check_same(run_twice(tmp_path, REPOSITORY / "tests" / "golden.py", options), writes="golden.json")
