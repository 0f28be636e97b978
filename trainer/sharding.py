"""Weights that are in parts with several processes, by FSDP2: put together, taken apart, and what is refused."""

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def check_sharding(plugin: Any) -> None:
    """Refuse the first version of FSDP, whose flat weights have no part that is the contrastive head's.

    Args:
        plugin (`FullyShardedDataParallelPlugin` or `None`): accelerate's settings, where it shards.

    Raises:
        ValueError: saying how to get the second.
    """
    version = getattr(plugin, "fsdp_version", 2)
    if version != 2:
        raise ValueError(
            f"`fsdp_version` is {version}; only FSDP2 is supported. Set `fsdp_version: 2` in the configuration of "
            "`accelerate launch`, or FSDP_VERSION=2; examples/configs/accelerate/fsdp2.yaml has it."
        )


def whole(weight: Tensor) -> Tensor:
    """A weight with the parts of all processes, each of which has to ask for it."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def parted_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """A whole tensor, in parts if a weight is."""
    if not isinstance(weight, DTensor):
        return tensor
    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)


def whole_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """All weights of a model put together in CPU memory, one after the other.

    Args:
        model (`nn.Module`): Every process has to ask for it.
        keep (`bool`): Whether this process wants them; another takes part and forgets each at once.
    """
    weights = {}
    for name, weight in model.state_dict().items():
        gathered = whole(weight)
        if keep:
            weights[name] = gathered.cpu()
    return weights


__all__ = ["check_sharding", "parted_like", "whole", "whole_weights"]
