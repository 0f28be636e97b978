"""Define the training objectives, as entries of one table, and their forwards.

A token objective labels positions of a corrupted row; all token objectives share one forward in infill mode. A pair
objective compares embeddings of anchors and positives. Phases, losses, item counts, logs, checks and evaluation
iterate over `OBJECTIVES`, so a new token objective is one entry, `OBJECTIVES["mtp"] = Objective(labels=two_ahead)`.
Register it before making `MagnetTrainingArguments`, whose `loss_phases` name it.

Shapes: B rows, S tokens in a row, K token objectives, P pairs, H hidden size.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from modeling_magnet.configuration_magnet import Pooling
from modeling_magnet.losses_magnet import IGNORE_INDEX
from modeling_magnet.pooling_magnet import pool_states

from .distributed import gather_with_gradient

Batch = Mapping[str, Any]
ContrastiveSimilarity = Literal["cosine", "dot"]


# ---- Losses, summed in float32 even if the inputs have half precision ----


def token_loss(token_losses: Tensor, *, num_items: float | Tensor) -> Tensor:
    """Compute the loss of MNTP and MSG: summed cross entropies divided by a number of items.

    Args:
        token_losses (`torch.FloatTensor` of any shape): Cross entropy of each label in nats, 0 without a label.
        num_items (`float` or `torch.Tensor` of shape `()`): The divisor, for example the labels of the whole
            accumulation window and all processes.

    Returns:
        `torch.FloatTensor` of shape `()`: nats per item; without items a 0 that can be back-propagated, so that
        every process of a distributed run takes part in the collectives.

    Source: MAGNET (Khosla et al. 2025), Eq. 2 (divides by all tokens) and Eq. 4 (by sequences).
    """
    dtype = torch.promote_types(token_losses.dtype, torch.float32)  # bfloat16 cannot represent 30,000 items
    divisor = torch.as_tensor(num_items, dtype=dtype, device=token_losses.device)
    return token_losses.sum(dtype=dtype) / divisor.where(divisor > 0, 1.0)


def sscl_loss(
    anchors: Tensor,
    positives: Tensor,
    *,
    temperature: float,
    similarity: ContrastiveSimilarity = "cosine",
    targets: Tensor | None = None,
) -> Tensor:
    """Compute InfoNCE, where the positives of the other anchors are the negatives of an anchor.

    The result is the mean over anchors of `-log softmax(similarity(anchor, positives) / temperature)[target]`.

    Args:
        anchors (`torch.FloatTensor` of shape `(P, H)`): Embeddings of the sentences.
        positives (`torch.FloatTensor` of shape `(Q, H)`): Embeddings of their positives, and of further negatives.
        temperature (`float`): Divides the similarity, > 0.
        similarity (`str`): `"cosine"`, or `"dot"` for Eq. 3 as printed.
        targets (`torch.LongTensor` of shape `(P,)`): Row of the positive of each anchor; 0..P-1 by default.

    Returns:
        `torch.FloatTensor` of shape `()`: nats per anchor.

    Source: MAGNET (Khosla et al. 2025), Eq. 3; van den Oord et al. 2018 (https://huggingface.co/papers/1807.03748).
    """
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    anchors, positives = anchors.to(dtype), positives.to(dtype)
    if similarity == "cosine":
        anchors, positives = F.normalize(anchors, dim=-1), F.normalize(positives, dim=-1)
    with torch.autocast(anchors.device.type, enabled=False):  # autocast would multiply in half precision
        scores = anchors @ positives.T / temperature  # (P, Q)
    if targets is None:
        targets = torch.arange(len(anchors), device=anchors.device)
    return F.cross_entropy(scores, targets)


# ---- The table ----


def count_labels(labels: Tensor, batch: Batch, *, as_printed: bool) -> Tensor:
    """Count the labeled positions."""
    return (labels != IGNORE_INDEX).sum()


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss, and how it reads a batch; its name is its key in `OBJECTIVES`.

    Args:
        labels (`Callable`, *optional*): Maps a collated batch to a `torch.LongTensor` of shape `(B, S)`: the token
            that the output at each position predicts, -100 for none. `None` for an objective of pairs.
        count (`Callable`): Maps labels, batch and the keyword `as_printed` to the number `()` of items by which the
            summed loss is divided, over the accumulation window and all processes.
        loss (`Callable`): For tokens, maps cross entropies `(B, S)` and `num_items` to the loss `()`; for pairs, maps
            anchors `(P, H)`, positives `(Q, H)`, `temperature`, `similarity` and `targets` to it.
    """

    labels: Callable[[Batch], Tensor] | None = None
    count: Callable[..., Tensor] = count_labels
    loss: Callable[..., Tensor] = token_loss

    @property
    def reads_pairs(self) -> bool:
        """Whether the objective compares embeddings of pairs instead of predicting tokens."""
        return self.labels is None


def _count_mntp(labels: Tensor, batch: Batch, *, as_printed: bool) -> Tensor:
    """Count the selected tokens, or as printed (Eq. 2) all real tokens."""
    tokens: Tensor = batch["attention_mask"].sum()
    return tokens if as_printed else count_labels(labels, batch, as_printed=as_printed)


def _count_msg(labels: Tensor, batch: Batch, *, as_printed: bool) -> Tensor:
    """Count the span tokens, or as printed (Eq. 4) the rows that have a span."""
    has_label = labels != IGNORE_INDEX
    return (has_label.any(dim=1) if as_printed else has_label).sum()


# Masked next-token prediction, missing-span generation and self-supervised contrastive learning: MAGNET (Khosla et al.
# 2025), section 3.
OBJECTIVES: dict[str, Objective] = {
    "mntp": Objective(labels=itemgetter("mntp_labels"), count=_count_mntp),
    "msg": Objective(labels=itemgetter("msg_labels"), count=_count_msg),
    "sscl": Objective(loss=sscl_loss),
}


def token_labels(batch: Batch) -> dict[str, Tensor]:
    """Return the labels `(B, S)` of each token objective, in the order of the table."""
    return {name: entry.labels(batch) for name, entry in OBJECTIVES.items() if entry.labels is not None}


def pair_objectives() -> dict[str, Objective]:
    """Return the objectives that read pairs."""
    return {name: entry for name, entry in OBJECTIVES.items() if entry.reads_pairs}


def count_items(batch: Batch, *, as_printed: bool) -> Tensor:
    """Count the items of each token objective, by which its summed loss is divided, in one batch of one process.

    `as_printed` counts them as the paper's equations do. The result has the shape `(K,)`.

    Example:
        >>> batch = {
        ...     "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        ...     "mntp_labels": torch.tensor([[-100, -100, -100, -100], [7, -100, -100, -100]]),
        ...     "msg_labels": torch.tensor([[5, 6, -100, -100], [-100, -100, -100, -100]]),
        ... }
        >>> count_items(batch, as_printed=False).tolist()
        [1.0, 2.0]
        >>> count_items(batch, as_printed=True).tolist()
        [7.0, 1.0]
    """
    counts = [
        OBJECTIVES[name].count(labels, batch, as_printed=as_printed) for name, labels in token_labels(batch).items()
    ]
    return torch.stack(counts).float()


# ---- Forwards ----


class TargetLosses(NamedTuple):
    """The results of one forward for the labels of all token objectives, by name."""

    losses: dict[str, Tensor]  # (B, S), cross entropy in nats, in float32; 0 without a label
    hits: dict[str, Tensor] | None  # (B, S), whether the label is the most likely token; only without gradients
    hidden_states: Tensor | None  # (B, S, H), the input of the LM head; only without gradients


def forward_targets(model: nn.Module, batch: Batch) -> TargetLosses:
    """Run the model, wrapped or not, once in infill mode and return the losses of all token objectives.

    Losses without a label are part of the graph, too.
    """
    labels = token_labels(batch)
    outputs: Any = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        segment_ids=batch["segment_ids"],
        position_ids=batch["position_ids"],
        mode="infill",
        target_ids=torch.stack(list(labels.values())),  # (K, B, S)
        num_targets=batch.get("num_labels"),  # otherwise counting them synchronizes with the device
        use_cache=False,
    )
    hits = None if outputs.token_hits is None else dict(zip(labels, outputs.token_hits.unbind(), strict=True))
    hidden_states = None if torch.is_grad_enabled() else outputs.last_hidden_state
    return TargetLosses(dict(zip(labels, outputs.token_losses.unbind(), strict=True)), hits, hidden_states)


