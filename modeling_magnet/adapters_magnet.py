"""Adapters of peft on our models: opened with the settings stored beside them, taken off, and written."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .configuration_magnet import AttentionMode, MagnetSettings, check_mode
from .pooling_magnet import ContrastiveHead
from .sources_magnet import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    HEAD_WEIGHTS,
    CheckpointError,
    ModelSource,
    check_tensors,
    wrap_read_errors,
)

try:  # needed only by models that have an adapter
    from peft import set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    ADAPTER_LAYERS: tuple[type, ...] = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    BINDABLE_LAYERS: tuple[type, ...] = (LoraLayer, AuxiliaryTrainingWrapper)
except ImportError:
    ADAPTER_LAYERS = BINDABLE_LAYERS = ()


class _BaseOnly:
    """Marks the current call as base-only, and counts the layers that skipped their adapter."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.layers = 0


_base_only: ContextVar[_BaseOnly | None] = ContextVar("magnet_base_only", default=None)


def _disable_adapter_hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of an adapter layer: peft's own name for no adapter, where the running call says so."""
    call = _base_only.get()
    if call is None:
        return None
    call.layers += 1
    return args, {**kwargs, "adapter_names": ["__base__"] * len(args[0])}


def set_adapter_modes(model: Any, modes: Sequence[AttentionMode] | None) -> None:
    """Choose the modes in which the adapter is on: see `MagnetMixin.set_adapter_modes`."""
    if isinstance(modes, str):
        raise ValueError(f"`modes` is {modes!r}; expected a list of modes, such as [{modes!r}], or None.")
    chosen = None if modes is None else [str(mode) for mode in modes]
    for mode in chosen or ():
        check_mode(mode)
    if chosen is not None:
        bind_adapters(model)
    MagnetSettings.update(model.config, adapter_modes=chosen)


def bind_adapters(model: Any) -> None:
    """Make every adapter layer listen to what a call wants; once, not in a call."""
    layers: list[Any] = list(adapter_layers(model))
    if not layers:
        raise ValueError("This model has no adapter to bind to modes. Load one first: `model.load_adapter(...)`.")
    for config in model.peft_config.values():
        if getattr(config, "bias", "none") != "none":
            raise ValueError(
                f"The adapter trains biases of the base itself (bias={config.bias!r}), so no call can leave it "
                "out. Train it with bias='none', or `set_adapter_modes(None)`."
            )
    for layer in layers:
        if not isinstance(layer, BINDABLE_LAYERS) or hasattr(layer, "parameter_name"):
            raise ValueError(
                f"Adapter layers of type {type(layer).__name__} cannot be left out of a call. Use LoRA on linear "
                "or embedding layers, or `set_adapter_modes(None)`."
            )
        hooked: Any = layer
        if _disable_adapter_hook not in hooked._forward_pre_hooks.values():
            hooked.register_forward_pre_hook(_disable_adapter_hook, with_kwargs=True)
    model._bound_adapters = tuple(model.peft_config)


def adapter_layers(model: Any) -> Iterator[Any]:
    """Yield the layers that have an adapter."""
    return (module for module in model.modules() if isinstance(module, ADAPTER_LAYERS))


def has_adapter(model: Any) -> bool:
    """Return whether an adapter of peft is attached, by transformers or by a `PeftModel` around the model."""
    return bool(getattr(model, "peft_config", None)) and next(adapter_layers(model), None) is not None


def adapters_for(model: Any, mode: AttentionMode) -> AbstractContextManager[None]:
    """Return the context in which a forward of this mode runs.

    Where no adapter layer listens there is nothing to tell: the context variable is not read, because a graph that
    is compiled or exported whole cannot hold it.
    """
    modes = MagnetSettings.of(model.config).adapter_modes
    if modes is None and not model._bound_adapters:
        return nullcontext()
    return _adapters_as_bound(model, mode, is_on=modes is None or mode in modes)


