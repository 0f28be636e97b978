"""Compute cross entropy at the positions that have a target, without holding all logits in memory.

Logits are the largest tensor of a training step: with a vocabulary of 262,144 they are 400 times as large as states of
width 640. The LM head therefore runs on one chunk of positions at a time, and only the losses are kept. For a frozen
linear head, the gradient of the states is computed in the forward pass, while the logits exist; any other head
projects the chunk again in the backward pass.

Shapes: T targets, set or not; N positions with a target, padded; C positions of a chunk; H hidden size; V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .attention_magnet import product_dtype

IGNORE_INDEX = -100

# The number of positions of a chunk is a multiple of these, because libraries prepare a kernel for each new shape.
_CPU_ROUND, _DEVICE_ROUND = 16, 64
# On a CPU each product repacks the whole weight, so larger chunks are faster: with a weight of 262,144 x 640 in
# bfloat16, 64 positions run at 0.33 TFLOP/s, 256 at 0.54, 512 at 0.85, 1,024 at 0.98. `_CPU_BYTES` limits the logits.
_CPU_POSITIONS, _CPU_BYTES = 512, 2**28
_DEVICE_LOGITS = 2**26
# On a CPU, at most this many logits are converted to float32 at a time, so that they stay in the cache.
_CPU_BLOCK_LOGITS = 2**18

Project = Callable[[torch.Tensor], torch.Tensor]
Measured = tuple[torch.Tensor, torch.Tensor | None]  # losses, hits


class TokenLosses(NamedTuple):
    """Losses and hits in the shape of the targets."""

    losses: torch.Tensor  # float32, in nats; 0 without a target
    hits: torch.Tensor | None  # whether the target was the likeliest token; None if gradients are enabled


def token_losses(
    states: torch.Tensor,
    target_ids: torch.Tensor,
    *,
    head: nn.Module,
    vocab_size: int,
    project: Project | None = None,
    softcap: float | None = None,
    num_targets: int | None = None,
) -> TokenLosses:
    """Compute the cross entropy at each position that has a target, with memory for the logits of one chunk.

    Args:
        states (`torch.FloatTensor` of shape `(B, S, H)`): Output of the last layer.
        target_ids (`torch.LongTensor` of shape `(B, S)` or `(K, B, S)`): The token to predict at each position, or
            -100.
        head (`nn.Module`): The layer that maps states `(C, H)` to logits `(C, V)`.
        project (`Callable`, *optional*): Maps states to logits if the head and `softcap` do not suffice.
        softcap (`float`, *optional*): Logits x of the head become `softcap * tanh(x / softcap)`; not with `project`.
        num_targets (`int`, *optional*): Upper bound on the number of targets. If omitted, they are counted, which
            synchronizes with the device.

    Returns:
        `TokenLosses`: part of the graph even if no target is set.

    Raises:
        ValueError: If the shapes of targets and states differ, or, on a CPU, more than `num_targets` are set.
    """
    if target_ids.dim() not in (2, 3) or target_ids.shape[-2:] != states.shape[:2]:
        raise ValueError(
            f"`target_ids` has shape {tuple(target_ids.shape)}; expected {tuple(states.shape[:2])} or "
            f"{('K', *states.shape[:2])}: a token or -100 for each position."
        )
    targets = target_ids.to(states.device).long().flatten()  # (T,)
    is_set = targets != IGNORE_INDEX
    _check_targets(targets, vocab_size=vocab_size)
    num_targets = max(1, _bound_of_targets(is_set, num_targets))
    dtype = _product_dtype(head, states)
    chunk_size = _chunk_size(num_targets, vocab_size=vocab_size, dtype=dtype, device=states.device)
    if _is_gathered(head):  # every call gathers the weight from all processes: call the head once
        chunk_size = num_targets
    size = -(-num_targets // chunk_size) * chunk_size  # N
    indices = torch.nonzero_static(is_set, size=size, fill_value=len(targets))[:, 0]  # (N,), T for padding
    set_targets = F.pad(targets, (0, 1), value=IGNORE_INDEX)[indices]  # (N,)
    set_states = states.flatten(0, 1).index_select(0, indices % states.shape[:2].numel())  # (N, H)
    trains_head = torch.is_grad_enabled() and any(weight.requires_grad for weight in head.parameters())
    if project is None and not trains_head and _is_plain_linear(head, states):
        weight: torch.Tensor = head.weight.detach().to(dtype)  # type: ignore[operator]
        losses, hits = _with_weight(weight, set_states, set_targets, softcap=softcap, size=chunk_size)
    else:
        project = project or (lambda states: soft_cap(head(states), softcap))
        losses, hits = _with_any_head(project, set_states, set_targets, size=chunk_size)
    shape = target_ids.shape
    return TokenLosses(_scatter(losses, indices, shape), None if hits is None else _scatter(hits, indices, shape))


def _check_targets(targets: torch.Tensor, *, vocab_size: int) -> None:
    """Refuse tokens outside the vocabulary on a CPU, where PyTorch names an index of an inner tensor."""
    if targets.device.type != "cpu" or torch.compiler.is_compiling() or not targets.numel():
        return
    lowest, highest = int(targets.min()), int(targets.max())
    if highest >= vocab_size or (lowest < 0 and lowest != IGNORE_INDEX):
        raise ValueError(
            f"`target_ids` holds {highest if highest >= vocab_size else lowest}; expected tokens from 0 to "
            f"{vocab_size - 1}, or -100 for none."
        )


def _bound_of_targets(is_set: torch.Tensor, num_targets: int | None) -> int:
    """Return the caller's bound on the number of targets, checked on a CPU, or count them."""
    # Reading a value back would break a compiled graph and synchronize with an accelerator.
    is_readable = is_set.device.type == "cpu" and not torch.compiler.is_compiling()
    if num_targets is not None and not is_readable:
        return num_targets
    num_set = int(is_set.sum())
    if num_targets is not None and num_targets < num_set:
        raise ValueError(f"`num_targets` is {num_targets}, but {num_set} targets are set. Pass {num_set} or None.")
    return num_set if num_targets is None else num_targets


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Limit the absolute value of logits smoothly to `cap`, if there is one."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def check_labels_are_hidden(
    labels: torch.Tensor,
    *,
    mode: str,
    inputs_embeds: torch.Tensor,
    embed: Any,
    mask_token_id: int | None,
    shift_labels: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    segment_ids: torch.Tensor | None = None,
) -> None:
    """Raise if labels `(B, S)` ask for tokens that are visible to the positions that predict them.

    The logits of position i predict token i + 1. Outside causal mode every token attends to the context, so the input
    must replace a labeled context token, by the mask token or another one. Fewer than half of the labeled context
    tokens may be unchanged, because BERT's corruption keeps some tokens. A span token is invisible to its predictor.
    """
    tables = (labels, labels if shift_labels is None else shift_labels)
    # Reading a value back would break a compiled graph. The loss function reports wrong shapes.
    if torch.compiler.is_compiling() or any(table.shape != inputs_embeds.shape[:2] for table in tables):
        return
    targets = (labels[:, 1:] if shift_labels is None else shift_labels[:, :-1]).to(inputs_embeds.device)  # (B, S - 1)
    is_context = targets != IGNORE_INDEX  # labeled tokens of the context, without padding
    for table, kept in ((segment_ids, False), (attention_mask, True)):
        if table is not None:
            is_context = is_context & (table[:, 1 - labels.shape[1] :].bool() == kept).to(is_context.device)
    with torch.no_grad():
        is_visible = (embed(targets.clamp(min=0)) == inputs_embeds[:, 1:]).all(-1) & is_context
    if mask_token_id is not None:
        is_visible = is_visible & (targets != mask_token_id)
    num_context, num_visible = int(is_context.sum()), int(is_visible.sum())
    if num_visible and 2 * num_visible >= num_context:
        raise ValueError(
            f"{num_visible} labeled tokens of `labels` are visible to the positions that predict them in "
            f'mode={mode!r}, so the loss would measure copying. Pass mode="causal" for a left-to-right loss. '
            "Otherwise label only tokens that are in a span or replaced by the mask token, and set all others to -100."
        )


