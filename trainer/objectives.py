"""Define the training objectives as entries of one table, the phases that weigh them, and what they compute.

A token objective labels positions of a corrupted row; all token objectives share one forward in infill mode. A pair
objective compares embeddings of anchors and positives. Phases, losses, item counts, logs, checks and evaluation walk
`OBJECTIVES`, so a new token objective is one entry, `OBJECTIVES["mtp"] = Objective(labels=two_ahead)`. Register it
before making `MagnetTrainingArguments`, whose `loss_phases` name it.

Shapes: B rows, S tokens in a row, K token objectives, P pairs, H hidden size.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from modeling_magnet.pooling_magnet import last_token_states

from .corruption import IGNORE_INDEX
from .distributed import gather_with_gradient

Batch = Mapping[str, Any]

MOST_STEPS = 2**53  # the largest whole number that a float counts to
_POSITIONS = ("mntp", "sscl", "msg")  # of the short spelling of a phase: the paper's l1, l2 and l3
_SPELLING = "'800: mntp=1 sscl=9 msg=1', or as 'steps:mntp,sscl,msg' in short"


# ---- Losses: functions of tensors, summed in float32 for half-precision inputs too ----


def token_loss(token_losses: Tensor, *, num_items: float | Tensor) -> Tensor:
    """Divide summed cross entropies by a number of items; the loss of MNTP and MSG.

    Args:
        token_losses (`torch.FloatTensor` of any shape): Cross entropy of each label in nats, 0 where there is none.
        num_items (`float` or `torch.Tensor` of shape `()`): The divisor, for example the labels of the whole
            accumulation window and all processes.

    Returns:
        `torch.FloatTensor` of shape `()`: nats per item. Without items it is a 0 that can be back-propagated, so that
        no process of a distributed run is missing from a collective.

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
    similarity: Literal["cosine", "dot"] = "cosine",
    targets: Tensor | None = None,
) -> Tensor:
    """Compute InfoNCE: the other anchors' positives are an anchor's negatives.

    The result is the mean over anchors of `-log softmax(similarity(anchor, positives) / temperature)[target]`.

    Args:
        anchors (`torch.FloatTensor` of shape `(P, H)`): Embeddings of the sentences.
        positives (`torch.FloatTensor` of shape `(Q, H)`): Embeddings of their partners and of further negatives.
        temperature (`float`): Divides the similarity, > 0.
        similarity (`str`): `"cosine"`, or `"dot"` for Eq. 3 as printed.
        targets (`torch.LongTensor` of shape `(P,)`): Row of each anchor's own positive; 0..P-1 by default.

    Returns:
        `torch.FloatTensor` of shape `()`: nats per anchor; 0 without anchors.
    """
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    anchors, positives = anchors.to(dtype), positives.to(dtype)
    if not len(anchors):
        return anchors.sum() + 0.0 * positives.sum()
    if similarity == "cosine":
        anchors, positives = F.normalize(anchors, dim=-1), F.normalize(positives, dim=-1)
    with torch.autocast(anchors.device.type, enabled=False):  # autocast would multiply in half precision
        scores = anchors @ positives.T / temperature  # (P, Q)
    if targets is None:
        targets = torch.arange(len(anchors), device=anchors.device)
    return F.cross_entropy(scores, targets)


# ---- The table ----


def count_labels(labels: Tensor, batch: Batch, normalization: str | None) -> Tensor:
    """Count the labelled positions."""
    return (labels != IGNORE_INDEX).sum()


def _no_remedy(settings: Any) -> None:
    """Return `None`: labels of this objective do not depend on the corruption."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One loss and how it reads a batch; its name is its key in `OBJECTIVES`.

    Args:
        labels (`Callable`, *optional*): Maps a collated batch to a `torch.LongTensor` of shape `(B, S)`: the token
            that the output at each position predicts, -100 for none. Left out for an objective of pairs.
        count (`Callable`): Maps labels, batch and the name of a normalization to the number `()` of items by which the
            summed loss is divided, over the accumulation window and all processes.
        loss (`Callable`): For tokens, maps cross entropies `(B, S)` and `num_items` to the loss `()`; for pairs, maps
            anchors `(P, H)`, positives `(Q, H)`, `temperature`, `similarity` and `targets` to it.
        remedy (`Callable`): Maps the fields of `CorruptionSettings` to what the user should change if they never
            produce a label, else to `None`.
    """

    labels: Callable[[Batch], Tensor] | None = None
    count: Callable[[Tensor, Batch, str | None], Tensor] = count_labels
    loss: Callable[..., Tensor] = token_loss
    remedy: Callable[[Any], str | None] = _no_remedy


