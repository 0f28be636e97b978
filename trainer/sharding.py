"""Weights that are in parts with several processes, by FSDP2: put together, taken apart, and what is refused."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def check_sharding(plugin: Any, *, view_dropout: float = 0.0) -> None:
    """Refuse the first version of FSDP, whose flat weights have no part that is the contrastive head's.

    Args:
        plugin (`FullyShardedDataParallelPlugin` or `None`): accelerate's settings, where it shards.
        view_dropout (`float`, defaults to 0.0): Of the contrastive forward; layers that FSDP recomputes would do so
            without it.

    Raises:
        ValueError: saying how to get the second version, or which of the two to turn off.
    """
    version = getattr(plugin, "fsdp_version", 2)
    if version != 2:
        raise ValueError(
            f"`fsdp_version` is {version}; only FSDP2 is supported. Set `fsdp_version: 2` in the configuration of "
            "`accelerate launch`, or FSDP_VERSION=2; examples/configs/accelerate/fsdp2.yaml has it."
        )
    if view_dropout and getattr(plugin, "activation_checkpointing", False):
        raise ValueError(
            f"`view_dropout` is {view_dropout} and `fsdp_activation_checkpointing` is true: the layers would be "
            "recomputed with another dropout than they had. Turn one of them off."
        )


def keep_output_dtypes(plugin: Any) -> None:
    """Leave losses in float32 where weights are sharded in half precision.

    accelerate has each sharded module convert what it returns, by which losses lose all but two of their digits: they
    are summed over thousands of tokens, and over the steps until the next log. States have the dtype of the weights
    anyway.

    Args:
        plugin (`FullyShardedDataParallelPlugin` or `None`): accelerate's settings, where it shards; changed.
    """
    policy = getattr(plugin, "mixed_precision_policy", None)
    if policy is not None:
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)


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


__all__ = ["check_sharding", "keep_output_dtypes", "parted_like", "whole", "whole_weights"]
