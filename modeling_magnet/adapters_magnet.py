"""Adapters of peft on our models: which modes they are on in, and their own directory.

peft switches an adapter for the whole model, which is state that threads would share. Here the choice belongs to the
call: a context variable, which every thread has of its own, tells the adapter layers to let their base layer speak.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from .configuration_magnet import MagnetSettings
from .masking_magnet import AttentionMode, check_mode
from .sources_magnet import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, CheckpointError, ModelSource, told_mismatch

try:  # needed only by models that have an adapter
    from peft import get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    ADAPTER_LAYERS: tuple[type, ...] = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    BINDABLE_LAYERS: tuple[type, ...] = (LoraLayer, AuxiliaryTrainingWrapper)
except ImportError:
    ADAPTER_LAYERS = BINDABLE_LAYERS = ()

# A mixin is checked as what it is mixed into.
if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Host
else:
    _Host = object

# What an adapter must agree on with its base before any weight is read.
_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


class _BaseOnly:
    """That the running call wants no adapter; counts the layers that obeyed."""

    def __init__(self) -> None:
        self.layers = 0


_base_only: ContextVar[_BaseOnly | None] = ContextVar("magnet_base_only", default=None)


def _ask_for_base(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of an adapter layer: peft's own name for no adapter, where the running call says so."""
    call = _base_only.get()
    if call is None:
        return None
    call.layers += 1
    return args, {**kwargs, "adapter_names": ["__base__"] * len(args[0])}


