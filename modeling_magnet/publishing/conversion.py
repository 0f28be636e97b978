"""Convert a GGUF file to a checkpoint of the stock class in float32, which opens in seconds.

python -m modeling_magnet.publishing.conversion FILE.gguf DIRECTORY
"""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ..bases.gguf import config_values
from ..families_magnet import AutoMagnetForCausalLM
from .writing import written_aside


def convert(file: Path, target: Path) -> None:
    """Write the model of the GGUF file `file` as a checkpoint to the directory `target`, atomically."""
    opened = AutoMagnetForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    with torch.device("meta"):  # the opened weights are assigned below
        config = AutoConfig.for_model(**config_values(file))
        stock = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.float32)
    stock.load_state_dict(opened.state_dict(), assign=True)
    stock.tie_weights()
    stock.generation_config = opened.generation_config
    with written_aside(target) as directory:
        stock.save_pretrained(directory)
        opened.tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:]))
