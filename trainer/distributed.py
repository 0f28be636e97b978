"""Configure sharding, gather rows and weights of all processes, and add up sums.

Shapes: P rows of a process, W processes, H hidden size.
"""

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.distributed.tensor import DTensor, distribute_tensor


def configure_sharding(plugin: Any, *, view_dropout: float = 0.0) -> None:
    """Raise for FSDP settings that cannot train the objectives, and keep losses in float32.

    By default accelerate makes each sharded module convert its outputs to half precision. Losses, which are summed
    over thousands of tokens, would then keep two digits.

    Args:
        plugin (`FullyShardedDataParallelPlugin` or `None`): Settings of accelerate if it shards; modified in place.
        view_dropout (`float`, defaults to 0.0): Dropout of the contrastive forward.

    Raises:
        ValueError: If this is FSDP1, whose flat weights include the contrastive head, or dropout is recomputed.
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


def gather_weight(weight: Tensor) -> Tensor:
    """Gather a sharded weight; every process must call this."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def shard_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Shard a tensor like a weight; return it unchanged if the weight is not sharded."""
    if not isinstance(weight, DTensor):
        return tensor
    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)


def gather_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Gather all weights in CPU memory; every process must call this, and those with `keep` get the weights."""
    weights = {}
    for name, weight in model.state_dict().items():
        gathered = gather_weight(weight)
        if keep:
            weights[name] = gathered.cpu()
    return weights


def sum_over_processes(sums: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Add up sums over all processes, in float64."""
    if accelerator.num_processes == 1:
        return sums
    totals = torch.tensor(list(sums.values()), dtype=torch.float64, device=accelerator.device)
    return dict(zip(sums, accelerator.reduce(totals, reduction="sum").tolist(), strict=True))


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Gather rows `(P, H)` of all processes into `(W * P, H)`; gradients flow back to each row's process.

    Every process computes its part of the loss from all rows, so the gradients of a row are summed over processes.
    """
    return torch.cat(all_gather(rows))