class AdaptersMixin(_Host):
    """Bind adapters to attention modes, load them with their settings, and write them."""

    peft_config: dict[str, Any]

    def set_adapter_modes(self, modes: Sequence[AttentionMode] | None) -> None:
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
        chosen = None if modes is None else [str(mode) for mode in modes]
        for mode in chosen or ():
            check_mode(mode)
        if chosen is not None:
            self._bind_adapters()
        self.config.magnet["adapter_modes"] = chosen

    def load_adapter(self, peft_model_id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a directory of ours brings the settings that were stored with the adapter.

        Raises:
            ValueError: the adapter is of another base, or its tensors do not fit.
        """
        source = None
        if peft_model_id is not None:
            source = ModelSource(str(peft_model_id), dict(kwargs.get("adapter_kwargs") or {}))
            check_adapter_fits(source, self.config.to_dict())
        # Told to go on, transformers names the tensors that do not fit.
        report = super().load_adapter(peft_model_id, *args, **{**kwargs, "ignore_mismatched_sizes": True})
        if report.mismatched_keys:
            raise CheckpointError(
                f"The adapter at {peft_model_id!r} does not fit this model: {told_mismatch(report.mismatched_keys)}. "
                "Load the base it was trained on."
            )
        wrong = sorted(report.missing_keys) or sorted(report.unexpected_keys)
        if wrong:
            kind = "lacks" if report.missing_keys else "has more than its configuration says:"
            raise CheckpointError(
                f"The adapter at {peft_model_id!r} {kind} {wrong[:3]} ({len(wrong)} tensors). It belongs to another "
                "model or was cut short; load the base it was trained on, or save it anew."
            )
        stored = None if source is None else source.read_json(ADAPTER_SETTINGS)
        if stored is not None:
            self.config.magnet = MagnetSettings.from_dict(stored["magnet"], source=str(source)).to_dict()
        if self.config.magnet["adapter_modes"] is not None:
            self._bind_adapters()
        return report

    def _bind_adapters(self) -> None:
        """Make every adapter layer listen to what a call wants; once, not in a call."""
        layers = list(self._adapter_layers())
        if not layers:
            raise ValueError("This model has no adapter to bind to modes. Load one first: `model.load_adapter(...)`.")
        for config in self.peft_config.values():
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
            if _ask_for_base not in layer._forward_pre_hooks.values():
                layer.register_forward_pre_hook(_ask_for_base, with_kwargs=True)

    def _adapter_layers(self) -> Iterator[torch.nn.Module]:
        return (module for module in self.modules() if isinstance(module, ADAPTER_LAYERS))

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter of peft is attached, by transformers or by a `PeftModel` around this model."""
        return next(self._adapter_layers(), None) is not None

    @contextmanager
    def _adapters_for(self, mode: AttentionMode) -> Iterator[None]:
        """The block in which a forward of this mode runs."""
        modes = self.config.magnet["adapter_modes"]
        if modes is None or not getattr(self, "peft_config", None):
            yield
            return
        if mode in modes:  # said aloud: the caller may be a callback of a call that wants none
            token = _base_only.set(None)
            try:
                yield
            finally:
                _base_only.reset(token)
            return
        if _base_only.get() is not None:  # a part of a call that has said so
            yield
            return
        if torch.is_grad_enabled() and self.training and _checkpoints_activations(self):
            raise ValueError(
                f"The adapter is off in mode={mode!r}, and gradient checkpointing would run the layers again without "
                "knowing it. Use torch.no_grad(), `gradient_checkpointing_disable()` or `set_adapter_modes(None)`."
            )
        call = _BaseOnly()
        token = _base_only.set(call)
        try:
            yield
        finally:
            _base_only.reset(token)
        if call.layers == 0:
            raise ValueError(
                f"The adapter should be off in mode={mode!r}, but its layers were attached behind the model's back "
                "or were merged. Call `model.set_adapter_modes(...)` again: the same modes, or None after merging."
            )

    def _active_adapter(self) -> str:
        """The one adapter that is on.

        Raises:
            ValueError: there are several.
        """
        names = {name for layer in self._adapter_layers() for name in layer.active_adapters}  # type: ignore[union-attr]
        if len(names) != 1:
            raise ValueError(
                f"The active adapters are {sorted(names)}; a directory holds one. Choose it with `model.set_adapter`."
            )
        return str(names.pop())

    def _write_adapter(self, directory: Path, weights: dict[str, Any] | None) -> None:
        """Weights, peft's configuration and our settings of the active adapter, as peft reads them."""
        name = self._active_adapter()
        config = copy.deepcopy(self.peft_config[name])
        config.base_model_name_or_path = config.base_model_name_or_path or self.config._name_or_path
        if not config.base_model_name_or_path:
            raise ValueError(
                "An adapter is stored with the name of its base, and this model has none: it was not loaded from "
                "anywhere. Save it with `merge_adapter=True`, or load the base from a directory."
            )
        config.inference_mode = True
        if isinstance(getattr(config, "target_modules", None), set):
            config.target_modules = sorted(config.target_modules)  # of a set, each process has an order of its own
        state = get_peft_model_state_dict(self, state_dict=weights, adapter_name=name, save_embedding_layers=False)
        directory.mkdir(parents=True)
        save_file(
            {f"base_model.model.{key}": tensor.detach().cpu().contiguous() for key, tensor in state.items()},
            directory / ADAPTER_WEIGHTS,
            metadata={"format": "pt"},
        )
        config.save_pretrained(str(directory))
        self.write_adapter_settings(directory)

    def write_adapter_settings(self, directory: Path) -> None:
        """Our settings and the shape of the base, beside the files of peft.

        Args:
            directory (`Path`): The adapter's.
        """
        values = self.config.to_dict()
        contents = {"magnet": self.config.magnet, "base": {key: values.get(key) for key in _SHAPE}}
        (directory / ADAPTER_SETTINGS).write_text(
            json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def _checkpoints_activations(model: Any) -> bool:
    """By the name that the installed transformers has for it."""
    known = getattr(model, "is_activation_checkpointing", None)
    return bool(model.is_gradient_checkpointing if known is None else known)


def check_adapter_fits(source: ModelSource, values: dict[str, Any]) -> None:
    """Refuse an adapter of another base by what is stored beside it.

    Args:
        source (`ModelSource`): The adapter; one without our settings is not checked.
        values (`dict`): config.json of the base.

    Raises:
        CheckpointError: naming what differs.
    """
    stored = (source.read_json(ADAPTER_SETTINGS) or {}).get("base") or {}
    differing = [key for key in _SHAPE if stored.get(key) not in (None, values.get(key))]
    if differing:
        told = ", ".join(f"{key} {stored[key]!r} where this base has {values.get(key)!r}" for key in differing)
        raise CheckpointError(f"The adapter at {source} was trained on another base: {told}. Load it on its own base.")


__all__ = ["ADAPTER_LAYERS", "AdaptersMixin", "check_adapter_fits"]
