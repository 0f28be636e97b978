"""Adapters of peft on our models: opened with the settings stored beside them, taken off, and written."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .configuration_magnet import AttentionMode, MagnetSettings, check_mode
from .pooling_magnet import ContrastiveHead
from .sources_magnet import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    HEAD_WEIGHTS,
    CheckpointError,
    ModelSource,
    files_are_at_fault,
    first_line,
    told_mismatch,
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


def _ask_for_base(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of an adapter layer: peft's own name for no adapter, where the running call says so."""
    call = _base_only.get()
    if call is None:
        return None
    call.layers += 1
    return args, {**kwargs, "adapter_names": ["__base__"] * len(args[0])}


def set_adapter_modes(model: Any, modes: Sequence[AttentionMode] | None) -> None:
    """Choose the modes in which the adapter is on.

    With `["bidirectional", "infill"]` generation is the base model's, bit for bit, while the same weights in
    memory encode and infill with the adapter. The choice is made in every call, so threads can mix modes. It is
    stored with the adapter.

    Args:
        modes (sequence of `str`, *optional*): `None` for every mode.

    Raises:
        ValueError: an unknown mode, or an adapter that changes the base's own weights or cannot be left out of a
            call.
    """
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
        if _ask_for_base not in hooked._forward_pre_hooks.values():
            hooked.register_forward_pre_hook(_ask_for_base, with_kwargs=True)
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
    if MagnetSettings.value(model.config, "adapter_modes") is None and not model._bound_adapters:
        return nullcontext()
    return _adapters_as_bound(model, mode)


@contextmanager
def _adapters_as_bound(model: Any, mode: AttentionMode) -> Iterator[None]:
    """Switch the adapter on or off for a call of a model whose adapter is, or was, bound to modes."""
    modes, outer = MagnetSettings.value(model.config, "adapter_modes"), _base_only.get()
    if modes is None or mode in modes:
        if outer is None:
            yield
            return
        token = _base_only.set(None)  # the caller is a callback of a call that wants no adapter
        try:
            yield
        finally:
            _base_only.reset(token)
        return
    if outer is not None and outer.owner is model:  # a part of a call that has said so
        yield
        return
    if tuple(getattr(model, "peft_config", None) or ()) != model._bound_adapters:
        raise ValueError(_unbound_message(mode))
    if torch.is_grad_enabled() and model.training and _checkpoints_activations(model):
        raise ValueError(
            f"The adapter is off in mode={mode!r}, and gradient checkpointing would run the layers again without "
            "knowing it. Use torch.no_grad(), `gradient_checkpointing_disable()` or `set_adapter_modes(None)`."
        )
    call = _BaseOnly(model)
    token = _base_only.set(call)
    try:
        yield
    finally:
        _base_only.reset(token)
    if call.layers == 0:
        raise ValueError(_unbound_message(mode))


def _unbound_message(mode: str) -> str:
    return (
        f"The adapter should be off in mode={mode!r}, but its layers were attached without the model's knowledge "
        "or were merged. Call `model.set_adapter_modes(...)` again: the same modes, or None after merging."
    )


def _checkpoints_activations(model: Any) -> bool:
    """Return whether layers run again in the backward pass, by the installed transformers' name for it."""
    known = getattr(model, "is_activation_checkpointing", None)
    return bool(model.is_gradient_checkpointing if known is None else known)


# What an adapter must agree on with its base before any weight is read.
BASE_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


def check_adapter_imports_nothing(source: ModelSource) -> None:
    """Refuse a configuration by which peft would import a module that it names: of Megatron, and so of anything."""
    values = source.read_json(ADAPTER_CONFIG) or {}
    if values.get("megatron_config"):
        raise CheckpointError(
            f"{ADAPTER_CONFIG} of {source} has a `megatron_config`, for which peft would import the module "
            f"{values.get('megatron_core')!r:.60}. Remove it there: no model here is one of Megatron's."
        )


def check_adapter_fits(source: ModelSource, settings: dict[str, Any] | None, values: dict[str, Any]) -> None:
    """Refuse an adapter of another base by what is stored beside it.

    Args:
        source (`ModelSource`): The adapter.
        settings (`dict`, *optional*): Its `adapter_settings()`; one without is not checked.
        values (`dict`): config.json of the base.
    """
    stored = (settings or {}).get("base") or {}
    # A base whose vocabulary was resized in memory is the right one, too.
    resized = {"vocab_size": (settings or {}).get("resized_vocab_size")}
    differing = [
        key
        for key in BASE_SHAPE
        if stored.get(key) not in (None, values.get(key)) and values.get(key) != resized.get(key, stored.get(key))
    ]
    if differing:
        parts = ", ".join(f"{key} {stored[key]!r} where this base has {values.get(key)!r}" for key in differing)
        raise CheckpointError(
            f"The adapter at {source} was trained on another base: {parts}. Load it on its own base."
        )


