"""What the contrastive objective needs beside the model: its head, and other processes' positives.

Shapes: P pairs, W processes, H hidden size.
"""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling_magnet.pooling_magnet import ContrastiveHead

from .sharding import parted_like, whole

HEAD_NAME = "sscl_head"
HEAD_FILE = "sscl_head.safetensors"


def attach_contrastive_head(model: nn.Module, *, kind: str, hidden_size: int, seed: int) -> nn.Module:
    """Give a model its projection head, a trainable child in float32 that no other module's forward calls.

    A model that was trained contrastively before, or saved with its head, keeps the head it has; a run without one
    leaves it as it is.

    Args:
        model (`nn.Module`): The model itself, neither wrapped for peft nor for several processes.
        kind (`str`): `"tanh"` for a linear layer and tanh, `"none"` for no projection.
        hidden_size (`int`): H, width of the states.
        seed (`int`): Seed of the first weights; torch's global generator is left alone.

    Returns:
        `nn.Module`: maps `(P, H)` to `(P, H)`.
    """
    old_head = dict(model.named_children()).get(HEAD_NAME)
    if kind == "none":
        if old_head is not None:
            old_head.requires_grad_(False)
        return nn.Identity()
    if old_head is not None:
        return old_head.float().requires_grad_(True)
    with torch.device("meta"):  # draws nothing
        head = ContrastiveHead(hidden_size)
    head.to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(seed)
    bound = hidden_size**-0.5  # torch's own range for a linear layer
    for weight in head.parameters():
        nn.init.uniform_(weight, -bound, bound, generator=generator)
    model.add_module(HEAD_NAME, head.to(next(model.parameters()).device))
    if isinstance(model, PreTrainedModel):  # which collected the keys of its modules when it was made
        own = {f"{HEAD_NAME}.{key}" for key in head._keys_to_ignore_on_save}
        model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *own}
    return head


def save_head(head: nn.Module, *, directory: str | Path, should_save: bool) -> None:
    """Write the weights of a head to a file of its own; nothing for a head without weights.

    Args:
        head (`nn.Module`): The head; sharded weights are gathered, so every process has to call this.
        directory (`str` or `Path`): Existing folder of the checkpoint.
        should_save (`bool`): Whether this process is the one that writes.
    """
    weights = {name: whole(weight.detach()) for name, weight in head.state_dict().items()}
    if weights and should_save:
        safetensors.torch.save_file(
            {name: weight.cpu().contiguous() for name, weight in weights.items()}, Path(directory) / HEAD_FILE
        )


@torch.no_grad()
def load_head(head: nn.Module, *, directory: str | Path) -> None:
    """Read the weights that `save_head` wrote; of sharded ones each process keeps its part.

    Raises:
        ValueError: if the folder has none, or weights of other names or shapes.
    """
    if not head.state_dict():
        return
    path = Path(directory) / HEAD_FILE
    if not path.is_file():
        raise ValueError(
            f"{directory} has no {HEAD_FILE}, but the run to resume trains a contrastive head. Resume from a "
            "checkpoint of a run with the same `loss_phases` and `contrastive_head`, or start afresh."
        )
    saved, weights = safetensors.torch.load_file(path), head.state_dict()
    if _shapes(saved) != _shapes(weights):
        raise ValueError(
            f"{path} holds {_shapes(saved)}, but the head of this run has {_shapes(weights)}. Resume from a "
            "checkpoint of a run with the same base and `contrastive_head`."
        )
    for name, weight in weights.items():
        weight.copy_(parted_like(saved[name], weight))


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


class _GatherWithGradient(torch.autograd.Function):
    """All-gather whose backward sums what every process asks of a row and hands it to the row's owner."""

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
    """Rows of all processes, in the order of their ranks, through which gradients flow back to where each row is from.

    Args:
        rows (`torch.FloatTensor` of shape `(P, H)`): This process's rows, as many as every other process has.

    Returns:
        `torch.FloatTensor` of shape `(W * P, H)`; `rows` itself where there is one process.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return rows
    gathered: Tensor = _GatherWithGradient.apply(rows)
    return gathered


__all__ = [
    "HEAD_FILE",
    "HEAD_NAME",
    "attach_contrastive_head",
    "gather_with_gradient",
    "load_head",
    "save_head",
]
