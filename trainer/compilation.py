"""Compile decoder layers one by one, and use their compiled forms only in training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import nn
from transformers import TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer


def take_over_compilation(plugin: TorchDynamoPlugin, args: TrainingArguments) -> dict[str, Any] | None:
    """Return the compiler settings of the arguments or `accelerate launch`, and turn off compilation by accelerate.

    Layers are compiled one by one instead: all layers of a class share one compilation of half a minute. The model
    as a whole would break into graphs where it switches modes and selects losses, which takes minutes and is not
    faster (`examples/benchmarks/LOG.md`).

    Args:
        plugin (`TorchDynamoPlugin`): Settings of accelerate; its backend is set to none in place.
        args (`TrainingArguments`): Receives the settings of `accelerate launch` in place.
    """
    if plugin.backend != DynamoBackend.NO:
        # Stored in the arguments, because a second trainer with the same arguments finds the plugin turned off.
        launched = plugin.to_kwargs()
        args.torch_compile = True
        args.torch_compile_backend, args.torch_compile_mode = launched["backend"], launched.get("mode")
    plugin.backend = DynamoBackend.NO
    settings = {"backend": args.torch_compile_backend, "mode": args.torch_compile_mode}
    return settings if args.torch_compile else None


def compile_layers(model: nn.Module, settings: dict[str, Any] | None) -> list[tuple[nn.Module, Any]]:
    """Compile each decoder layer with the settings for `nn.Module.compile`, and return layers and compiled forms.

    Layers stay uncompiled outside of `compiled`. Without settings the result is empty.
    """
    forms: list[tuple[nn.Module, Any]] = []
    for layer in model.modules():
        if settings is not None and isinstance(layer, GradientCheckpointingLayer):
            layer.compile(**settings)
            forms.append((layer, vars(layer).pop("_compiled_call_impl")))
    return forms


@contextmanager
def compiled(forms: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Use the compiled forms of layers in this context.

    They are not used in evaluation, whose varying lengths would each trigger a recompilation.
    """
    for layer, form in forms:
        vars(layer)["_compiled_call_impl"] = form
    try:
        yield
    finally:
        for layer, _ in forms:
            vars(layer).pop("_compiled_call_impl", None)
