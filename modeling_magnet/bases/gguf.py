"""GGUF files as base models: found, read as transformers reads them, and opened de-quantised."""

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
    """Return the GGUF file of a `ModelSource`.

    Args:
        source (`ModelSource`): Where to look.
        name (`str`): Of the file; in a directory a path that does not leave it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    file = source.file(name) if name else None
    outside = file is not None and source.directory is not None and _relative(source, file).startswith("..")
    if file is None or outside:
        there = [] if source.directory is None else sorted(path.name for path in source.directory.glob("*.gguf"))
        raise FileNotFoundError(f"{source} has no such file; it has {there[:5]}")
    return Path(file)


def _relative(source: Any, file: Path) -> str:
    return Path(os.path.relpath(file, source.directory)).as_posix()


def note(source: Any) -> dict[str, Any] | None:
    """Return the name and size of the GGUF file of a base, which an adapter stores; `None` for another base."""
    file = None if source is None or source.is_packaged else source.gguf()
    if file is None:
        return None
    name = source.arguments["gguf_file"] if source.directory is None else _relative(source, file)
    return {"name": name, "size": file.stat().st_size}


def base_of_adapter(base: Any, *, asked: str | None, stored: Any) -> Any:
    """Return the base of an adapter with the GGUF file that was asked for, or that the adapter was trained on.

    Args:
        base (`ModelSource`): As the adapter names it.
        asked (`str`, *optional*): The `gguf_file` that the caller named.
        stored (`dict`, *optional*): The `note` that was stored with the adapter.

    Raises:
        ValueError: the file of that name has another size.
    """
    if base.is_packaged or not (asked or stored):
        return base
    name = asked or stored["name"]
    found = type(base)(base.path, {**base.arguments, "gguf_file": name})
    if asked:
        return found
    if base.file(name) is None and base.file("config.json") is not None:
        warnings.warn(
            f"The adapter was trained on {name!r}, which {base} does not hold; its base is opened from the other "
            "weights there.",
            stacklevel=2,
        )
        return base
    size = found.gguf().stat().st_size
    if size != stored["size"]:
        raise ValueError(
            f"it was trained on {name!r} of {stored['size']} bytes; the one at {base} has {size}. Restore that file, "
            "or pass `gguf_file` to take this one."
        )
    return found


def config_values(file: Path) -> dict[str, Any]:
    """Return what config.json would hold for the model in a GGUF file, as transformers reads its header."""
    state = file.stat()
    return copy.deepcopy(_config_values(str(file), state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=8)  # of a large vocabulary, each reading takes seconds
def _config_values(file: str, size: int, changed: int) -> dict[str, Any]:
    values: dict[str, Any] = PreTrainedConfig.get_config_dict(file, gguf_file=file)[0]
    values.pop("_model_name_or_path", None)  # a title, not the name of a place
    return values


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a GGUF file, without the `<|endoftext|>` that transformers adds to some."""
    values = config_values(file)
    kind = str(values.get("model_type"))
    # Told the type, transformers does not read the header once more; Mistral's class depends on further files.
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
    """Return the arguments of `from_pretrained` that open a GGUF file de-quantised and read its header only once.

    Args:
        file (`Path`): The GGUF file.
        config_class (`type`): Of the family.
        arguments (`dict`): Of the caller, without those that say where the files are.
    """
    kept = dict(arguments)
    if not isinstance(kept.get("config"), PreTrainedConfig):
        given = kept.get("config")
        config = config_class.from_dict(config_values(file)) if given is None else config_class.from_pretrained(given)
        known = config.to_dict()
        for name in [name for name in kept if name in known and name not in ("dtype", "torch_dtype")]:
            setattr(config, name, kept.pop(name))
        kept["config"] = config
    kept["gguf_file"] = str(file)
    # Where a kernel is installed, transformers would otherwise leave the weights quantised.
    kept["quantization_config"] = kept.get("quantization_config") or GgufConfig(dequantize=True)
    return kept


def forget_quantization(model: Any) -> None:
    """Make a model that was read from a GGUF file the plain one that it is, which can be saved and trained."""
    for name in ("hf_quantizer", "quantization_method"):
        vars(model).pop(name, None)
    model.is_quantized = False
    for name in ("quantization_config", "_is_quantized"):
        vars(model.config).pop(name, None)
