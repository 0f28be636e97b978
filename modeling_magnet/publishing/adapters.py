"""Write an adapter in PEFT's format, with the MAGNET settings beside it."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from ..adapters_magnet import ADAPTER_PREFIX, BASE_SHAPE, adapter_layers
from ..bases import gguf
from ..configuration_magnet import MagnetSettings
from ..pooling_magnet import write_head
from ..sources_magnet import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, TokenizerSource


def write_adapter(
    model: Any, directory: Path, weights: dict[str, Any] | None, dtype: torch.dtype | None = None
) -> None:
    """Write the active adapter in PEFT's format, with its settings, the tokenizer and the contrastive head.

    Args:
        model: A MAGNET model with an adapter.
        directory (`Path`): The directory to create.
        weights (`dict`, *optional*): State dict to use instead of the model's.
        dtype (`torch.dtype`, *optional*): Dtype of the file; defaults to that of each tensor.

    Raises:
        ValueError: If several adapters are active, or the base has no name or differs from the model of that name.
    """
    names = {name for layer in adapter_layers(model) for name in layer.active_adapters}
    if len(names) != 1:
        raise ValueError(
            f"The active adapters are {sorted(names)}; only one can be saved. Choose it with `model.set_adapter`."
        )
    (name,) = names
    config = copy.deepcopy(model.peft_config[name])
    _name_base(model, config)
    config.inference_mode = True
    vars(config).update(sets_in_order(config))
    state = get_peft_model_state_dict(model, state_dict=weights, adapter_name=name, save_embedding_layers=False)
    directory.mkdir(parents=True)
    tensors = {}
    for key, tensor in state.items():
        converted = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        tensors[f"{ADAPTER_PREFIX}{key}"] = converted.detach().cpu().contiguous()
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(directory))
    write_adapter_settings(model, directory)
    tokenizer = model._tokenizer_source.find()
    if tokenizer is not None and not _has_tokenizer_of_base(model):
        tokenizer.save_pretrained(str(directory))
    write_head(model, directory, model.state_dict())


def write_adapter_settings(model: Any, directory: Path) -> None:
    """Write the MAGNET settings and the shape of the base to magnet_adapter.json."""
    values = model.config.to_dict()
    contents: dict[str, Any] = {
        "magnet": MagnetSettings.from_config(model.config).to_dict(),
        "base": {key: values.get(key) for key in BASE_SHAPE},
    }
    record = gguf.file_record(model._weights_source)
    if record is not None:
        contents["gguf_file"] = record
    (directory / ADAPTER_SETTINGS).write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def sets_in_order(config: Any) -> dict[str, list[Any]]:
    """Return the fields of a `PeftConfig` that are sets, as sorted lists.

    The order of a set of strings differs between processes; sorted lists make the file reproducible.
    """
    return {name: sorted(value) for name, value in vars(config).items() if isinstance(value, set)}


def _name_base(model: Any, config: Any) -> None:
    """Store the name of the base in an adapter's config; raise an error if there is no valid name."""
    config.base_model_name_or_path = config.base_model_name_or_path or model.config._name_or_path
    if not config.base_model_name_or_path:
        raise ValueError(
            "An adapter is stored with the name of its base, but this model was not loaded from a directory or the "
            "Hub. Save it with `merge_adapter=True`, or save the base and load it from there."
        )
    if model._stored_vocab_size not in (None, model.config.vocab_size):
        raise ValueError(
            f"The vocabulary was resized from {model._stored_vocab_size} to {model.config.vocab_size} tokens, so the "
            "adapter does not fit the stored base. Save it with `merge_adapter=True`; or save the resized base first, "
            "load it from there and add the adapter."
        )
    source = model._weights_source
    if source is None or source.is_packaged or config.base_model_name_or_path != source.path:
        return
    if source.directory is not None:
        config.base_model_name_or_path = str(source.directory)
    elif source.arguments.get("subfolder"):
        raise ValueError(
            f"The base is the folder {source.arguments['subfolder']!r} of {source}, and PEFT does not store the "
            "subfolder of a base. Save with `merge_adapter=True`, or load the base from a separate repository."
        )
    config.revision = source.arguments.get("revision") or config.revision


def _has_tokenizer_of_base(model: Any) -> bool:
    """Return whether the base is a packaged one and the tokenizer is its unchanged tokenizer."""
    tokenizer, source = model._tokenizer_source.find(), model._weights_source
    if source is None or not source.is_packaged or not tokenizer.is_fast:
        return False
    original: Any = TokenizerSource(source.path, source.arguments).load()
    return bool(
        original.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
        and original.special_tokens_map == tokenizer.special_tokens_map
        and original.padding_side == tokenizer.padding_side
        and original.model_max_length == tokenizer.model_max_length
    )
