"""Load PEFT adapters with their MAGNET settings, and disable them per call.

How an adapter is off in some modes: `bind_adapters` registers one pre-hook on every adapter layer. `adapters_for`
wraps each forward; if the adapter is off in its mode, it sets the context variable `_base_only` during the call. The
hooks read the variable and then ask PEFT to skip the adapter. A context variable isolates calls in other threads and
leaves the model unchanged. It holds the model that set it, so that nested calls of the same model reuse it, and counts
the layers that skipped their adapter, so that a call raises an error if no layer has the hook.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from safetensors.torch import load_file

from .configuration_magnet import AttentionMode, MagnetSettings, check_mode
from .pooling_magnet import load_head
from .sources_magnet import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CheckpointError,
    ModelSource,
    check_tensors,
    wrap_read_errors,
)

try:  # only needed by models with an adapter
    from peft import set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    ADAPTER_LAYERS: tuple[Any, ...] = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    BINDABLE_LAYERS: tuple[Any, ...] = (LoraLayer, AuxiliaryTrainingWrapper)
except ImportError:
    ADAPTER_LAYERS = BINDABLE_LAYERS = ()


class _BaseOnly:
    """Marks the current call as base-only, and counts the layers that skipped their adapter."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.layers = 0


_base_only: ContextVar[_BaseOnly | None] = ContextVar("magnet_base_only", default=None)


def _disable_adapter_hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook: pass PEFT's name for "no adapter" to the layer if the current call is base-only."""
    call = _base_only.get()
    if call is None:
        return None
    call.layers += 1
    return args, {**kwargs, "adapter_names": ["__base__"] * len(args[0])}


def set_adapter_modes(model: Any, modes: Sequence[AttentionMode] | None) -> None:
    """Implement `MagnetMixin.set_adapter_modes`."""
    if isinstance(modes, str):
        raise ValueError(f"`modes` is {modes!r}; expected a list of modes, such as [{modes!r}], or None.")
    chosen = None if modes is None else [str(mode) for mode in modes]
    for mode in chosen or ():
        check_mode(mode)
    if chosen is not None:
        bind_adapters(model)
    MagnetSettings.update_config(model.config, adapter_modes=chosen)


def bind_adapters(model: Any) -> None:
    """Register a pre-hook on every adapter layer that lets a call bypass it. Idempotent."""
    layers: list[Any] = list(adapter_layers(model))
    if not layers:
        raise ValueError("This model has no adapter to bind to modes. Load one first: `model.load_adapter(...)`.")
    for config in model.peft_config.values():
        if getattr(config, "bias", "none") != "none":
            raise ValueError(
                f"The adapter trains biases of the base model (bias={config.bias!r}), so a call cannot bypass it. "
                "Train it with bias='none', or call `set_adapter_modes(None)`."
            )
    for layer in layers:
        if not isinstance(layer, BINDABLE_LAYERS) or hasattr(layer, "parameter_name"):
            raise ValueError(
                f"A call cannot bypass adapter layers of type {type(layer).__name__}. Use LoRA on linear or embedding "
                "layers, or call `set_adapter_modes(None)`."
            )
        if _disable_adapter_hook not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_disable_adapter_hook, with_kwargs=True)
    model._bound_adapters = tuple(model.peft_config)


def adapter_layers(model: Any) -> Iterator[Any]:
    """Yield the layers that have an adapter."""
    return (module for module in model.modules() if isinstance(module, ADAPTER_LAYERS))


def has_adapter(model: Any) -> bool:
    """Return whether the model has a PEFT adapter, attached by transformers or by a `PeftModel` around the model."""
    return bool(getattr(model, "peft_config", None)) and next(adapter_layers(model), None) is not None


def adapters_for(model: Any, mode: AttentionMode) -> AbstractContextManager[None]:
    """Return the context in which a forward of this mode runs."""
    # `torch.compile(fullgraph=True)` and `torch.export` cannot read a context variable: avoid it if no layer is bound.
    modes = MagnetSettings.from_config(model.config).adapter_modes
    if modes is None and not model._bound_adapters:
        return nullcontext()
    return _adapters_as_bound(model, mode, is_on=modes is None or mode in modes)


@contextmanager
def _adapters_as_bound(model: Any, mode: AttentionMode, *, is_on: bool) -> Iterator[None]:
    """Switch the adapter on or off during one call."""
    outer = _base_only.get()
    if not is_on and outer is not None and outer.owner is model:  # nested in a base-only call of this model
        yield
        return
    if not is_on:
        _check_can_be_off(model, mode)
    # Set the variable to None if the adapter is on: this may be a callback inside a base-only call.
    call = None if is_on else _BaseOnly(model)
    token = _base_only.set(call)
    try:
        yield
    finally:
        _base_only.reset(token)
    if call is not None and call.layers == 0:
        raise ValueError(_UNBOUND.format(mode=mode))


_UNBOUND = (
    "The adapter is set to be off in mode={mode!r}, but some adapter layer has no hook, or the adapter was merged. "
    "Call `model.set_adapter_modes(...)` again, with the same modes, or with None after merging."
)


def _check_can_be_off(model: Any, mode: AttentionMode) -> None:
    """Raise an error if some adapter layer has no hook, or gradient checkpointing would run it outside the call."""
    if tuple(getattr(model, "peft_config", None) or ()) != model._bound_adapters:
        raise ValueError(_UNBOUND.format(mode=mode))
    checkpoints = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if torch.is_grad_enabled() and model.training and checkpoints:
        raise ValueError(
            f"The adapter is off in mode={mode!r}, but gradient checkpointing would recompute the layers with it. Use "
            "torch.no_grad(), `gradient_checkpointing_disable()` or `set_adapter_modes(None)`."
        )


