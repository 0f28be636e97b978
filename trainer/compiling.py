"""Compile the decoder's layers one by one, in place, for training steps only.

One compilation serves all layers of a kind and takes half a minute. The model keeps its class, modes, adapters,
chunked LM head and files. Compiled as a whole, it breaks into graphs where modes are switched and losses picked, which
takes minutes and is not faster (`examples/benchmarks/LOG.md`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import nn
from transformers import TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer


def take_over_compilation(plugin: TorchDynamoPlugin, args: TrainingArguments) -> dict[str, Any] | None:
    """Return the compiler's settings from the arguments or `accelerate launch`, and turn accelerate's own use off.

    Args:
        plugin (`TorchDynamoPlugin`): accelerate's settings, by which it would compile the model as a whole; modified.
        args (`TrainingArguments`): Arguments of the run.

    Returns:
        `dict`: for `nn.Module.compile`; `None` where nothing is to be compiled.
    """
    asked = plugin.backend != DynamoBackend.NO
    arguments: dict[str, Any] | None = None
    if asked:
        arguments = {name: value for name, value in plugin.to_kwargs().items() if name != "use_regional_compilation"}
        # A second trainer with these arguments finds the plugin turned off.
        args.torch_compile = True
        args.torch_compile_backend, args.torch_compile_mode = arguments["backend"], arguments.get("mode")
    elif args.torch_compile:
        arguments = {"backend": args.torch_compile_backend, "mode": args.torch_compile_mode}
    plugin.backend = DynamoBackend.NO
    return arguments


def compile_layers(model: nn.Module, arguments: dict[str, Any] | None) -> list[tuple[nn.Module, Any]]:
    """Return a decoder's layers with their compiled forms, which `compiled` puts to use; none without arguments.

    Args:
        model (`nn.Module`): Its `GradientCheckpointingLayer`s are compiled.
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
    """Use the compiled forms of layers until the context ends; evaluation's many lengths would each be compiled.

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
