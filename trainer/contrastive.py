"""Embed both sides of pairs for the contrastive loss, and attach, save and load the projection head.

Shapes: P pairs, S tokens of the longest text, H hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers import PreTrainedModel

from modeling_magnet.pooling_magnet import ContrastiveHead, last_token_states

from .distributed import sharded_like, whole

HEAD_NAME = "sscl_head"
HEAD_FILE = "sscl_head.safetensors"


def contrastive_embeddings(
    model: nn.Module, pairs: dict[str, Any], *, head: nn.Module, dropout: float = 0.0, recompute: bool = False
) -> tuple[Tensor, Tensor]:
    """Embed both sides of pairs by bidirectional attention, the state of the last token and the head.

    Args:
        model (`nn.Module`): The model as it is called in training, wrapped or not.
        pairs (`dict`): What `DataCollatorForPairs` returns: `input_ids` and `attention_mask` of shape `(2P, S)`, all
            anchors before all positives, and optionally the `order` and sizes of `mini_batches`.
        head (`nn.Module`): Projection of the states.
        dropout (`float`, defaults to 0.0): See `attention_dropout`.
        recompute (`bool`, defaults to `False`): Keep the activations of no mini-batch and run each again in the
            backward pass, with the same dropout. The gradients are those of the whole batch.

    Returns:
        `tuple[Tensor, Tensor]`: anchors and positives, `(P, H)` each.

    Source: MAGNET (Khosla et al. 2025), SSCL; for `recompute` GradCache (Gao et al. 2021,
    https://huggingface.co/papers/2101.06983), which stores the embeddings' gradient where this leaves it to autograd.
    """

    def embed(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with attention_dropout(model, dropout=dropout):
            return head(_last_states(model, input_ids, attention_mask))

    ids, mask = pairs["input_ids"], pairs["attention_mask"]
    if "mini_batches" not in pairs:
        anchors, positives = embed(model, ids, mask).chunk(2)
        return anchors, positives
    vectors, start = [], 0
    for num_rows, width in pairs["mini_batches"]:
        rows = pairs["order"][start : start + num_rows]
        part = ids[rows, :width], mask[rows, :width]
        start += num_rows
        if recompute and torch.is_grad_enabled():
            # An early stop would leave wrappers such as DDP in the middle of a forward.
            with set_checkpoint_early_stop(False):
                vectors.append(checkpoint(_forward_then_repeat(embed, model), *part, use_reentrant=False))
        else:
            vectors.append(embed(model, *part))
    sorted_vectors = torch.cat(vectors)
    unsorted = torch.empty_like(sorted_vectors).index_copy(0, pairs["order"], sorted_vectors)
    anchors, positives = unsorted.chunk(2)
    return anchors, positives


@contextmanager
def attention_dropout(model: nn.Module, *, dropout: float) -> Iterator[None]:
    """Drop attention weights inside the context, so that two forwards of one text give two embeddings.

    This acts in training mode only. Layers that the backward pass recomputes would run without it.

    Args:
        model (`nn.Module`): Its modules with a field `attention_dropout` are modified until the context ends.
        dropout (`float`): Chance of an attention weight to be dropped, in [0, 1).

    Source: SimCSE (Gao et al. 2021, https://huggingface.co/papers/2104.08821); Llama has no other dropout.
    """
    layers = [module for module in model.modules() if "attention_dropout" in vars(module)] if dropout else []
    before = [vars(layer)["attention_dropout"] for layer in layers]
    for layer in layers:
        vars(layer)["attention_dropout"] = dropout
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            vars(layer)["attention_dropout"] = value


def _last_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the states `(rows, H)` of each row's last token."""
    outputs: Any = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        mode="bidirectional",
        logits_to_keep=torch.arange(0, device=attention_mask.device),  # no position; a boolean mask would synchronise
        use_cache=False,
    )
    # The LM head's empty output keeps it in the graph, for wrappers that wait for the gradients of all weights.
    return last_token_states(outputs.last_hidden_state, attention_mask) + 0.0 * outputs.logits.sum()


def _forward_then_repeat(embed: Callable[..., Tensor], model: nn.Module) -> Callable[..., Tensor]:
    """Call `embed` with the wrapped model first and with the inner one in its repetition.

    DDP takes each forward for the beginning of a step: in the middle of a backward pass it would wait for all
    gradients anew.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    models = chain([model], repeat(inner))
    return lambda *part: embed(next(models), *part)


def attach_contrastive_head(model: nn.Module, *, kind: str, hidden_size: int, seed: int) -> nn.Module:
    """Give a model its projection head: a trainable child in float32 that no other module calls.

    A head that the model has from an earlier training is kept, and frozen if this run trains none.

    Args:
        model (`nn.Module`): The model itself, without a wrapper of peft or of several processes.
        kind (`str`): `"tanh"` for a linear layer and tanh, `"none"` for no projection.
        hidden_size (`int`): H, width of the states.
        seed (`int`): Seed of the initial weights; torch's global generator is left alone.

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
    """Write the weights of a head, if it has any, to a file of its own; every process has to call this.

    Args:
        head (`nn.Module`): The head; sharded weights are gathered.
        directory (`str` or `Path`): Existing folder of the checkpoint.
        should_save (`bool`): Whether this process writes.
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


__all__ = [
    "HEAD_FILE",
    "HEAD_NAME",
    "attach_contrastive_head",
    "attention_dropout",
    "contrastive_embeddings",
    "load_head",
    "save_head",
]
