"""An adapter in a directory: weights and configuration as peft reads them, and our settings beside them."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from ..adapters_magnet import ADAPTER_PREFIX, BASE_SHAPE, adapter_layers, write_head
from ..bases import gguf
from ..configuration_magnet import MagnetSettings
from ..sources_magnet import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, TokenizerSource


def write_adapter(
    model: Any, directory: Path, weights: dict[str, Any] | None, dtype: torch.dtype | None = None
) -> None:
    """Write the active adapter as peft reads it, with our settings, the tokenizer and the contrastive head.

    Args:
        model: One of our models with an adapter.
        directory (`Path`): Where to; it is made.
        weights (`dict`, *optional*): In place of the model's.
        dtype (`torch.dtype`, *optional*): What the tensors are written in; their own by default.

    Raises:
        ValueError: several adapters are active, or the base has no name or is not the one of that name.
    """
    names = {name for layer in adapter_layers(model) for name in layer.active_adapters}
    if len(names) != 1:
        raise ValueError(
            f"The active adapters are {sorted(names)}; a directory holds one. Choose it with `model.set_adapter`."
        )
    (name,) = names
    config = copy.deepcopy(model.peft_config[name])
    _name_base(model, config)
    config.inference_mode = True
    vars(config).update(sets_in_order(config))
    state = get_peft_model_state_dict(model, state_dict=weights, adapter_name=name, save_embedding_layers=False)
    tensors = {
        f"{ADAPTER_PREFIX}{key}": (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor)
        for key, tensor in state.items()
    }
    directory.mkdir(parents=True)
    kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(kept, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(directory))
    write_adapter_settings(model, directory)
    tokenizer = model._tokenizer_source.find()
    if tokenizer is not None and not _has_tokenizer_of_base(model):
        tokenizer.save_pretrained(str(directory))
    write_head(model, directory, model.state_dict())


def write_adapter_settings(model: Any, directory: Path) -> None:
    """Write our settings and the shape of the base beside the files of peft.

    Args:
        model: One of our models.
        directory (`Path`): The adapter's.
    """
    values = model.config.to_dict()
    contents: dict[str, Any] = {
        "magnet": MagnetSettings.of(model.config).to_dict(),
        "base": {key: values.get(key) for key in BASE_SHAPE},
    }
    note = gguf.note(model._weights_source)
    if note is not None:
        contents["gguf_file"] = note
    (directory / ADAPTER_SETTINGS).write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def sets_in_order(config: Any) -> dict[str, list[Any]]:
    """Return the fields that peft keeps as sets, such as `target_modules`, sorted: processes order sets differently.

    Args:
        config (`PeftConfig`): It is not changed.
    """
    return {name: sorted(value) for name, value in vars(config).items() if isinstance(value, set)}


def _name_base(model: Any, config: Any) -> None:
    """Write into an adapter's configuration where its base is; refuse a base that cannot be named."""
    config.base_model_name_or_path = config.base_model_name_or_path or model.config._name_or_path
    if not config.base_model_name_or_path:
        raise ValueError(
            "An adapter is stored with the name of its base, and this model has none: it was not loaded from "
            "anywhere. Save it with `merge_adapter=True`, or load the base from a directory."
        )
    if model._stored_vocab_size not in (None, model.config.vocab_size):
        raise ValueError(
            f"The vocabulary was resized from {model._stored_vocab_size} to {model.config.vocab_size} tokens, so this "
            "is not the base that the adapter would be loaded on. Save it with `merge_adapter=True`; or save the "
            "resized base first, load it from there and add the adapter."
        )
    source = model._weights_source
    if source is None or source.is_packaged or config.base_model_name_or_path != source.path:
        return
    if source.directory is not None:
        config.base_model_name_or_path = str(source.directory)
    elif source.arguments.get("subfolder"):
        raise ValueError(
            f"The base is the folder {source.arguments['subfolder']!r} of {source}, and peft has no way to name "
            "it. Save with `merge_adapter=True`, or load the base from a directory or repository of its own."
        )
    config.revision = source.arguments.get("revision") or config.revision


def _has_tokenizer_of_base(model: Any) -> bool:
    """Return whether the tokenizer is, unchanged, that of a base which is installed as a package."""
    tokenizer, source = model._tokenizer_source.find(), model._weights_source
    if source is None or not source.is_packaged or not tokenizer.is_fast:
        return False
    own: Any = TokenizerSource(source.path, source.arguments).load()
    first, second = (
        (one.backend_tokenizer.to_str(), one.special_tokens_map, one.padding_side, one.model_max_length)
        for one in (own, tokenizer)
    )
    return bool(first == second)
