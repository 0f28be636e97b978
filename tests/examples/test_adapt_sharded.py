"""Compare the checkpoints of `adapt.py` in two processes with sharded weights and in one process."""

import json

import pytest
import torch

from examples import adapt
from modeling_magnet import AutoMagnetForCausalLM

from ..trainer.processes import call_together
from ..trainer.test_distributed import FSDP2, ZERO

TEXTS = ["the old dog ran", "a girl sat by the tree and ate", "cat"]
CHANGES = {
    "full": ["--lora_r", "0"],
    "merged": ["--lora_r", "2"],
    "adapter": ["--lora_r", "2", "--adapter_modes", "bidirectional", "infill"],
    "head": ["--lora_r", "2", "--contrastive_head", "keep"],
}


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        pytest.param(FSDP2, changes, marks=pytest.mark.long if name == "adapter" else pytest.mark.nightly)
        for name, changes in CHANGES.items()
    ]
    + [pytest.param(ZERO[1], CHANGES[name], marks=pytest.mark.nightly) for name in ("full", "head")],
    ids=[*CHANGES, "zero3-full", "zero3-head"],
)
def test_two_sharded_processes_save_what_one_process_saves(tmp_path, plain_llama, options, config, changes):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("first\tsecond\n" + "".join(f"the dog ran {n}\tthe dog sat then {n}\n" for n in range(20)))
    # Plain gradient descent without dropout, which each process draws separately.
    plain = ["--optim=sgd", "--max_grad_norm=0", "--view_dropout=0", f"--pairs={pairs}"]
    arguments = [*options, *plain, *changes]
    (alone := tmp_path / "alone").mkdir()
    adapt.main([*arguments, f"--output_dir={alone}"])
    halves = ["--per_device_train_batch_size=2", "--contrastive_batch_size=2", "--ddp_backend=gloo"]
    (together := tmp_path / "together").mkdir()
    exits = call_together(2, adapt.main, ([*arguments, f"--output_dir={together}", *halves],), config=config)
    assert exits == [0, 0]
    assert json.loads((together / "adapt.json").read_text())["processes"] == 2
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.iterdir()}
    expected, found = (AutoMagnetForCausalLM.from_pretrained(folder).eval() for folder in (alone, together))
    assert found.config.magnet == expected.config.magnet
    for text in TEXTS:
        torch.testing.assert_close(
            torch.as_tensor(found.encode(text)), torch.as_tensor(expected.encode(text)), atol=1e-4, rtol=1e-4
        )
    base = AutoMagnetForCausalLM.from_pretrained(plain_llama, mask_token="_").eval()
    assert abs(torch.as_tensor(base.encode(TEXTS[1])) - torch.as_tensor(expected.encode(TEXTS[1]))).max() > 1e-3
