"""`torch_compile` for training: the decoder's layers one by one, in place, and during training steps alone.

A layer is compiled once for all of its kind, in half a minute, and nothing else changes: the model keeps its class,
modes, adapters, its head whose logits come in chunks, and its files. Compiled whole, it is taken apart where modes are
switched and losses picked, in minutes, for no more speed (`examples/benchmarks/LOG.md`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import nn
from transformers import TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer


def take_over_compilation(plugin: TorchDynamoPlugin, args: TrainingArguments) -> dict[str, Any] | None:
    """What layers are to be compiled with, by the arguments or by `accelerate launch`.

    Args:
        plugin (`TorchDynamoPlugin`): accelerate's settings, by which it would compile the model whole; turned off.
        args (`TrainingArguments`): Of the run.

    Returns:
        `dict`: for `nn.Module.compile`; `None` where nothing is to be compiled.
    """
    asked = plugin.backend != DynamoBackend.NO
    arguments: dict[str, Any] | None = None
    if asked:
        arguments = {name: value for name, value in plugin.to_kwargs().items() if name != "use_regional_compilation"}
        # For the next trainer with these arguments, whose plugin will say nothing.
        args.torch_compile = True
        args.torch_compile_backend, args.torch_compile_mode = arguments["backend"], arguments.get("mode")
    elif args.torch_compile:
        arguments = {"backend": args.torch_compile_backend, "mode": args.torch_compile_mode}
    plugin.backend = DynamoBackend.NO
    return arguments


def compile_layers(model: nn.Module, arguments: dict[str, Any] | None) -> list[tuple[nn.Module, Any]]:
    """Compiled forms of a decoder's layers, which the layers do not use yet; none without arguments.

    Args:
        model (`nn.Module`): Holds the layers, as modules that transformers can checkpoint.
        arguments (`dict`, *optional*): For `nn.Module.compile`.
    """
    forms: list[tuple[nn.Module, Any]] = []
    for layer in model.modules():
        if arguments is not None and isinstance(layer, GradientCheckpointingLayer):
            layer.compile(**arguments)
            forms.append((layer, vars(layer).pop("_compiled_call_impl")))
    return forms


@contextmanager
def compiled(forms: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Call layers by their compiled forms until the context ends.

    Texts of ever new lengths, as evaluation reads them, would each be compiled for.

    Args:
        forms (sequence): What `compile_layers` returned.
    """
    for layer, form in forms:
        vars(layer)["_compiled_call_impl"] = form
    try:
        yield
    finally:
        for layer, _ in forms:
            vars(layer).pop("_compiled_call_impl", None)


__all__ = ["compile_layers", "compiled", "take_over_compilation"]
