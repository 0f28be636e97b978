"""Find GGUF files, read their config and tokenizer, and load them dequantized."""

import copy
import json
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GgufConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES


def find(source: Any, name: str) -> Path:
    """Return a GGUF file of a `ModelSource`; raise an error if it does not exist or is outside of the directory."""
    file = source.file(name) if name else None
    is_outside = file is not None and source.directory is not None and _relative(source, file).startswith("..")
    if file is None or is_outside:
        present = [] if source.directory is None else sorted(path.name for path in source.directory.glob("*.gguf"))
        raise FileNotFoundError(f"{source} has no such file; it has {present[:5]}")
    return Path(file)


def _relative(source: Any, file: Path) -> str:
    return Path(os.path.relpath(file, source.directory)).as_posix()


def file_record(source: Any) -> dict[str, Any] | None:
    """Return the name and size of a base's GGUF file, which its adapters store; `None` without such a file."""
    file = None if source is None or source.is_packaged else source.gguf()
    if file is None:
        return None
    name = source.arguments["gguf_file"] if source.directory is None else _relative(source, file)
    return {"name": name, "size": file.stat().st_size}


def base_of_adapter(base: Any, *, requested: str | None, stored: Any) -> Any:
    """Return the base of an adapter, with the requested GGUF file or the one that the adapter was trained on.

    `requested` is the `gguf_file` of the caller; `stored` is the `file_record` that was stored with the adapter.

    Raises:
        ValueError: If the file that the adapter was trained on has another size now.
    """
    if base.is_packaged or not (requested or stored):
        return base
    name = requested or stored["name"]
    in_gguf = type(base)(base.path, {**base.arguments, "gguf_file": name})
    if requested:
        return in_gguf
    if base.file(name) is None and base.file("config.json") is not None:
        warnings.warn(
            f"The adapter was trained on {name!r}, which {base} does not contain; other weights of {base} are loaded.",
            stacklevel=2,
        )
        return base
    size = in_gguf.gguf().stat().st_size
    if size != stored["size"]:
        raise ValueError(
            f"it was trained on {name!r} of {stored['size']} bytes; the file in {base} has {size}. Restore that file, "
            "or pass `gguf_file` to use this one."
        )
    return in_gguf


def config_values(file: Path) -> dict[str, Any]:
    """Return the values of config.json that transformers derives from the header of a GGUF file."""
    state = file.stat()
    return copy.deepcopy(_config_values(str(file), state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=8)  # parsing the header takes seconds if the vocabulary is large
def _config_values(file: str, size: int, changed: int) -> dict[str, Any]:
    values: dict[str, Any] = PreTrainedConfig.get_config_dict(file, gguf_file=file)[0]
    values.pop("_model_name_or_path", None)  # a title, not a path or an id
    return values


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a GGUF file, without the tokens that transformers adds beyond the vocabulary."""
    values = config_values(file)
    kind = str(values.get("model_type"))
    # Given `tokenizer_type`, transformers does not parse the header again. Mistral's class depends on further files.
    known = {"tokenizer_type": kind} if TOKENIZER_MAPPING_NAMES.get(kind) and kind != "mistral" else {}
    tokenizer: Any = AutoTokenizer.from_pretrained(
        str(file.parent), gguf_file=str(file), trust_remote_code=False, **known
    )
    size = values.get("vocab_size")
    if size is not None and len(tokenizer) > size and tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < size]
        if state["model"].get("unk_token") not in state["model"]["vocab"]:
            state["model"]["unk_token"] = None
        tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    return tokenizer


def load_arguments(file: Path, config_class: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the caller's arguments of `from_pretrained`, completed to load a GGUF file dequantized."""
    arguments = dict(arguments)
    passed = arguments.get("config")
    if not isinstance(passed, PreTrainedConfig):  # without a config, transformers would parse the header again
        read = config_class.from_pretrained
        config = config_class.from_dict(config_values(file)) if passed is None else read(passed)
        known = config.to_dict()
        for name in [name for name in arguments if name in known and name not in ("dtype", "torch_dtype")]:
            setattr(config, name, arguments.pop(name))
        arguments["config"] = config
    arguments["gguf_file"] = str(file)
    # If a GGUF kernel is installed, transformers would otherwise keep the weights quantized.
    arguments["quantization_config"] = arguments.get("quantization_config") or GgufConfig(dequantize=True)
    return arguments


def forget_quantization(model: Any) -> None:
    """Remove the quantization marks of a model loaded from a GGUF file, so that it can be saved and trained."""
    for name in ("hf_quantizer", "quantization_method"):
        vars(model).pop(name, None)
    model.is_quantized = False
    for name in ("quantization_config", "_is_quantized"):
        vars(model.config).pop(name, None)
