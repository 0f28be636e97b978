"""Cross entropy of positions that have a target, whose logits never exist all at once.

Logits are the largest tensor of a training step: with a vocabulary of 128,000 they are 60 times as large as states of
width 2,048. Here the LM head runs on a few positions at a time, and one number of each is kept. A frozen head has its
gradient taken at once, while the logits are there; one that is trained projects again during the backward pass, which
is one product more than the three of a plain head.

Shapes: T targets, set or not; N positions with a target, padded; C positions of a chunk; H hidden size; V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100

# Chunks have a multiple of so many positions: few shapes, for libraries that prepare a product for each.
_ROUND = 64
# Logits of a chunk. On a CPU they stay in its cache; others need more of them for products at full speed.
_CPU_LOGITS, _DEVICE_LOGITS = 2**22, 2**26

Project = Callable[[torch.Tensor], torch.Tensor]


class TokenLosses(NamedTuple):
    """What became of the targets, in their shape."""

    losses: torch.Tensor  # float32, in nats; 0 where there is no target
    hits: torch.Tensor | None  # whether the target was the likeliest token; None while gradients are on


def token_losses(
    states: torch.Tensor,
    target_ids: torch.Tensor,
    *,
    head: nn.Module,
    vocab_size: int,
    project: Project | None = None,
    num_targets: int | None = None,
    chunk_size: int | None = None,
) -> TokenLosses:
    """Cross entropy at each position that has a target, with memory for the logits of one chunk.

    Args:
        states (`torch.FloatTensor` of shape `(B, S, H)`): Output of the last layer.
        target_ids (`torch.LongTensor` of shape `(B, S)` or `(K, B, S)`): The token to predict at each position, or
            -100; K of them where a position may have several.
        head (`nn.Module`): The layer that makes logits `(C, V)` of states `(C, H)`.
        vocab_size (`int`): V.
        project (`Callable`, *optional*): What makes logits of states, where that is more than the head.
        num_targets (`int`, *optional*): How many targets are set, or an upper limit. Left out, it is read from the
            device, which has to be waited for.
        chunk_size (`int`, *optional*): C, but all of them at once where several processes share the weight and the
            projection is more than the head. By default what makes 4 million logits on a CPU, 67 million elsewhere.

    Returns:
        `TokenLosses`: part of the graph even where no target is set.

    Raises:
        ValueError: targets that are no integers or of another shape than the states'; on a CPU also those that are no
            tokens, or more than `num_targets`.
    """
    if not isinstance(target_ids, torch.Tensor) or target_ids.dtype not in (torch.int64, torch.int32):
        told = target_ids.dtype if isinstance(target_ids, torch.Tensor) else type(target_ids).__name__
        raise ValueError(f"`target_ids` is {told}; expected a tensor of integers. Use `target_ids.long()`.")
    if target_ids.dim() not in (2, 3) or target_ids.shape[-2:] != states.shape[:2]:
        raise ValueError(
            f"`target_ids` has shape {tuple(target_ids.shape)} for states of {tuple(states.shape)}; pass "
            f"{tuple(states.shape[:2])}, or several of that, one token to predict or -100 for each position."
        )
    targets = target_ids.to(states.device).long().flatten()  # (T,)
    is_set = targets != IGNORE_INDEX
    if num_targets is None or targets.device.type == "cpu":
        found = int(is_set.sum())
        if found and targets.device.type == "cpu" and not torch.compiler.is_compiling():
            lowest, highest = (int(edge) for edge in targets[is_set].aminmax())
            if lowest < 0 or highest >= vocab_size:
                raise ValueError(
                    f"`target_ids` hold {lowest if lowest < 0 else highest}; expected tokens from 0 to "
                    f"{vocab_size - 1}, or {IGNORE_INDEX} where nothing is to be predicted."
                )
        if num_targets is not None and num_targets < found:
            raise ValueError(f"`num_targets` is {num_targets}, but {found} targets are set. Pass as many, or None.")
        num_targets = found if num_targets is None else num_targets
    rows = chunk_size or _chunk_size(max(num_targets, 1), vocab_size=vocab_size, device=states.device)
    is_gathered = _is_gathered(head)
    if is_gathered and project is not None:
        rows = max(num_targets, 1)  # the projection calls the head, which is to be called once
    padded = -(-max(num_targets, 1) // rows) * rows  # N
    places = torch.nonzero_static(is_set, size=padded, fill_value=len(targets))[:, 0]  # (N,), T for padding
    wanted = F.pad(targets, (0, 1), value=IGNORE_INDEX)[places]  # (N,)
    picked = states.flatten(0, 1).index_select(0, places % states.shape[:2].numel())  # (N, H)
    is_bare = project is None and _is_bare(head, is_gathered=is_gathered)
    measure = partial(_in_chunks, targets=wanted, rows=rows, head=head if is_bare else None)
    if is_gathered and project is None:
        losses, hits = _within(head, picked, measure)
    else:
        losses, hits = measure(picked, project=project or head)
    return TokenLosses(
        losses=_put(losses, places, like=target_ids),
        hits=None if hits is None else _put(hits, places, like=target_ids),
    )


def _in_chunks(
    states: torch.Tensor, *, project: Project, targets: torch.Tensor, rows: int, head: nn.Module | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Losses `(N,)`, and hits `(N,)` where gradients are off; with the head, if projecting is nothing more."""
    if torch.is_grad_enabled() and _is_frozen(head, states):
        assert isinstance(head, nn.Linear)
        return _FrozenHead.apply(states, targets, head.weight, head.bias, rows), None
    parts = list(zip(states.split(rows), targets.split(rows), strict=True))
    if torch.is_grad_enabled():
        if len(parts) == 1:  # needs as much memory kept as made again
            return _losses(project, states, targets), None
        return torch.cat([checkpoint(_losses, project, *part, use_reentrant=False) for part in parts]), None
    losses, hits = zip(*[_losses_and_hits(project, *part) for part in parts], strict=True)
    return torch.cat(losses), torch.cat(hits)


