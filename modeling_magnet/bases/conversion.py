"""Convert a GGUF file to a checkpoint of the stock class in float32, which opens in seconds.

The conversion runs in a separate process, because a process that shards weights (DeepSpeed, FSDP) loads only a part.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from .gguf import config_values


def convert_apart(file: Path, target: Path) -> None:
    """Call `convert` in another process, and raise an `OSError` with its last line if it fails."""
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", __name__, str(file.resolve()), str(target.resolve())]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["the process was killed, possibly out of memory"]
        raise OSError(f"{str(file)!r} could not be converted to safetensors: {lines[-1]}")


def convert(file: Path, target: Path) -> None:
    """Write the model of the GGUF file `file` as a checkpoint to the directory `target`, atomically."""
    # These modules import this package.
    from modeling_magnet.families_magnet import AutoMagnetForCausalLM
    from modeling_magnet.publishing.writing import written_aside

    opened = AutoMagnetForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    with torch.device("meta"):  # the opened weights are assigned below
        config = AutoConfig.for_model(**config_values(file))
        stock = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.float32)
    stock.load_state_dict(opened.state_dict(), assign=True)
    stock.tie_weights()
    stock.generation_config = opened.generation_config
    with written_aside(target) as place:
        stock.save_pretrained(place)
        opened.tokenizer.save_pretrained(place)


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:]))
