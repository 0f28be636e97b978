"""A GGUF file as an ordinary checkpoint of the stock class, which opens in seconds: float32 safetensors and tokenizer.

A process of its own writes it: where weights are shared out over processes, what one of them loads is not whole.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

# Name and size of each file, written last: by it a checkpoint is known as whole without reading it.
CONTENTS = "contents.json"
_CODE = """
import sys
from pathlib import Path
from modeling_magnet.bases.conversion import convert
convert(*map(Path, sys.argv[1:]))
"""


def convert_apart(file: Path, target: Path) -> None:
    """Convert in another process.

    Args:
        file (`Path`): The GGUF file.
        target (`Path`): The directory of the checkpoint.

    Raises:
        OSError: the conversion failed; it says why.
    """
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-c", _CODE, str(file.resolve()), str(target.resolve())]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.split("\n") if done.returncode > 0 else []
        told = next((line for line in reversed(lines) if line.strip()), "it was killed, perhaps for want of memory")
        raise OSError(f"{str(file)!r} could not be converted to safetensors: {told}")


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
    from modeling_magnet.sources_magnet import gguf_values

    opened = AutoMagnetForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    with torch.device("meta"):  # the weights of the other model take their places
        config = AutoConfig.for_model(**gguf_values(file))
        stock = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.float32)
    stock.load_state_dict(opened.state_dict(), assign=True)
    stock.tie_weights()
    stock.generation_config = opened.generation_config
    with written_aside(target) as place:
        stock.save_pretrained(place)
        opened.tokenizer.save_pretrained(place)
        sizes = {entry.name: entry.stat().st_size for entry in sorted(place.iterdir())}
        (place / CONTENTS).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


def is_whole(checkpoint: Path) -> bool:
    """Whether all files of a converted checkpoint are there, each of its size.

    Args:
        checkpoint (`Path`): Its directory, or none.
    """
    try:
        sizes = json.loads((checkpoint / CONTENTS).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


__all__ = ["CONTENTS", "convert", "convert_apart", "is_whole"]