@contextmanager
def _adapters_as_bound(model: Any, mode: AttentionMode, *, is_on: bool) -> Iterator[None]:
    """Switch the adapter on or off for a call of a model whose adapter is, or was, bound to modes."""
    outer = _base_only.get()
    if not is_on and outer is not None and outer.owner is model:  # a part of a call that has said so
        yield
        return
    if not is_on:
        _check_can_be_off(model, mode)
    # Where it is on, the caller may be a callback of a call that wants no adapter.
    call = None if is_on else _BaseOnly(model)
    token = _base_only.set(call)
    try:
        yield
    finally:
        _base_only.reset(token)
    if call is not None and call.layers == 0:
        raise ValueError(_UNBOUND.format(mode=mode))


_UNBOUND = (
    "The adapter should be off in mode={mode!r}, but its layers were attached without the model's knowledge or were "
    "merged. Call `model.set_adapter_modes(...)` again: the same modes, or None after merging."
)


def _check_can_be_off(model: Any, mode: AttentionMode) -> None:
    """Refuse a call without adapters where a layer would not hear of it."""
    if tuple(getattr(model, "peft_config", None) or ()) != model._bound_adapters:
        raise ValueError(_UNBOUND.format(mode=mode))
    checkpoints = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if torch.is_grad_enabled() and model.training and checkpoints:
        raise ValueError(
            f"The adapter is off in mode={mode!r}, and gradient checkpointing would run the layers again without "
            "knowing it. Use torch.no_grad(), `gradient_checkpointing_disable()` or `set_adapter_modes(None)`."
        )


# What an adapter must agree on with its base before any weight is read.
BASE_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


def check_adapter_fits(source: ModelSource, settings: dict[str, Any] | None, values: dict[str, Any]) -> None:
    """Refuse an adapter whose `adapter_settings()` name another base than the one of this config.json."""
    stored = (settings or {}).get("base") or {}
    differing = [key for key in BASE_SHAPE if stored.get(key) not in (None, values.get(key))]
    if differing:
        parts = ", ".join(f"{key} {stored[key]!r} where this base has {values.get(key)!r}" for key in differing)
        raise CheckpointError(
            f"The adapter at {source} was trained on another base: {parts}. Load it on its own base."
        )


# How peft names the weights of an adapter of a model that it wraps.
ADAPTER_PREFIX = "base_model.model."


def load_adapter(
    model: Any, load: Callable[..., Any], peft_model_id: str | None = None, *args: Any, **kwargs: Any
) -> Any:
    """Load an adapter by `load`, the parent's method, with its settings: see `MagnetMixin.load_adapter`."""
    source, stored = None, None
    if peft_model_id is not None:
        source = ModelSource(str(peft_model_id), dict(kwargs.get("adapter_kwargs") or {}))
        stored = _check_files(source, model, has_weights=kwargs.get("adapter_state_dict") is not None)
    settings = None if stored is None else MagnetSettings.from_dict(stored["magnet"], source=str(source))
    name = (args[0] if args else kwargs.get("adapter_name")) or "default"
    is_known = name in (getattr(model, "peft_config", None) or {})
    # Of the base's names, which transformers forgets over those of the adapter and would save the base by.
    conversions = getattr(model, "_weight_conversions", None)
    try:
        # Of an adapter in memory, all errors are the caller's.
        with nullcontext() if source is None else wrap_read_errors(f"The adapter at {source}", arguments=kwargs):
            # Told to go on, transformers names the tensors that do not fit.
            report = load(peft_model_id, *args, **{**kwargs, "ignore_mismatched_sizes": True})
        _check_report(model, report, source, name)
        if source is not None and settings is not None:
            if settings.contrastive_head is not None:
                load_head(model, source)
            settings.store(model.config)
        if MagnetSettings.of(model.config).adapter_modes is not None:
            bind_adapters(model)
    except Exception:
        if not is_known and name in (getattr(model, "peft_config", None) or {}):
            model.delete_adapter(name)
        raise
    finally:
        model._weight_conversions = conversions
    return report


