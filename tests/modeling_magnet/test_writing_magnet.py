"""A save that is killed, cannot write or finds another checkpoint in its place."""

import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.merging_magnet import largest_differences

REPOSITORY = Path(__file__).resolve().parents[2]


def kills(folder, old, new, how, count):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.modeling_magnet.kill_saves", str(folder), old, new, how, str(count)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *outcomes, last = done.stdout.splitlines()
    assert last == "clean", "the next save removes what killed ones left behind"
    assert len(outcomes) == count
    return Counter(outcomes)


def test_fifty_kills_at_random_moments_never_leave_a_mixture(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "models")
    outcomes = kills(tmp_path / "models", "sharded", "plain", "seconds", 50)
    assert set(outcomes) <= {"old", "new", "refused"}, outcomes
    assert outcomes["old"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("sharded", "plain"), ("plain", "sharded"), ("plain", "adapter"), ("adapter", "plain")],
)
def test_kills_between_file_operations_never_leave_a_mixture(tiny_model, tmp_path, old, new):
    tiny_model.save_pretrained(tmp_path / "models")
    outcomes = kills(tmp_path / "models", old, new, "events", 30)
    assert set(outcomes) <= {"old", "new", "refused"}, outcomes
    assert outcomes["old"] and outcomes["refused"], "some of the moments lie among the moves"


def test_an_adapter_and_a_checkpoint_take_each_others_place(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "base")
    adapted = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    adapted.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False))
    target = tmp_path / "target"
    for _ in range(2):
        adapted.save_pretrained(target)
        assert not (target / "config.json").exists() and not (target / "model.safetensors").exists()
        assert max(largest_differences(adapted, MagnetLlamaForCausalLM.from_pretrained(target)).values()) == 0
        tiny_model.save_pretrained(target)
        assert not list(target.glob("adapter_*")) and not (target / "magnet_adapter.json").exists()
        assert max(largest_differences(tiny_model, MagnetLlamaForCausalLM.from_pretrained(target)).values()) == 0


def test_a_place_that_cannot_be_written_is_named(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/inner' could not be written .*name another directory"):
        tiny_model.save_pretrained(tmp_path / "file" / "inner")
    with pytest.raises(ValueError, match="'/proc/inner' could not be written"):
        tiny_model.save_pretrained("/proc/inner")


def test_a_disk_that_is_full_leaves_the_old_checkpoint(tiny_model, tmp_path):
    """A limit on the size of files stops the writing of weights in their middle, as a full disk does."""
    tiny_model.save_pretrained(tmp_path / "target")
    before = {file: file.read_bytes() for file in (tmp_path / "target").rglob("*") if file.is_file()}
    program = (
        "import resource, signal, sys\n"
        "from modeling_magnet import MagnetLlamaForCausalLM\n"
        "model = MagnetLlamaForCausalLM.from_pretrained(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    model.save_pretrained(sys.argv[1])\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "target")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "could not be written" in done.stdout and "GB that are free" in done.stdout
    assert {file: file.read_bytes() for file in (tmp_path / "target").rglob("*") if file.is_file()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["target"]


def test_a_full_file_system_is_named(tiny_model, tmp_path):
    """The same on a real file system of a megabyte, where one may be mounted."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here ({mounted.stderr.strip()})")
    try:
        (small / "filler").write_bytes(b"0" * 200_000)
        with pytest.raises(ValueError, match=r"could not be written .*[Nn]o space left"):
            tiny_model.save_pretrained(small / "target")
        assert [file.name for file in small.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(small)], check=True)