# What peft raises over a configuration or weights that it cannot use.
_UNUSABLE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, SafetensorError)
# Arguments of `load_adapter` by which reading an adapter does not fail in these ways.
_HARMLESS = (
    "adapter_name",
    "adapter_kwargs",
    "hotswap",
    "ignore_mismatched_sizes",
    "is_trainable",
    "low_cpu_mem_usage",
)
# How peft names the weights of an adapter of a model that it wraps.
ADAPTER_PREFIX = "base_model.model."
# Where an adapter stores the embedding matrix and the LM head of a base whose vocabulary was resized.
_EMBEDDINGS = re.compile(r"(?:.*\.)?(?:embed_tokens|lm_head)(?:\.base_layer)?\.weight")


def load_adapter(
    model: Any, load: Callable[..., Any], peft_model_id: str | None = None, *args: Any, **kwargs: Any
) -> Any:
    """Load an adapter as transformers does, and the settings that were stored with it.

    Args:
        model: One of our models; after an error it is as it was.
        load (`Callable`): `load_adapter` of the parent class, which gets the other arguments.

    Raises:
        ValueError: the adapter is of another base or not in safetensors, or its tensors do not fit.
    """
    source, stored = None, None
    if peft_model_id is not None:
        source = ModelSource(str(peft_model_id), dict(kwargs.get("adapter_kwargs") or {}))
        stored = source.adapter_settings()
        check_adapter_fits(source, stored, model.config.to_dict())
        check_adapter_imports_nothing(source)
        if kwargs.get("adapter_state_dict") is None and source.file(ADAPTER_WEIGHTS) is None:
            raise CheckpointError(
                f"The adapter at {source} has no {ADAPTER_WEIGHTS}; a pickle such as adapter_model.bin is never "
                "read here. Fetch the file again, or convert the adapter with peft where you trust it."
            )
    name = (args[0] if args else kwargs.get("adapter_name")) or "default"
    known = name in (getattr(model, "peft_config", None) or {})
    settings = None if stored is None else MagnetSettings.from_dict(stored["magnet"], source=str(source))
    # Of the base's names, which transformers forgets over those of the adapter and would save the base by.
    conversions = getattr(model, "_weight_conversions", None)
    embeddings = {} if stored is None or source is None else _resized_embeddings(model, source, stored)
    before = model.config.vocab_size
    try:
        if embeddings and before != stored["resized_vocab_size"]:  # type: ignore[index]
            model.resize_token_embeddings(stored["resized_vocab_size"], mean_resizing=False)  # type: ignore[index]
        # Told to go on, transformers names the tensors that do not fit.
        report = _load_by_parent(load, peft_model_id, *args, **{**kwargs, "ignore_mismatched_sizes": True})
        _check_report(model, report, source, name)
        _set_embeddings(model, embeddings)
        if settings is not None and settings.contrastive_head is not None and source is not None:
            load_head(model, source)
        if settings is not None:
            settings.store(model.config)
        if MagnetSettings.value(model.config, "adapter_modes") is not None:
            bind_adapters(model)
    except ValueError:
        if not known and name in (getattr(model, "peft_config", None) or {}):
            model.delete_adapter(name)
        if model.config.vocab_size != before:
            model.resize_token_embeddings(before, mean_resizing=False)
        raise
    finally:
        model._weight_conversions = conversions
    return report


def _load_by_parent(load: Callable[..., Any], peft_model_id: str | None, *args: Any, **kwargs: Any) -> Any:
    """Call `load_adapter` of transformers and peft, whose errors over a directory do not always name it."""
    try:
        return load(peft_model_id, *args, **kwargs)
    except _UNUSABLE as error:
        # In memory, they are the caller's own objects, and so the caller's errors.
        if args[1:] or peft_model_id is None or not files_are_at_fault(error, kwargs, harmless=_HARMLESS):
            raise
        raise CheckpointError(
            f"The adapter at {str(peft_model_id)!r} cannot be used ({type(error).__name__}: {first_line(error)}). "
            f"Restore {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, or save it anew."
        ) from error


def _check_report(model: Any, report: Any, source: ModelSource | None, name: str) -> None:
    """Refuse what transformers would have gone on with."""
    where = "in memory" if source is None else f"at {source}"
    if report.mismatched_keys:
        raise CheckpointError(
            f"The adapter {where} does not fit this model: {told_mismatch(report.mismatched_keys)}. "
            "Load the base it was trained on."
        )
    missing = [key for key in report.missing_keys if f".{name}." in f"{key}."]
    unexpected = list(report.unexpected_keys)
    if (missing or unexpected) and source is not None:  # kinds of adapters whose names only peft knows
        missing, unexpected = _load_by_peft(model, source, name)
    unexpected = [key for key in unexpected if not _EMBEDDINGS.fullmatch(key)]
    wrong = sorted(missing) or sorted(unexpected)
    if wrong:
        kind = "lacks" if missing else "has more than its configuration says:"
        raise CheckpointError(
            f"The adapter {where} {kind} {wrong[:3]} ({len(wrong)} tensors). It belongs to another model or was "
            "cut short; load the base it was trained on, or save it anew."
        )