def _count_mntp(labels: Tensor, batch: Batch, normalization: str | None) -> Tensor:
    """Count the selected tokens, or with `"tokens"` all real tokens (Eq. 2)."""
    tokens: Tensor = batch["attention_mask"].sum()
    return tokens if normalization == "tokens" else count_labels(labels, batch, normalization)


def _count_msg(labels: Tensor, batch: Batch, normalization: str | None) -> Tensor:
    """Count the span tokens, or with `"sequence"` the rows that have a span (Eq. 4)."""
    if normalization == "sequence":
        return (labels != IGNORE_INDEX).any(dim=1).sum()
    return count_labels(labels, batch, normalization)


def _mntp_remedy(settings: Any) -> str | None:
    never = settings.mask_ratio == 0 or settings.causal_ratio == 1
    return "Raise `mask_ratio`, lower `causal_ratio`" if never else None


def _msg_remedy(settings: Any) -> str | None:
    return "Raise `max_spans` or `causal_ratio`" if settings.max_spans == settings.causal_ratio == 0 else None


# Masked next-token prediction, missing-span generation and self-supervised contrastive learning: MAGNET (Khosla et al.
# 2025), section 3.
OBJECTIVES: dict[str, Objective] = {
    "mntp": Objective(labels=itemgetter("mntp_labels"), count=_count_mntp, remedy=_mntp_remedy),
    "msg": Objective(labels=itemgetter("msg_labels"), count=_count_msg, remedy=_msg_remedy),
    "sscl": Objective(loss=sscl_loss),
}


def token_labels(batch: Batch) -> dict[str, Tensor]:
    """Return the labels `(B, S)` of each token objective, in the order of the table."""
    return {name: each.labels(batch) for name, each in OBJECTIVES.items() if each.labels is not None}


def pair_objectives() -> dict[str, Objective]:
    """Return the objectives that read pairs."""
    return {name: each for name, each in OBJECTIVES.items() if each.labels is None}


def count_items(batch: Batch, *, normalization: Mapping[str, str]) -> Tensor:
    """Count what the sum of each token objective is divided by, for one batch of one process.

    `normalization` says for each objective how its items are counted. The result has the shape `(K,)`.

    Example:
        >>> batch = {
        ...     "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        ...     "mntp_labels": torch.tensor([[-100, -100, -100, -100], [7, -100, -100, -100]]),
        ...     "msg_labels": torch.tensor([[5, 6, -100, -100], [-100, -100, -100, -100]]),
        ... }
        >>> count_items(batch, normalization={}).tolist()
        [1.0, 2.0]
        >>> count_items(batch, normalization={"mntp": "tokens", "msg": "sequence"}).tolist()
        [7.0, 1.0]
    """
    counts = [
        OBJECTIVES[name].count(labels, batch, normalization.get(name)) for name, labels in token_labels(batch).items()
    ]
    return torch.stack(counts).float()


# ---- Phases: how much each objective weighs, for how many optimizer steps ----


@dataclass(frozen=True, init=False)
class LossPhase:
    """Weights of the objectives for a number of optimizer steps.

    Args:
        steps (`int`): Optimizer steps, >= 1.
        weights (`float`): One keyword for each objective, >= 0; objectives left out weigh 0.

    Example:
        >>> phase = LossPhase(800, mntp=1, sscl=9)
        >>> phase.weights, phase.sscl, phase.msg, phase.uses_pairs
        ({'mntp': 1, 'sscl': 9}, 9, 0.0, True)
    """

    steps: int
    weights: dict[str, float]  # without zeros

    def __init__(self, steps: int, **weights: float) -> None:
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "weights", {name: weight for name, weight in weights.items() if weight != 0})

    def __getattr__(self, name: str) -> float:
        # Copying and unpickling look attributes up before there are any.
        if name in OBJECTIVES and "weights" in vars(self):
            return self.weights.get(name, 0.0)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @cached_property
    def uses_tokens(self) -> bool:
        """Whether an objective of tokens has a weight."""
        return any(OBJECTIVES[name].labels is not None for name in self.weights)

    @cached_property
    def uses_pairs(self) -> bool:
        """Whether an objective of pairs has a weight."""
        return any(OBJECTIVES[name].labels is None for name in self.weights)