def _check_files(source: ModelSource, model: Any, *, has_weights: bool) -> dict[str, Any] | None:
    """Return our settings beside an adapter; refuse one of another base, or by which code would be run."""
    stored = source.adapter_settings()
    check_adapter_fits(source, stored, model.config.to_dict())
    if (source.read_json(ADAPTER_CONFIG) or {}).get("megatron_config"):
        raise CheckpointError(
            f"{ADAPTER_CONFIG} of {source} has a `megatron_config`, for which peft would import a module that the "
            "file names. Remove it there: no model here is one of Megatron's."
        )
    if not has_weights and source.file(ADAPTER_WEIGHTS) is None:
        raise CheckpointError(
            f"The adapter at {source} has no {ADAPTER_WEIGHTS}; a pickle such as adapter_model.bin is never read "
            "here. Fetch the file again, or convert the adapter with peft where you trust it."
        )
    return stored


def _check_report(model: Any, report: Any, source: ModelSource | None, name: str) -> None:
    """Refuse what transformers would have gone on with."""
    what = f"the adapter {'in memory' if source is None else f'at {source}'}"
    check_tensors(what, mismatched=[key for key, *_ in report.mismatched_keys])
    missing = [key for key in report.missing_keys if f".{name}." in f"{key}."]
    unexpected = list(report.unexpected_keys)
    file = None if source is None else source.file(ADAPTER_WEIGHTS)
    if (missing or unexpected) and file is not None:  # kinds of adapters whose names only peft knows
        stored = {key.removeprefix(ADAPTER_PREFIX): tensor for key, tensor in load_file(str(file)).items()}
        with wrap_read_errors(what, arguments=()):
            result: Any = set_peft_model_state_dict(model, stored, adapter_name=name)
        missing = [key for key in result.missing_keys if f".{name}." in f"{key}."]
        unexpected = list(result.unexpected_keys)
    check_tensors(what, missing=missing, unexpected=unexpected)


def forget_deleted_adapter(model: Any) -> None:
    """Make a model that has lost its last adapter the plain base again, bound to no modes."""
    if getattr(model, "peft_config", None):
        model._bound_adapters = tuple(model.peft_config) if model._bound_adapters else ()
        return
    layers: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, ADAPTER_LAYERS)
    ]
    for name, module in layers:
        parent, _, child = name.rpartition(".")
        base = module.get_base_layer() if hasattr(module, "get_base_layer") else module.original_module
        setattr(model.get_submodule(parent), child, base)
    model._hf_peft_config_loaded = False  # transformers' own mark, by which it would save an adapter
    model._bound_adapters = ()
    MagnetSettings.update(model.config, adapter_modes=None)


# How a state dict names the weights of the contrastive head, which has a file of its own.
HEAD_PREFIX = "sscl_head."


def write_head(model: Any, directory: Path, weights: dict[str, Any]) -> None:
    """Write the contrastive head out of a state dict, where the model has one, into its own file."""
    if MagnetSettings.of(model.config).contrastive_head is not None:
        head = {name[len(HEAD_PREFIX) :]: weights[name] for name in weights if name.startswith(HEAD_PREFIX)}
        file = directory / HEAD_WEIGHTS
        file.parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in head.items()}, file)


def load_head(model: Any, source: ModelSource) -> None:
    """Load the contrastive head from its own file."""
    file = source.file(HEAD_WEIGHTS)
    if file is None:
        raise CheckpointError(
            f"{source} keeps its contrastive head in {HEAD_WEIGHTS}, which is missing. Fetch it again, or set "
            "`contrastive_head` in its settings to null to encode without it."
        )
    # Made anew: it may have come with an adapter, and what quantised the base may have quantised it.
    model.sscl_head = ContrastiveHead(model.config.hidden_size).to(device=model.device, dtype=model.dtype)
    model.sscl_head.load_state_dict(load_file(str(file)))