def _load_by_peft(model: Any, source: ModelSource, name: str) -> tuple[list[str], list[str]]:
    """Read an adapter's weights by peft itself; returns what is missing and what is left over."""
    file = source.file(ADAPTER_WEIGHTS)
    if file is None:
        return [], []
    stored = {key.removeprefix(ADAPTER_PREFIX): tensor for key, tensor in load_file(str(file)).items()}
    try:
        result: Any = set_peft_model_state_dict(model, stored, adapter_name=name)
    except _UNUSABLE as error:
        if not files_are_at_fault(error, (), harmless=()):
            raise
        raise CheckpointError(
            f"The weights of the adapter at {source} do not go with its {ADAPTER_CONFIG} "
            f"({type(error).__name__}: {first_line(error)}). Restore the files that belong together."
        ) from error
    missing = [key for key in result.missing_keys if f".{name}." in f"{key}."]
    return missing, list(result.unexpected_keys)


def _resized_embeddings(model: Any, source: ModelSource, stored: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the embedding matrix and LM head that an adapter of a resized base stores, by their names in the
    model.
    """
    size = stored.get("resized_vocab_size")
    file = source.file(ADAPTER_WEIGHTS)
    if size is None or file is None:
        return {}
    tensors = {key.removeprefix(ADAPTER_PREFIX): value for key, value in load_file(str(file)).items()}
    found = {name: value for name, value in tensors.items() if _EMBEDDINGS.fullmatch(name)}
    wrong = sorted(name for name, tensor in found.items() if tensor.dim() != 2 or tensor.shape[0] != size)
    if wrong or not found or type(size) is not int:
        raise CheckpointError(
            f"The adapter at {source} was trained on a vocabulary resized to {size!r:.40}, and its embeddings "
            f"{'do not fit: ' + wrong[0] if wrong else 'are missing'}. Save it anew."
        )
    return found


@torch.no_grad()
def _set_embeddings(model: Any, embeddings: dict[str, torch.Tensor]) -> None:
    """Take the rows of a resized vocabulary over from an adapter."""
    known = model.state_dict()
    for name, tensor in embeddings.items():
        layer, _, leaf = name.rpartition(".")
        name = name if name in known else f"{layer}.base_layer.{leaf}"
        if any(key.startswith(f"{layer}.modules_to_save.") for key in known):  # peft has set it
            continue
        if name not in known or known[name].shape != tensor.shape:
            raise CheckpointError(f"The adapter stores {name!r}, for which this model has no place. Save it anew.")
        known[name].copy_(tensor)
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    # What peft has put around an end it has tied itself; of adapted ends it knows no ties.
    if embeddings and isinstance(ends[1], BINDABLE_LAYERS) and hasattr(ends[1], "get_base_layer"):
        if model.config.tie_word_embeddings:
            (tensor,) = embeddings.values()
            ends[1].get_base_layer().weight.copy_(tensor)
    elif embeddings and not any(hasattr(end, "original_module") for end in ends):
        model.tie_weights()


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


def load_head(model: Any, source: ModelSource) -> None:
    """Load the contrastive head from its own file."""
    file = source.file(HEAD_WEIGHTS)
    if file is None:
        raise CheckpointError(
            f"{source} keeps its contrastive head in {HEAD_WEIGHTS}, which is missing. Fetch it again, or set "
            "`contrastive_head` of `magnet` in its settings to null to encode without it."
        )
    # Made anew: it may have come with an adapter, and what quantised the base may have quantised it.
    model.sscl_head = ContrastiveHead(model.config.hidden_size).to(device=model.device, dtype=model.dtype)
    model.sscl_head.load_state_dict(load_file(str(file)))


def is_resized(model: Any) -> bool:
    """Return whether the vocabulary was resized after the weights were loaded."""
    return model._stored_vocab_size not in (None, model.config.vocab_size)


__all__ = [
    "ADAPTER_PREFIX",
    "BASE_SHAPE",
    "ADAPTER_LAYERS",
    "adapter_layers",
    "adapters_for",
    "bind_adapters",
    "check_adapter_fits",
    "forget_deleted_adapter",
    "has_adapter",
    "is_resized",
    "load_adapter",
    "load_head",
    "set_adapter_modes",
]