def parse_phases(entries: Sequence[str]) -> tuple[LossPhase, ...]:
    """Read phases as they are written on a command line.

    Args:
        entries (list of `str`): One for each phase, in order: `"800: mntp=1 sscl=9 msg=1"`, or in short
            `"800:1,9,1"` with the weights of MNTP, SSCL and MSG.

    Raises:
        ValueError: listing every mistake in every entry.

    Example:
        >>> parse_phases(["3400: mntp=1 msg=1", "800:1,9,1"])[1]
        LossPhase(steps=800, weights={'mntp': 1.0, 'sscl': 9.0, 'msg': 1.0})
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence) or not len(entries):
        raise ValueError(f"The loss phases are {entries!r}; pass a list of at least one, such as {_SPELLING}.")
    phases, complaints = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            phase = _read_phase(str(entry))
        except (ValueError, TypeError):  # a TypeError for an objective called `steps`
            complaints.append(f"phase {number}, {entry!r}: write it as {_SPELLING}.")
            continue
        phases.append(phase)
        complaints += [f"phase {number}, {entry!r}: {complaint}" for complaint in _complaints_about(phase)]
    if complaints:
        raise ValueError("\n- ".join(["The loss phases cannot be used:", *complaints]))
    return tuple(phases)


def pair_steps_before(phases: Sequence[LossPhase], step: int) -> int:
    """Count the steps with pairs among the first `step` optimizer steps.

    This is the position in the sequence of pair batches, so that no checkpoint needs to hold it. The last phase stays
    in force after its end.

    Example:
        >>> pair_steps_before(parse_phases(["3400: mntp=1 msg=1", "800: mntp=1 sscl=9"]), 3500)
        100
    """
    count = 0
    for phase in phases[:-1]:
        steps_in_phase = min(step, phase.steps)
        count += steps_in_phase if phase.uses_pairs else 0
        step -= steps_in_phase
    return count + (step if phases[-1].uses_pairs else 0)


def _read_phase(entry: str) -> LossPhase:
    """Parse one entry of either spelling; raise a ValueError if it is malformed."""
    steps, text = entry.split(":")
    named: Iterable[Sequence[str]] = zip(_POSITIONS, text.split(","), strict=True)
    if "=" in text:
        named = [part.split("=") for part in text.split()]
    weights: dict[str, float] = {}
    for name, weight in named:
        if name in weights:
            raise ValueError(f"{name} is given twice")
        weights[name] = float(weight)
    return LossPhase(int(steps), **weights)


def _complaints_about(phase: LossPhase) -> Iterator[str]:
    """Yield what is wrong with the steps and weights of a phase."""
    if not 1 <= phase.steps <= MOST_STEPS:
        digits = str(phase.steps)
        yield f"{digits if len(digits) < 20 else f'{len(digits)} digits of'} steps; pass 1 to {MOST_STEPS}."
    for name, weight in phase.weights.items():
        if name not in OBJECTIVES:
            yield f"there is no objective {name!r}; name some of {', '.join(OBJECTIVES)}."
        if not (weight >= 0 and math.isfinite(weight)):
            yield f"the weight of {name} is {weight}; pass a finite number, 0 or above."
    if not phase.weights:
        yield "all weights are 0; give one objective a weight."


# ---- Forwards ----


class TargetLosses(NamedTuple):
    """What one forward gives for the labels of all token objectives, by name."""

    losses: dict[str, Tensor]  # (B, S), cross entropy in nats, in float32; 0 where there is no label
    hits: dict[str, Tensor] | None  # (B, S), whether the label is the likeliest token; only where gradients are off
    states: Tensor | None  # (B, S, H), the input of the LM head; only where gradients are off


def forward_targets(model: nn.Module, batch: Batch) -> TargetLosses:
    """Run the model, wrapped or not, once in infill mode and return the losses of all token objectives.

    They are part of the graph even where there is no label.
    """
    labels = token_labels(batch)
    outputs: Any = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        segment_ids=batch["segment_ids"],
        position_ids=batch["position_ids"],
        mode="infill",
        target_ids=torch.stack(list(labels.values())),  # (K, B, S)
        num_targets=batch.get("num_labels"),  # spares a GPU a synchronisation
        use_cache=False,
    )
    hits = None if outputs.token_hits is None else dict(zip(labels, outputs.token_hits.unbind(), strict=True))
    states = None if torch.is_grad_enabled() else outputs.last_hidden_state
    return TargetLosses(dict(zip(labels, outputs.token_losses.unbind(), strict=True)), hits, states)


def contrastive_embeddings(
    model: nn.Module, pairs: dict[str, Any], *, head: nn.Module, dropout: float = 0.0, recompute: bool = False
) -> tuple[Tensor, Tensor]:
    """Embed both sides of pairs by bidirectional attention, the state of the last token and the head.

    Args:
        model (`nn.Module`): The model as it is called in training, wrapped or not.
        pairs (`dict`): What `DataCollatorForPairs` returns: `input_ids` and `attention_mask` of shape `(2P, S)`, all
            anchors before all positives, and optionally the `order` and sizes of `mini_batches`.
        head (`nn.Module`): Projection of the states.
        dropout (`float`, defaults to 0.0): Chance of an attention weight to be dropped in training, in [0, 1).
        recompute (`bool`, defaults to `False`): Keep the activations of no mini-batch and run each again in the
            backward pass, with the same dropout. The gradients are those of the whole batch.

    Returns:
        `tuple[Tensor, Tensor]`: anchors and positives, `(P, H)` each.

    Source: MAGNET (Khosla et al. 2025), SSCL; for `recompute` GradCache (Gao et al. 2021,
    https://huggingface.co/papers/2101.06983), which stores the embeddings' gradient where this leaves it to autograd.
    """

    def embed(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with _attention_dropout(model, dropout=dropout):
            outputs: Any = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                mode="bidirectional",
                # No position; a boolean mask would synchronise.
                logits_to_keep=torch.arange(0, device=attention_mask.device),
                use_cache=False,
            )
            states = last_token_states(outputs.last_hidden_state, attention_mask)  # (rows, H)
            # The LM head's empty output keeps it in the graph: some wrappers wait for the gradients of all weights.
            return head(states + 0.0 * outputs.logits.sum())

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


def pair_losses(
    model: nn.Module, pairs: dict[str, Any], *, head: nn.Module, args: Any, num_processes: int = 1
) -> dict[str, Tensor]:
    """Return the loss `()` of each pair objective: this process's anchors against the positives of all processes.

    Args:
        model, pairs, head: As for `contrastive_embeddings`.
        args (`MagnetTrainingArguments`): Temperature, similarity, dropout and recomputation.
        num_processes (`int`, defaults to 1): Processes whose positives are negatives.
    """
    anchors, positives = contrastive_embeddings(
        model, pairs, head=head, dropout=args.view_dropout, recompute=args.contrastive_recompute
    )
    positives, first = positives.float(), 0
    if num_processes > 1:
        positives, first = gather_with_gradient(positives), args.process_index * len(anchors)
    options = {
        "temperature": args.temperature,
        "similarity": "dot" if args.losses_as_printed else "cosine",
        "targets": torch.arange(first, first + len(anchors), device=anchors.device),
    }
    return {name: each.loss(anchors, positives, **options) for name, each in pair_objectives().items()}


@contextmanager
def _attention_dropout(model: nn.Module, *, dropout: float) -> Iterator[None]:
    """Drop attention weights inside the context, so that two forwards of one text give two embeddings.

    This acts in training mode only. Layers that the backward pass recomputes would run without it.

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
    """Call `embed` with the wrapped model first and with the inner one in its repetition.

    DDP takes each forward for the beginning of a step: in the middle of a backward pass it would wait for all
    gradients anew.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    models = chain([model], repeat(inner))
    return lambda *part: embed(next(models), *part)
