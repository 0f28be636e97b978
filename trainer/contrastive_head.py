"""Attach, save and load the projection head of the contrastive loss."""

from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_magnet.pooling_magnet import HEAD_NAME, HEAD_PREFIX, ContrastiveHead

from .distributed import gather_weight, shard_like

HEAD_FILE = f"{HEAD_NAME}.safetensors"


def attach_contrastive_head(model: nn.Module, *, kind: str, hidden_size: int, seed: int) -> nn.Module:
    """Add a trainable float32 projection head to a model, as a child that no other module calls.

    A head from an earlier training is kept, and frozen if this run trains none.

    Args:
        model (`nn.Module`): The model, not wrapped by peft or for several processes.
        kind (`str`): `"tanh"` for a linear layer and tanh, `"none"` for no projection.
        hidden_size (`int`): Width of the states.
        seed (`int`): Seed of the initial weights; torch's global generator is not used.
    """
    old_head = dict(model.named_children()).get(HEAD_NAME)
    if kind == "none":
        if old_head is not None:
            old_head.requires_grad_(False)
        return nn.Identity()
    if old_head is not None:
        return old_head.float().requires_grad_(True)
    with torch.device("meta"):  # the constructor would draw from the global generator
        head = ContrastiveHead(hidden_size)
    head.to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(seed)
    bound = hidden_size**-0.5  # as `nn.Linear` initializes itself
    for weight in head.parameters():
        nn.init.uniform_(weight, -bound, bound, generator=generator)
    model.add_module(HEAD_NAME, head.to(next(model.parameters()).device))
    if isinstance(model, PreTrainedModel):  # its constructor collects such keys, but the head was added later
        keys = {HEAD_PREFIX + key for key in head._keys_to_ignore_on_save}
        model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *keys}
    return head


def save_training_head(head: nn.Module, *, directory: str | Path, should_save: bool) -> None:
    """Write the weights of a head, if it has any, to `HEAD_FILE`.

    Every process must call this, since sharded weights are gathered; the one with `should_save` writes the file.
    """
    weights = {name: gather_weight(weight.detach()) for name, weight in head.state_dict().items()}
    if weights and should_save:
        weights = {name: weight.cpu().contiguous() for name, weight in weights.items()}
        safetensors.torch.save_file(weights, Path(directory) / HEAD_FILE)


@torch.no_grad()
def load_training_head(head: nn.Module, *, directory: str | Path) -> None:
    """Load the weights that `save_training_head` wrote; each process keeps its shard.

    Raises:
        ValueError: If there is no file.
        RuntimeError: If the names or shapes of its weights differ.
    """
    weights = head.state_dict()
    if not weights:
        return
    path = Path(directory) / HEAD_FILE
    if not path.is_file():
        raise ValueError(
            f"{directory} has no {HEAD_FILE}, but the run to resume trains a contrastive head. Resume from a "
            "checkpoint of a run with the same `loss_phases` and `contrastive_head`, or start a new run."
        )
    saved = safetensors.torch.load_file(path)
    head.load_state_dict({name: shard_like(value, weights.get(name, value)) for name, value in saved.items()})
