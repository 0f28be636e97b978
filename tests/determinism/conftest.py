"""Provide two interpreters and the inputs of the commands, once per worker."""

import pytest

from .interpreters import Interpreter


@pytest.fixture(scope="session")
def interpreters(tmp_path_factory):
    """Return two interpreters that share no hash seed, random state, folder or cache."""
    one, other = (tmp_path_factory.mktemp(name) for name in ("one", "quite_another"))
    with (
        Interpreter(hash_seed=0, folder=one) as first,
        Interpreter(hash_seed=31337, folder=other / "deeper") as second,
    ):
        yield first, second


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, _tiny_weights, tiny_tokenizer):
    from .inputs import write_inputs  # imports lm-eval, which most of these tests do not need

    return write_inputs(tmp_path_factory.mktemp("inputs"), _tiny_weights, tiny_tokenizer)
