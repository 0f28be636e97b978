"""Run the scripts on a base in a GGUF file: check it, fill with it, adapt it, and open the adapter over it."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples import adapt, doctor, fill
from modeling_magnet import AutoMagnetForCausalLM

from .tiny_run import tiny_options

pytest.importorskip("gguf", reason="GGUF files are read and written by the package gguf")

from tests.gguf_files import SHAPE, write_gguf

GGUF = "--gguf_file=tiny.gguf"


@pytest.fixture
def base(tmp_path, tiny_tokenizer):
    torch.manual_seed(0)
    place = tmp_path / "base"
    place.mkdir()
    write_gguf(LlamaForCausalLM(LlamaConfig(**SHAPE)), tiny_tokenizer, place / "tiny.gguf", quantized=True)
    return place


def test_adapter_trains_on_a_gguf_file_and_loads_over_it(base, tmp_path, capsys):
    options = tiny_options(tmp_path, model=base)
    adapt.main([*options, GGUF, "--adapter_modes", "causal", "bidirectional", "infill", "--bf16=true", "--lora_r=4"])
    run = tmp_path / "run"
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert json.loads((run / "magnet_adapter.json").read_text())["gguf_file"]["name"] == "tiny.gguf"
    model = AutoMagnetForCausalLM.from_pretrained(run)
    assert model.has_adapter and model.infill("the dog", " the cat.", max_new_tokens=2)
    for opened in ([f"--model={run}"], [f"--model={base}", GGUF]):
        assert fill.main(["the [blank] saw a cat.", *opened, "--max_new_tokens=1"]) == 0
        assert "from both sides" in capsys.readouterr().out


@pytest.mark.long
def test_doctor_accepts_a_gguf_file(base, capsys):
    assert doctor.main([f"--model={base}", GGUF, "--backends", "sdpa"]) == 0, capsys.readouterr().out
    assert "plain decoder, as MagnetLlamaForCausalLM" in capsys.readouterr().out
