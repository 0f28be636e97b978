"""A GGUF file as an ordinary checkpoint of the stock class, which opens in seconds: float32 safetensors and tokenizer.

A process of its own writes it: where weights are shared out over processes, what one of them loads is not whole.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from .gguf import config_values


def convert_apart(file: Path, target: Path) -> None:
    """Call `convert` in another process.

    Args:
        file (`Path`): The GGUF file.
        target (`Path`): The directory of the checkpoint.

    Raises:
        OSError: the conversion failed; it says why.
    """
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", __name__, str(file.resolve()), str(target.resolve())]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it was killed, perhaps for want of memory"]
        raise OSError(f"{str(file)!r} could not be converted to safetensors: {lines[-1]}")


def convert(file: Path, target: Path) -> None:
    """Write the model of a GGUF file as a checkpoint, whole or not at all.

    Args:
        file (`Path`): The GGUF file.
        target (`Path`): The directory of the checkpoint.

    Raises:
        ValueError, OSError: the file cannot be read, or the checkpoint cannot be written.
    """
    # Not at the top: these modules import this package.
    from modeling_magnet.families_magnet import AutoMagnetForCausalLM
    from modeling_magnet.publishing.writing import written_aside

    opened = AutoMagnetForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    with torch.device("meta"):  # the weights of the other model take their places
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