@dataclass(frozen=True, kw_only=True)
class ContrastiveSettings:
    """Settings of the contrastive forward and of the losses of pairs.

    Args:
        temperature (`float`): Divides the similarity, > 0.
        similarity (`str`): `"cosine"` or `"dot"`, see `sscl_loss`.
        dropout (`float`), recompute (`bool`), pooling (`str`): See `contrastive_embeddings`.
    """

    temperature: float
    similarity: ContrastiveSimilarity
    dropout: float
    recompute: bool
    pooling: Pooling


def contrastive_embeddings(
    model: nn.Module,
    pairs: dict[str, Any],
    *,
    head: nn.Module,
    dropout: float = 0.0,
    recompute: bool = False,
    pooling: Pooling = "last",
) -> tuple[Tensor, Tensor]:
    """Embed both sides of pairs: bidirectional attention, pooled states, and the head.

    Args:
        model (`nn.Module`): The model as training calls it, wrapped or not.
        pairs (`dict`): Output of `DataCollatorForPairs`.
        head (`nn.Module`): Projection of the states.
        dropout (`float`, defaults to 0.0): Chance of an attention weight to be dropped in training, in [0, 1).
        recompute (`bool`, defaults to `False`): Discard the activations of each mini-batch and run it again in the
            backward pass, with the same dropout. The gradients are those of the whole batch.
        pooling (`str`, defaults to `"last"`): See `pool_states`; means exclude the prompt, as in `encode`.

    Returns:
        `tuple[Tensor, Tensor]`: anchors and positives, `(P, H)` each.

    Source: MAGNET (Khosla et al. 2025), SSCL; for `recompute` GradCache (Gao et al. 2021,
    https://huggingface.co/papers/2101.06983), which stores the gradients of the embeddings; here autograd does.
    """

    pooled: dict[str, Any] = {"pooling": pooling, "prompt_length": pairs["prompt_length"]}

    def embed(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with _attention_dropout(model, dropout=dropout):
            outputs: Any = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                mode="bidirectional",
                # No position. A boolean mask would synchronize with the device.
                logits_to_keep=torch.arange(0, device=attention_mask.device),
                use_cache=False,
            )
            states = pool_states(outputs.last_hidden_state, attention_mask, **pooled)  # (rows, H)
            # Some wrappers wait for the gradients of all weights, so the LM head's empty output stays in the graph.
            return head(states + 0.0 * outputs.logits.sum())

    if "mini_batches" not in pairs:
        anchors, positives = embed(model, pairs["input_ids"], pairs["attention_mask"]).chunk(2)
        return anchors, positives
    vectors = _embed_in_mini_batches(embed, model, pairs, recompute=recompute)
    anchors, positives = torch.empty_like(vectors).index_copy(0, pairs["order"], vectors).chunk(2)
    return anchors, positives


