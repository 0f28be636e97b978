"""Work with accelerate: configure its sharding and compilation, gather rows and weights, and add up sums.

Shapes: P rows of a process, W processes, H hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

# ---- Configuration ----


def configure_sharding(plugin: Any, *, view_dropout: float = 0.0) -> None:
    """Refuse settings of FSDP that cannot train the objectives, and leave losses in float32.

    accelerate has each sharded module convert its outputs to half precision. Losses would then keep two digits,
    although they are summed over thousands of tokens.

    Args:
        plugin (`FullyShardedDataParallelPlugin` or `None`): accelerate's settings, where it shards; modified.
        view_dropout (`float`, defaults to 0.0): Dropout of the contrastive forward.

    Raises:
        ValueError: for FSDP1, whose flat weights cannot hold the contrastive head apart, and for recomputed dropout.
    """
    version = getattr(plugin, "fsdp_version", 2)
    if version != 2:
        raise ValueError(
            f"`fsdp_version` is {version}; only FSDP2 is supported. Set `fsdp_version: 2` in the configuration of "
            "`accelerate launch`, or FSDP_VERSION=2; examples/configs/accelerate/fsdp2.yaml has it."
        )
    if view_dropout and getattr(plugin, "activation_checkpointing", False):
        raise ValueError(
            f"`view_dropout` is {view_dropout} and `fsdp_activation_checkpointing` is true: layers would be "
            "recomputed with a different dropout. Turn one of them off."
        )
    policy = getattr(plugin, "mixed_precision_policy", None)
    if policy is not None:
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def take_over_compilation(plugin: TorchDynamoPlugin, args: TrainingArguments) -> dict[str, Any] | None:
    """Return the compiler's settings from the arguments or `accelerate launch`, and turn accelerate's own use off.

    Layers are compiled one by one instead: one compilation serves all of a kind and takes half a minute. Compiled as
    a whole, the model breaks into graphs where modes are switched and losses picked, which takes minutes and is not
    faster (`examples/benchmarks/LOG.md`).
    """
    if plugin.backend != DynamoBackend.NO:
        # Kept in the arguments, since a second trainer with them finds the plugin turned off.
        asked = plugin.to_kwargs()
        args.torch_compile = True
        args.torch_compile_backend, args.torch_compile_mode = asked["backend"], asked.get("mode")
    plugin.backend = DynamoBackend.NO
    settings = {"backend": args.torch_compile_backend, "mode": args.torch_compile_mode}
    return settings if args.torch_compile else None


def compile_layers(model: nn.Module, settings: dict[str, Any] | None) -> list[tuple[nn.Module, Any]]:
    """Return a decoder's layers with their compiled forms, which `compiled` puts to use; none without settings.

    Args:
        model (`nn.Module`): Its `GradientCheckpointingLayer`s are compiled.
        settings (`dict`, *optional*): For `nn.Module.compile`.
    """
    forms: list[tuple[nn.Module, Any]] = []
    for layer in model.modules():
        if settings is not None and isinstance(layer, GradientCheckpointingLayer):
            layer.compile(**settings)
            forms.append((layer, vars(layer).pop("_compiled_call_impl")))
    return forms


@contextmanager
def compiled(forms: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Use the compiled forms of layers until the context ends; evaluation's many lengths would each be compiled."""
    for layer, form in forms:
        vars(layer)["_compiled_call_impl"] = form
    try:
        yield
    finally:
        for layer, _ in forms:
            vars(layer).pop("_compiled_call_impl", None)


# ---- Processes ----


def whole(weight: Tensor) -> Tensor:
    """Gather a sharded weight; every process has to call this."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def sharded_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Shard a tensor as a weight is sharded; return it unchanged if the weight is not."""
    if not isinstance(weight, DTensor):
        return tensor
    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)


def whole_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Gather all weights of a model in CPU memory; every process has to call this, and keeps them if it wants."""
    weights = {}
    for name, weight in model.state_dict().items():
        gathered = whole(weight)
        if keep:
            weights[name] = gathered.cpu()
    return weights


def add_up(sums: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Add sums over all processes, in float64."""
    if accelerator.num_processes == 1:
        return sums
    totals = torch.tensor(list(sums.values()), dtype=torch.float64, device=accelerator.device)
    return dict(zip(sums, accelerator.reduce(totals, reduction="sum").tolist(), strict=True))


class _GatherWithGradient(torch.autograd.Function):
    """Gather rows of all processes; the backward pass sums the gradients of a row and hands them to its owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        first = torch.distributed.get_rank() * ctx.num_rows
        return total[first : first + ctx.num_rows]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Gather rows `(P, H)` of all processes into `(W * P, H)`; gradients flow back to each row's process."""
    gathered: Tensor = _GatherWithGradient.apply(rows)
    return gathered
