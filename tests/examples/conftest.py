"""Save models of several kinds and families."""

import shutil

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from modeling_magnet import AutoMagnetForCausalLM

from ..modeling_magnet.test_families_magnet import make_config
from .doctor_runs import BOUND, FAMILY_NAMES


@pytest.fixture(scope="session")
def doctor_models(tiny_tokenizer, tmp_path_factory):
    """Return folders by family and kind."""
    made = {}
    for family in FAMILY_NAMES:
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(make_config(family)).save_pretrained(folder / "plain")
        tiny_tokenizer.save_pretrained(str(folder / "plain"))
        AutoMagnetForCausalLM.from_pretrained(folder / "plain").save_pretrained(folder / "saved")
        for base, names in (("saved", ("adapter", "bound")), ("plain", ("adapter over plain",))):
            model = AutoMagnetForCausalLM.from_pretrained(folder / base)
            model.add_adapter(
                LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False)
            )
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