def _embed_in_mini_batches(
    embed: Callable[..., Tensor], model: nn.Module, pairs: dict[str, Any], *, recompute: bool
) -> Tensor:
    """Return the embeddings `(2P, H)` of all texts, from the longest to the shortest."""
    vectors, start = [], 0
    for num_rows, width in pairs["mini_batches"]:
        rows = pairs["order"][start : start + num_rows]
        part = pairs["input_ids"][rows, :width], pairs["attention_mask"][rows, :width]
        start += num_rows
        if recompute and torch.is_grad_enabled():
            # An early stop would abort the forward of wrappers such as DDP.
            with set_checkpoint_early_stop(False):
                vectors.append(checkpoint(_forward_then_repeat(embed, model), *part, use_reentrant=False))
        else:
            vectors.append(embed(model, *part))
    return torch.cat(vectors)


def pair_losses(
    model: nn.Module,
    pairs: dict[str, Any],
    *,
    head: nn.Module,
    settings: ContrastiveSettings,
    num_processes: int = 1,
    process_index: int = 0,
) -> dict[str, Tensor]:
    """Return the loss `()` of each pair objective, of this process's anchors with the positives of all processes.

    Args:
        model, pairs, head: As for `contrastive_embeddings`.
        settings (`ContrastiveSettings`): Of the forward and of the losses.
        num_processes (`int`, defaults to 1): Number of processes that share positives as negatives.
        process_index (`int`, defaults to 0): Rank of this process among them.
    """
    anchors, positives = contrastive_embeddings(
        model, pairs, head=head, dropout=settings.dropout, recompute=settings.recompute, pooling=settings.pooling
    )
    positives, first = positives.float(), 0
    if num_processes > 1:
        positives, first = gather_with_gradient(positives), process_index * len(anchors)
    options: dict[str, Any] = {
        "temperature": settings.temperature,
        "similarity": settings.similarity,
        "targets": torch.arange(first, first + len(anchors), device=anchors.device),
    }
    return {name: entry.loss(anchors, positives, **options) for name, entry in pair_objectives().items()}


@contextmanager
def _attention_dropout(model: nn.Module, *, dropout: float) -> Iterator[None]:
    """Drop attention weights in this context, so that equal texts get different embeddings.

    This only has an effect in training mode. Layers recomputed in the backward pass would run without it.

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


def _forward_then_repeat(embed: Callable[..., Tensor], model: nn.Module) -> Callable[..., Tensor]:
    """Return a function that calls `embed` with the wrapped model first, and with the inner one in its repetition.

    DDP prepares for a new backward pass in each forward. During a backward pass it would wait for all gradients again.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    models = chain([model], repeat(inner))
    return lambda *part: embed(next(models), *part)
