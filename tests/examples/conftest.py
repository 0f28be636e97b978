"""Provide saved models: a plain Llama to adapt, and several kinds and families for the doctor."""

import shutil

import pytest

from modeling_magnet import AutoMagnetForCausalLM

from ..adapters import add_lora
from ..modeling_magnet.test_families_magnet import write_decoder
from .doctor_runs import BOUND, FAMILY_NAMES
from .tiny_run import save_plain_llama, tiny_options


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Isolate the data set cache of each test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def plain_llama(tmp_path, tiny_tokenizer):
    """Return the folder of a stock Llama."""
    return save_plain_llama(tmp_path / "base", tiny_tokenizer)


@pytest.fixture
def options(tmp_path, plain_llama):
    """Return the options of a run of `adapt.py`, to `tmp_path / "run"`; later options override them."""
    return tiny_options(tmp_path, model=plain_llama)


@pytest.fixture(scope="session")
def doctor_models(tiny_tokenizer, tmp_path_factory):
    """Return folders by family and kind."""
    made = {}
    for family in FAMILY_NAMES:
        folder = tmp_path_factory.mktemp(family)
        write_decoder(folder / "plain", family, tiny_tokenizer)
        AutoMagnetForCausalLM.from_pretrained(folder / "plain").save_pretrained(folder / "saved")
        for base, names in (("saved", ("adapter", "bound")), ("plain", ("adapter over plain",))):
            model = add_lora(AutoMagnetForCausalLM.from_pretrained(folder / base), r=2)
            for name in names:
                model.set_adapter_modes(BOUND if name == "bound" else None)
                model.save_pretrained(folder / name)
        made[family] = folder
    return made


@pytest.fixture
def saved(doctor_models, tmp_path):
    """Return a checkpoint that a test may break."""
    shutil.copytree(doctor_models["llama"] / "saved", tmp_path / "saved")
    return tmp_path / "saved"
