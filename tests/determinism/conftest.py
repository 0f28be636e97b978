"""Two interpreters and what commands read, once for all tests of a worker."""

import pytest

from .interpreters import Interpreter


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
    from .inputs import write_inputs  # which imports lm-eval; most tests of this folder have no need of it

    return write_inputs(tmp_path_factory.mktemp("inputs"), _tiny_weights, tiny_tokenizer)