def _within(head: nn.Module, states: torch.Tensor, measure: Callable[..., Any]) -> Any:
    """Measure inside the one call of a head whose weight is gathered for each.

    Processes have different numbers of chunks: a call for each would let them wait for one another, and, with weights
    that several modules share the gathering of, be out of step.
    """
    own = vars(head).get("forward")
    forward = head.forward

    def measure_once(states: torch.Tensor) -> Any:
        return measure(states, project=forward)

    vars(head)["forward"] = measure_once
    try:
        return head(states)
    finally:
        del vars(head)["forward"]
        if own is not None:
            vars(head)["forward"] = own


class _FrozenHead(torch.autograd.Function):
    """Losses `(N,)` of a linear layer without gradient; that of the states is made beside them, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, bias: Any, rows: int
    ) -> torch.Tensor:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        losses = torch.empty(len(states), dtype=_wide(dtype), device=states.device)
        gradient = torch.empty_like(states)
        with torch.autocast(device, enabled=False):  # which would convert the weight for every chunk
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
            for start in range(0, len(states), rows):
                part = slice(start, start + rows)
                chosen = targets[part].masked_fill(targets[part] == IGNORE_INDEX, 0)[:, None]
                logits = F.linear(states[part].to(dtype), weight, bias)
                logprobs = F.log_softmax(logits, dim=-1, dtype=_wide(dtype))  # (C, V)
                losses[part] = -logprobs.gather(1, chosen)[:, 0]
                errors = logprobs.exp_()
                errors.scatter_add_(1, chosen, errors.new_full((1, 1), -1.0).expand_as(chosen))
                gradient[part] = errors.to(dtype) @ weight
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None, None


def _losses(project: Project, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy `(C,)` of one chunk; 0 for padding."""
    logits = project(states)
    # The dtype argument converts inside the kernel: no float32 copy of the logits beside their logarithms.
    logprobs = F.log_softmax(logits, dim=-1, dtype=_wide(logits.dtype))
    return F.nll_loss(logprobs, targets, reduction="none", ignore_index=IGNORE_INDEX)


def _losses_and_hits(
    project: Project, states: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and whether the target is the likeliest token."""
    logits = project(states)
    return _losses(lambda _: logits, states, targets), logits.argmax(-1) == targets


def _put(values: torch.Tensor, places: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """Values of the chosen positions in the targets' shape, without the padding; a copy: FSDP2 warns of views."""
    return values.new_zeros(like.numel() + 1).index_copy(0, places, values)[:-1].reshape(like.shape).clone()


def _chunk_size(num_targets: int, *, vocab_size: int, device: torch.device) -> int:
    """Positions of a chunk: as few chunks as the logits' limit allows, of one size, with little padding."""
    most = (_CPU_LOGITS if device.type == "cpu" else _DEVICE_LOGITS) // vocab_size
    most = max(_ROUND, most // _ROUND * _ROUND)
    even = -(-num_targets // -(-num_targets // most))
    return -(-even // _ROUND) * _ROUND


def _is_gathered(head: nn.Module) -> bool:
    """Whether a head's weight is in parts with several processes: by FSDP2 or by DeepSpeed's third stage."""
    return hasattr(head, "set_reshard_after_backward") or any(hasattr(weight, "ds_id") for weight in head.parameters())


def _is_bare(head: nn.Module, *, is_gathered: bool) -> bool:
    """Whether nothing but the head's class says what calling it does: neither hooks nor a forward put in its place.

    Hooks of a head whose weight is gathered are those that gather it; they run around the measuring.
    """
    hooks = (head._forward_pre_hooks, head._forward_hooks, head._backward_pre_hooks, head._backward_hooks)
    return "forward" not in vars(head) and (is_gathered or not any(hooks))


def _is_frozen(head: nn.Module | None, states: torch.Tensor) -> bool:
    """Whether a head is a plain linear layer without gradient whose weight is whole and here."""
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return False  # adapted or quantised
    is_frozen = not any(parameter.requires_grad for parameter in head.parameters())
    is_plain = type(head.weight) is nn.Parameter
    return is_frozen and is_plain and states.requires_grad and head.weight.device == states.device


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums."""
    return torch.promote_types(dtype, torch.float32)


__all__ = ["IGNORE_INDEX", "TokenLosses", "token_losses"]
