"""Attach, save and load the projection head of the contrastive loss."""

from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_magnet.pooling_magnet import ContrastiveHead

from .distributed import sharded_like, whole

HEAD_NAME = "sscl_head"
HEAD_FILE = "sscl_head.safetensors"


def attach_contrastive_head(model: nn.Module, *, kind: str, hidden_size: int, seed: int) -> nn.Module:
    """Give a model its projection head: a trainable child in float32 that no other module calls.

    A head that the model has from an earlier training is kept, and frozen if this run trains none.

    Args:
        model (`nn.Module`): The model itself, without a wrapper of peft or of several processes.
        kind (`str`): `"tanh"` for a linear layer and tanh, `"none"` for no projection.
        hidden_size (`int`): Width of the states.
        seed (`int`): Seed of the initial weights; torch's global generator is left alone.
    """
    old_head = dict(model.named_children()).get(HEAD_NAME)
    if kind == "none":
        if old_head is not None:
            old_head.requires_grad_(False)
        return nn.Identity()
    if old_head is not None:
        return old_head.float().requires_grad_(True)
    with torch.device("meta"):  # draws no random numbers
        head = ContrastiveHead(hidden_size)
    head.to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(seed)
    bound = hidden_size**-0.5  # torch's own range for a linear layer
    for weight in head.parameters():
        nn.init.uniform_(weight, -bound, bound, generator=generator)
    model.add_module(HEAD_NAME, head.to(next(model.parameters()).device))
    if isinstance(model, PreTrainedModel):  # it collected the keys of its modules in its constructor
        own = {f"{HEAD_NAME}.{key}" for key in head._keys_to_ignore_on_save}
        model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *own}
    return head


def save_head(head: nn.Module, *, directory: str | Path, should_save: bool) -> None:
    """Write the weights of a head, if it has any, to a file of its own.

    Every process has to call this, since sharded weights are gathered; the one that `should_save` writes.
    """
    weights = {name: whole(weight.detach()) for name, weight in head.state_dict().items()}
    if weights and should_save:
        safetensors.torch.save_file(
            {name: weight.cpu().contiguous() for name, weight in weights.items()}, Path(directory) / HEAD_FILE
        )


@torch.no_grad()
def load_head(head: nn.Module, *, directory: str | Path) -> None:
    """Read the weights that `save_head` wrote; each process keeps its shard of them.

    Raises:
        ValueError: if the folder has none, or weights of other names or shapes.
    """
    weights = head.state_dict()
    if not weights:
        return
    path = Path(directory) / HEAD_FILE
    if not path.is_file():
        raise ValueError(
            f"{directory} has no {HEAD_FILE}, but the run to resume trains a contrastive head. Resume from a "
            "checkpoint of a run with the same `loss_phases` and `contrastive_head`, or start afresh."
        )
    saved = safetensors.torch.load_file(path)
    found, expected = ({name: tuple(each.shape) for name, each in some.items()} for some in (saved, weights))
    if found != expected:
        raise ValueError(
            f"{path} holds {found}, but the head of this run has {expected}. Resume from a checkpoint of a run with "
            "the same base and `contrastive_head`."
        )
    for name, weight in weights.items():
        weight.copy_(sharded_like(saved[name], weight))