def _with_any_head(project: Project, states: torch.Tensor, targets: torch.Tensor, *, size: int) -> Measured:
    """Return losses `(N,)`, and hits `(N,)` if gradients are disabled, by calling `project` for each chunk."""
    parts = list(zip(states.split(size), targets.split(size), strict=True))
    if not torch.is_grad_enabled():
        losses, hits = zip(*[_losses_and_hits(project, *part) for part in parts], strict=True)
        return torch.cat(losses), torch.cat(hits)
    if len(parts) == 1:  # recomputing a single chunk would save no memory
        return _losses(project, states, targets), None
    return torch.cat([checkpoint(_losses, project, *part, use_reentrant=False) for part in parts]), None


def _losses(project: Project, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy `(C,)` of one chunk; 0 for padding."""
    logits = project(states)
    # The `dtype` argument converts inside the kernel, which avoids a float32 copy of the logits.
    logprobs = F.log_softmax(logits, dim=-1, dtype=_accumulation_dtype(logits.dtype))
    return F.nll_loss(logprobs, targets, reduction="none", ignore_index=IGNORE_INDEX)


def _losses_and_hits(
    project: Project, states: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of one chunk, and whether each target is the likeliest token."""
    logits = project(states)
    return _losses(lambda _: logits, states, targets), logits.argmax(-1) == targets


def _with_weight(
    weight: torch.Tensor, states: torch.Tensor, targets: torch.Tensor, *, softcap: float | None, size: int
) -> Measured:
    """Return losses `(N,)`, and hits `(N,)` if gradients are disabled, of a linear head that is not trained."""
    if torch.is_grad_enabled():
        return _FrozenHead.apply(states, targets, weight, softcap, size), None
    chunks = _logits_in_chunks(weight, states, size=size)
    measured = [_measure(logits, targets[chunk], softcap=softcap, hits=True) for chunk, logits in chunks]
    losses, hits = zip(*measured, strict=True)
    return torch.cat(losses), torch.cat(hits)


class _FrozenHead(torch.autograd.Function):
    """Compute losses `(N,)` of a frozen linear head, and already in the forward pass the gradient of its states."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, softcap: float | None, size: int
    ) -> torch.Tensor:
        losses = torch.empty(len(states), dtype=_accumulation_dtype(weight.dtype), device=states.device)
        gradient = torch.empty_like(states)
        for chunk, logits in _logits_in_chunks(weight, states, size=size):
            losses[chunk] = _measure(logits, targets[chunk], softcap=softcap, gradients=True)[0]
            gradient[chunk] = logits @ weight  # `_measure` replaced the logits by the gradient of the losses
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None, None


def _logits_in_chunks(
    weight: torch.Tensor, states: torch.Tensor, *, size: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the slice of each chunk and its logits `(C, V)` before the cap.

    On a CPU all chunks share one buffer, because allocating memory takes as much time as the product.
    """
    is_cpu = weight.device.type == "cpu"
    buffer = weight.new_empty(min(size, len(states)), len(weight)) if is_cpu else None
    for start in range(0, len(states), size):
        part = states[start : start + size].to(weight.dtype)
        out = None if buffer is None else buffer[: len(part)]
        yield slice(start, start + len(part)), torch.mm(part, weight.t(), out=out)


def _measure(
    logits: torch.Tensor, targets: torch.Tensor, *, softcap: float | None, gradients: bool = False, hits: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return losses and hits `(C,)` of a chunk; with `gradients`, overwrite its logits by those of the losses."""
    # On a CPU, split into blocks whose float32 copies fit the cache.
    step = max(1, _CPU_BLOCK_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    parts = zip(logits.split(step), targets.split(step), strict=True)
    blocks = [_measure_block(*part, softcap=softcap, gradients=gradients, hits=hits) for part in parts]
    losses, is_hit = zip(*blocks, strict=True)
    return torch.cat(losses), torch.cat(is_hit)


def _measure_block(
    logits: torch.Tensor, targets: torch.Tensor, *, softcap: float | None, gradients: bool, hits: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute one block of `_measure`.

    With capped logits c = cap * tanh(x / cap) and target t, the loss is logsumexp(c) - c[t], so that
    d loss / d c = softmax(c) - onehot(t) and d c / d x = 1 - tanh(x / cap)^2 = 1 - (c / cap)^2. Padding has the target
    0 here: `_scatter` drops its loss, so that backward multiplies its gradient by 0.
    """
    capped = soft_cap(logits, softcap)
    is_hit = capped.argmax(-1) == targets if hits else targets.new_empty(0)
    wide = capped.to(_accumulation_dtype(logits.dtype))
    if wide is logits and not gradients:
        wide = logits.clone()
    slope = None if softcap is None or not gradients else 1 - (wide / softcap).square_()
    chosen = targets.masked_fill(targets == IGNORE_INDEX, 0)[:, None]
    largest = wide.amax(-1, keepdim=True)
    distances = largest - wide.gather(1, chosen)  # before the exponentials overwrite `wide`
    exponentials = wide.sub_(largest).exp_()
    sums = exponentials.sum(-1, keepdim=True)
    if gradients:
        probabilities = exponentials.div_(sums)
        probabilities.scatter_add_(1, chosen, probabilities.new_full((1, 1), -1.0).expand_as(chosen))
        if slope is not None:
            probabilities.mul_(slope)
        if probabilities is not logits:
            logits.copy_(probabilities)
    return (distances + sums.log())[:, 0], is_hit


def _scatter(values: torch.Tensor, indices: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Scatter values to their indices in a tensor of a shape, without padding; copied, as FSDP2 warns about views."""
    return values.new_zeros(shape.numel() + 1).index_copy(0, indices, values)[:-1].reshape(shape).clone()


def _chunk_size(num_targets: int, *, vocab_size: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return the number of positions of a chunk, chosen for few chunks of equal size with little padding."""
    if device.type == "cpu":
        max_length, unit = min(_CPU_POSITIONS, _CPU_BYTES // (vocab_size * dtype.itemsize)), _CPU_ROUND
    else:
        max_length, unit = _DEVICE_LOGITS // vocab_size, _DEVICE_ROUND
    max_length = max(unit, max_length // unit * unit)
    even = -(-num_targets // -(-num_targets // max_length))
    return -(-even // unit) * unit


def _is_gathered(head: nn.Module) -> bool:
    """Return whether the weight is sharded over several processes, by FSDP2 or by DeepSpeed ZeRO-3."""
    return hasattr(head, "set_reshard_after_backward") or any(hasattr(weight, "ds_id") for weight in head.parameters())


def _is_plain_linear(head: nn.Module, states: torch.Tensor) -> bool:
    """Return whether calling a head only multiplies by a local weight, so that the call can be bypassed."""
    if type(head).forward is not nn.Linear.forward or "forward" in vars(head) or head.bias is not None:
        return False
    if any((head._forward_pre_hooks, head._forward_hooks, head._backward_pre_hooks, head._backward_hooks)):
        return False
    # A quantized weight is not exactly an `nn.Parameter`.
    is_local = type(head.weight) is nn.Parameter and head.weight.device == states.device
    return is_local and not _is_gathered(head)


def _product_dtype(head: nn.Module, states: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a head's products are computed."""
    weight = getattr(head, "weight", None)
    is_plain = isinstance(weight, torch.Tensor) and weight.is_floating_point()
    return product_dtype(weight.dtype if is_plain else states.dtype, states.device)  # type: ignore[union-attr]


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums are accumulated: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)
