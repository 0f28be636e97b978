"""The two views of each pair as vectors: all at once, or mini-batch by mini-batch with the memory of one.

Shapes: P pairs, S tokens of the longest text, H hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from modeling_magnet.pooling_magnet import last_token_states


@contextmanager
def dropout_views(model: nn.Module, *, dropout: float) -> Iterator[None]:
    """Drop attention weights with the given chance, so that two forwards of one text are two views of it.

    Only the forward inside the context is affected, and only in training mode. Layers that recompute themselves during
    the backward pass would do so without it.

    Args:
        model (`nn.Module`): Its modules with a field `attention_dropout` are changed until the context ends.
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


def contrastive_views(
    model: nn.Module, pairs: dict[str, Any], *, head: nn.Module, dropout: float = 0.0, recompute: bool = False
) -> tuple[Tensor, Tensor]:
    """Represent both sides of pairs: bidirectional attention, the last token's state, the head.

    Args:
        model (`nn.Module`): The model as it is called in training, wrapped or not.
        pairs (`dict`): `input_ids` and `attention_mask` of shape `(2P, S)`, all anchors before all positives; and,
            where they are to be read in mini-batches, `order` of shape `(2P,)` and `mini_batches`, the number of rows
            and of columns of each (see `DataCollatorForPairs`).
        head (`nn.Module`): Projection of the states.
        dropout (`float`, defaults to 0.0): See `dropout_views`.
        recompute (`bool`, defaults to `False`): Keep the activations of no mini-batch: each runs once more during the
            backward pass, with the same dropout. The gradients are those of the whole batch.

    Returns:
        `tuple[Tensor, Tensor]`: anchors and positives, `(P, H)` each.

    Source: MAGNET (Khosla et al. 2025), SSCL; for `recompute` GradCache (Gao et al. 2021,
    https://huggingface.co/papers/2101.06983), which stores the gradient of the vectors where we let autograd do so.
    """

    def represent(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with dropout_views(model, dropout=dropout):
            return head(_last_states(model, input_ids, attention_mask))

    ids, mask = pairs["input_ids"], pairs["attention_mask"]
    if "mini_batches" not in pairs:
        anchors, positives = represent(model, ids, mask).chunk(2)
        return anchors, positives
    vectors, start = [], 0
    for num_rows, width in pairs["mini_batches"]:
        rows = pairs["order"][start : start + num_rows]
        part = ids[rows, :width], mask[rows, :width]
        start += num_rows
        if recompute and torch.is_grad_enabled():
            # A repetition that is broken off would leave wrappers in the midst of a forward.
            with set_checkpoint_early_stop(False):
                vectors.append(checkpoint(_twice(represent, model), *part, use_reentrant=False))
        else:
            vectors.append(represent(model, *part))
    read = torch.cat(vectors)
    anchors, positives = torch.empty_like(read).index_copy(0, pairs["order"], read).chunk(2)
    return anchors, positives


def _last_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """States `(rows, H)` of each row's last token."""
    outputs: Any = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        mode="bidirectional",
        logits_to_keep=torch.arange(0, device=attention_mask.device),  # none; a boolean mask would be read back
        use_cache=False,
    )
    # The LM head saw no position. Its empty output keeps it in the graph, for wrappers that count gradients.
    return last_token_states(outputs.last_hidden_state, attention_mask) + 0.0 * outputs.logits.sum()


def _twice(represent: Callable[..., Tensor], model: nn.Module) -> Callable[..., Tensor]:
    """`represent` for a forward and its repetition.

    DDP takes a forward for the begin of a step and would await all gradients anew, in the midst of the backward pass
    that makes them: the repetition goes around it.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    models = chain([model], repeat(inner))
    return lambda *part: represent(next(models), *part)


__all__ = ["contrastive_views", "dropout_views"]
