"""In which modes an adapter is on: a choice of each call, that no other thread sees.

peft switches an adapter for the whole model, which is state that threads would share. Here a context variable, which
every thread has of its own, tells the adapter layers to let their base layer speak.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from .masking_magnet import AttentionMode, check_mode

try:  # needed only by models that have an adapter
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


class _BaseOnly:
    """That the running call of a model wants no adapter; counts the layers that obeyed."""

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


class BindingMixin(_Host):
    """Bind adapters to attention modes."""

    peft_config: dict[str, Any]
    # The adapters whose layers listen: peft may add others without telling.
    _bound_adapters: tuple[str, ...] = ()

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
        if isinstance(modes, str):
            raise ValueError(f"`modes` is {modes!r}; expected a list of modes, such as [{modes!r}], or None.")
        chosen = None if modes is None else [str(mode) for mode in modes]
        for mode in chosen or ():
            check_mode(mode)
        if chosen is not None:
            self._bind_adapters()
        self.config.magnet["adapter_modes"] = chosen

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
        self._bound_adapters = tuple(self.peft_config)

    def _adapter_layers(self) -> Iterator[torch.nn.Module]:
        return (module for module in self.modules() if isinstance(module, ADAPTER_LAYERS))

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter of peft is attached, by transformers or by a `PeftModel` around this model."""
        return bool(getattr(self, "peft_config", None)) and next(self._adapter_layers(), None) is not None

    def _adapters_for(self, mode: AttentionMode) -> AbstractContextManager[None]:
        """The block in which a forward of this mode runs.

        Where no adapter layer listens there is nothing to tell: the context variable is not read, because a graph that
        is compiled or exported whole cannot hold it.
        """
        if self.config.magnet["adapter_modes"] is None and not self._bound_adapters:
            return nullcontext()
        return self._adapters_as_bound(mode)

    @contextmanager
    def _adapters_as_bound(self, mode: AttentionMode) -> Iterator[None]:
        """The same of a model whose adapter is bound to modes, or was."""
        modes, outer = self.config.magnet["adapter_modes"], _base_only.get()
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
        if outer is not None and outer.owner is self:  # a part of a call that has said so
            yield
            return
        if tuple(getattr(self, "peft_config", None) or ()) != self._bound_adapters:
            raise ValueError(_told_unbound(mode))
        if torch.is_grad_enabled() and self.training and _checkpoints_activations(self):
            raise ValueError(
                f"The adapter is off in mode={mode!r}, and gradient checkpointing would run the layers again without "
                "knowing it. Use torch.no_grad(), `gradient_checkpointing_disable()` or `set_adapter_modes(None)`."
            )
        call = _BaseOnly(self)
        token = _base_only.set(call)
        try:
            yield
        finally:
            _base_only.reset(token)
        if call.layers == 0:
            raise ValueError(_told_unbound(mode))


def _told_unbound(mode: str) -> str:
    return (
        f"The adapter should be off in mode={mode!r}, but its layers were attached behind the model's back or were "
        "merged. Call `model.set_adapter_modes(...)` again: the same modes, or None after merging."
    )


def _checkpoints_activations(model: Any) -> bool:
    """By the name that the installed transformers has for it."""
    known = getattr(model, "is_activation_checkpointing", None)
    return bool(model.is_gradient_checkpointing if known is None else known)


__all__ = ["ADAPTER_LAYERS", "BindingMixin"]