# The values that an adapter and its base must have in common; checked before any weights are read.
BASE_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


def check_adapter_fits(source: ModelSource, settings: dict[str, Any] | None, values: dict[str, Any]) -> None:
    """Raise an error if the settings of an adapter describe another base than these values of config.json."""
    stored = (settings or {}).get("base") or {}
    differing = [key for key in BASE_SHAPE if stored.get(key) not in (None, values.get(key))]
    if differing:
        parts = ", ".join(f"{key} {stored[key]!r} (this base has {values.get(key)!r})" for key in differing)
        raise CheckpointError(f"The adapter at {source} was trained on a base with {parts}. Load it on that base.")


# Prefix of the names in PEFT's adapter files.
ADAPTER_PREFIX = "base_model.model."


def load_adapter(
    model: Any, load: Callable[..., Any], peft_model_id: str | None = None, *args: Any, **kwargs: Any
) -> Any:
    """Implement `MagnetMixin.load_adapter`; `load` is the method of the parent class."""
    source, stored = None, None
    if peft_model_id is not None:
        source = ModelSource(str(peft_model_id), dict(kwargs.get("adapter_kwargs") or {}))
        stored = _check_files(source, model, has_weights=kwargs.get("adapter_state_dict") is not None)
    settings = None if stored is None else MagnetSettings.from_dict(stored["magnet"], source=str(source))
    name = (args[0] if args else kwargs.get("adapter_name")) or "default"
    is_known = name in (getattr(model, "peft_config", None) or {})
    # transformers overwrites the name conversions of the base, which `save_pretrained` needs, by the adapter's.
    conversions = getattr(model, "_weight_conversions", None)
    try:
        # An adapter from memory has no files, so its errors are raised unchanged.
        with nullcontext() if source is None else wrap_read_errors(f"The adapter at {source}", arguments=kwargs):
            # With `ignore_mismatched_sizes`, transformers reports all such tensors, and `_check_report` raises.
            report = load(peft_model_id, *args, **{**kwargs, "ignore_mismatched_sizes": True})
        _check_report(model, report, source, name)
        if source is not None and settings is not None:
            if settings.contrastive_head is not None:
                load_head(model, source)
            settings.store_in(model.config)
        if MagnetSettings.from_config(model.config).adapter_modes is not None:
            bind_adapters(model)
    except Exception:
        if not is_known and name in (getattr(model, "peft_config", None) or {}):
            model.delete_adapter(name)
        raise
    finally:
        model._weight_conversions = conversions
    return report


def _check_files(source: ModelSource, model: Any, *, has_weights: bool) -> dict[str, Any] | None:
    """Return the MAGNET settings of an adapter. Raise an error if it is unsafe or incomplete, or fits another base."""
    stored = source.adapter_settings()
    check_adapter_fits(source, stored, model.config.to_dict())
    if (source.read_json(ADAPTER_CONFIG) or {}).get("megatron_config"):
        raise CheckpointError(
            f"{ADAPTER_CONFIG} of {source} has a `megatron_config`, for which PEFT would import a module that the "
            "file names. Remove the key; MAGNET does not support Megatron."
        )
    if not has_weights and source.file(ADAPTER_WEIGHTS) is None:
        raise CheckpointError(
            f"The adapter at {source} has no {ADAPTER_WEIGHTS}, and pickles such as adapter_model.bin are not read. "
            "Download the file again, or convert the adapter with PEFT if you trust it."
        )
    return stored


def _check_report(model: Any, report: Any, source: ModelSource | None, name: str) -> None:
    """Raise an error for tensors that do not fit; transformers only reports them."""
    what = f"the adapter {'in memory' if source is None else f'at {source}'}"
    check_tensors(what, mismatched=[key for key, *_ in report.mismatched_keys])
    missing = [key for key in report.missing_keys if f".{name}." in f"{key}."]
    unexpected = list(report.unexpected_keys)
    file = None if source is None else source.file(ADAPTER_WEIGHTS)
    # transformers does not know the tensor names of every adapter type, so let PEFT load them before giving up.
    if (missing or unexpected) and file is not None:
        stored = {key.removeprefix(ADAPTER_PREFIX): tensor for key, tensor in load_file(str(file)).items()}
        with wrap_read_errors(what, arguments=()):
            result: Any = set_peft_model_state_dict(model, stored, adapter_name=name)
        missing = [key for key in result.missing_keys if f".{name}." in f"{key}."]
        unexpected = list(result.unexpected_keys)
    check_tensors(what, missing=missing, unexpected=unexpected)


def forget_deleted_adapter(model: Any) -> None:
    """Unwrap the layers and reset the adapter modes of a model whose last adapter was deleted."""
    if getattr(model, "peft_config", None):
        model._bound_adapters = tuple(model.peft_config) if model._bound_adapters else ()
        return
    module: Any
    for name, module in list(model.named_modules()):
        if isinstance(module, ADAPTER_LAYERS):
            parent, _, child = name.rpartition(".")
            base = module.get_base_layer() if hasattr(module, "get_base_layer") else module.original_module
            setattr(model.get_submodule(parent), child, base)
    model._hf_peft_config_loaded = False  # otherwise transformers would save an adapter
    model._bound_adapters = ()
    MagnetSettings.update_config(model.config, adapter_modes=None)
