"""An adapter in a directory: weights and configuration as peft reads them, and our settings beside them."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from ..adapters_magnet import ADAPTER_PREFIX, BASE_SHAPE, adapter_layers, is_resized
from ..configuration_magnet import MagnetSettings
from ..sources_magnet import ADAPTER_SETTINGS, ADAPTER_WEIGHTS


def write_adapter(
    model: Any, directory: Path, weights: dict[str, Any] | None, dtype: torch.dtype | None = None
) -> None:
    """Weights, peft's configuration and our settings of the active adapter, as peft reads them.

    Of a base whose vocabulary was resized, the embedding matrix and the LM head come along, as by peft's own rule.

    Args:
        directory (`Path`): Where to; it is made.
        weights (`dict`, *optional*): In place of the model's.
        dtype (`torch.dtype`, *optional*): What the tensors are written in; their own by default.
    """
    name = _active_adapter(model)
    config = copy.deepcopy(model.peft_config[name])
    config.base_model_name_or_path = config.base_model_name_or_path or model.config._name_or_path
    _name_base(model, config)
    if not config.base_model_name_or_path:
        raise ValueError(
            "An adapter is stored with the name of its base, and this model has none: it was not loaded from "
            "anywhere. Save it with `merge_adapter=True`, or load the base from a directory."
        )
    if is_resized(model) and getattr(config, "trainable_token_indices", None):
        raise ValueError(
            "The vocabulary was resized and the adapter has `trainable_token_indices`, which cannot be stored "
            "together. Save it with `merge_adapter=True`, or train the embeddings by `modules_to_save`."
        )
    config.inference_mode = True
    vars(config).update(sets_in_order(config))
    state = get_peft_model_state_dict(model, state_dict=weights, adapter_name=name, save_embedding_layers=False)
    if is_resized(model):
        state |= _ends(model, model.state_dict() if weights is None else weights)
    kept = {key: tensor.detach().cpu() for key, tensor in state.items()}
    if dtype is not None:
        kept = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in kept.items()}
    directory.mkdir(parents=True)
    save_file(
        {f"{ADAPTER_PREFIX}{key}": tensor.contiguous() for key, tensor in kept.items()},
        directory / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    config.save_pretrained(str(directory))
    write_adapter_settings(model, directory)


def write_adapter_settings(model: Any, directory: Path) -> None:
    """Our settings and the shape of the base, beside the files of peft.

    Args:
        directory (`Path`): The adapter's.
    """
    values = model.config.to_dict()
    contents: dict[str, Any] = {
        "magnet": MagnetSettings.of(model.config).to_dict(),
        "base": {key: values.get(key) for key in BASE_SHAPE},
    }
    if is_resized(model):
        contents["base"]["vocab_size"] = model._stored_vocab_size
        contents["resized_vocab_size"] = model.config.vocab_size
    note = None if model._weights_source is None else model._weights_source.gguf_note()
    if note is not None:
        contents["gguf_file"] = note
    (directory / ADAPTER_SETTINGS).write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def sets_in_order(config: Any) -> dict[str, list[Any]]:
    """The fields that peft keeps as sets, such as `target_modules`, sorted: a set has another order in each process.

    Args:
        config (`PeftConfig`): It is not changed.
    """
    return {name: sorted(value) for name, value in vars(config).items() if isinstance(value, set)}


def _active_adapter(model: Any) -> str:
    """The one adapter that is on."""
    names = {name for layer in adapter_layers(model) for name in layer.active_adapters}
    if len(names) != 1:
        raise ValueError(
            f"The active adapters are {sorted(names)}; a directory holds one. Choose it with `model.set_adapter`."
        )
    return str(names.pop())


def _ends(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The embedding matrix and an LM head that is not tied to it, unless peft itself stores them as trained."""
    names = {id(module): name for name, module in model.named_modules()}
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    keys = [f"{names[id(end)]}{inner}.weight" for end in ends for inner in ("", ".base_layer")]
    tensors = {key: weights[key] for key in keys if key in weights}
    return tensors if not model.config.tie_word_embeddings else dict(list(tensors.items())[:1])


def _name_base(model: Any, config: Any) -> None:
    """Say which files of a directory or a repository the base is, where this model was loaded from there."""
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
    if source.arguments.get("revision"):
        config.revision = source.arguments["revision"]


__all__ = ["sets_in_order", "write_adapter", "write_adapter_settings"]
