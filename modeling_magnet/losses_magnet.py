"""Cross entropy of positions that have a target, whose logits never exist all at once.

Logits are the largest tensor of a training step: with a vocabulary of 262,144 they are 400 times as large as states of
width 640. Here the LM head runs on a few positions at a time, and one number of each is kept. The weight of a linear
head is converted to the dtype of the products once. A frozen head has its gradient computed at once, while the logits
exist; one that is trained projects again during the backward pass, one product more than the three of a plain head.

Shapes: T targets, set or not; N positions with a target, padded; C positions of a chunk; H hidden size; V vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .attention_magnet import product_dtype

IGNORE_INDEX = -100

# Chunks have a multiple of this many positions: few shapes, for libraries that prepare a product for each.
_CPU_ROUND, _DEVICE_ROUND = 16, 64
# On a CPU a product repacks the whole weight, so that more positions at a time make it faster: with a weight of
# 262,144 x 640 in bfloat16, 64 positions run at 0.33 TFLOP/s, 256 at 0.54, 512 at 0.85, 1,024 at 0.98. The bytes are
# those of the logits of a chunk.
_CPU_POSITIONS, _CPU_BYTES = 512, 2**28
_DEVICE_LOGITS = 2**26
# What is computed in float32 of a chunk on a CPU, a few positions at a time, so that it stays in the cache.
_CPU_BLOCK_LOGITS = 2**18

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
    softcap: float | None = None,
    num_targets: int | None = None,
    chunk_size: int | None = None,
) -> TokenLosses:
    """Compute the cross entropy at each position that has a target, with memory for the logits of one chunk.

    Args:
        states (`torch.FloatTensor` of shape `(B, S, H)`): Output of the last layer.
        target_ids (`torch.LongTensor` of shape `(B, S)` or `(K, B, S)`): The token to predict at each position, or
            -100. head (`nn.Module`): The layer that makes logits `(C, V)` of states `(C, H)`. project (`Callable`,
            *optional*): What makes logits of states, where that is more than the head and `softcap`. softcap (`float`,
            *optional*): Logits x of the head become `softcap * tanh(x / softcap)`; not with `project`. num_targets
            (`int`, *optional*): At least how many targets are set. Without it, a device is waited for. chunk_size
            (`int`, *optional*): C; by default what `_chunk_size` returns.

    Returns:
        `TokenLosses`: part of the graph even where no target is set.

    Raises:
        ValueError: targets that are not integers of the states' shape; on a CPU also those that are not tokens, or
            more than `num_targets`.
    """
    _check_shape(target_ids, states)
    targets = target_ids.to(states.device).long().flatten()  # (T,)
    is_set = targets != IGNORE_INDEX
    num_targets = _counted(targets, is_set, num_targets, vocab_size=vocab_size)
    width = vocab_size * _product_dtype(head, states).itemsize
    rows = chunk_size or _chunk_size(max(num_targets, 1), vocab_size=vocab_size, width=width, device=states.device)
    is_gathered = _is_gathered(head)
    if is_gathered and project is not None:
        rows = max(num_targets, 1)  # the projection calls the head, which is to be called once
    padded = -(-max(num_targets, 1) // rows) * rows  # N
    places = torch.nonzero_static(is_set, size=padded, fill_value=len(targets))[:, 0]  # (N,), T for padding
    wanted = F.pad(targets, (0, 1), value=IGNORE_INDEX)[places]  # (N,)
    picked = states.flatten(0, 1).index_select(0, places % states.shape[:2].numel())  # (N, H)
    is_bare = project is None and _is_bare(head, is_gathered=is_gathered)
    measure = partial(_in_chunks, targets=wanted, rows=rows, head=head if is_bare else None, softcap=softcap)
    if is_gathered and project is None:
        losses, hits = _within(head, picked, measure)
    else:
        losses, hits = measure(picked, project=project or head)
    return TokenLosses(
        losses=_put(losses, places, like=target_ids),
        hits=None if hits is None else _put(hits, places, like=target_ids),
    )


def _check_shape(target_ids: Any, states: torch.Tensor) -> None:
    """Refuse targets that are not integers of the states' shape."""
    if not isinstance(target_ids, torch.Tensor) or target_ids.dtype not in (torch.int64, torch.int32):
        given = target_ids.dtype if isinstance(target_ids, torch.Tensor) else type(target_ids).__name__
        raise ValueError(f"`target_ids` is {given}; expected a tensor of integers. Use `target_ids.long()`.")
    if target_ids.dim() not in (2, 3) or target_ids.shape[-2:] != states.shape[:2]:
        raise ValueError(
            f"`target_ids` has shape {tuple(target_ids.shape)} for states of {tuple(states.shape)}; pass "
            f"{tuple(states.shape[:2])}, or several of that, one token to predict or -100 for each position."
        )


def _counted(targets: torch.Tensor, is_set: torch.Tensor, num_targets: int | None, *, vocab_size: int) -> int:
    """Return how many targets are set, or the caller's limit; on a CPU both are checked."""
    # Reading a value back would break a compiled graph, and make the host wait for an accelerator.
    is_readable = targets.device.type == "cpu" and not torch.compiler.is_compiling()
    if num_targets is not None and not is_readable:
        return num_targets
    found = int(is_set.sum())
    if found and is_readable:
        lowest, highest = (int(edge) for edge in targets[is_set].aminmax())
        if lowest < 0 or highest >= vocab_size:
            raise ValueError(
                f"`target_ids` hold {lowest if lowest < 0 else highest}; expected tokens from 0 to "
                f"{vocab_size - 1}, or {IGNORE_INDEX} where nothing is to be predicted."
            )
    if num_targets is not None and num_targets < found:
        raise ValueError(f"`num_targets` is {num_targets}, but {found} targets are set. Pass as many, or None.")
    return found if num_targets is None else num_targets


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Return logits softly limited to `cap` in size, or unchanged without a cap."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _in_chunks(
    states: torch.Tensor,
    *,
    project: Project,
    targets: torch.Tensor,
    rows: int,
    head: nn.Module | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return losses `(N,)`, and hits `(N,)` where gradients are off; `head` only if it is the whole projection."""
    is_training = torch.is_grad_enabled()
    if _is_linear(head, states):
        assert isinstance(head, nn.Linear)
        is_frozen = not any(parameter.requires_grad for parameter in head.parameters())
        # A trained head with a single chunk needs as much memory for logits that are kept as for those made again, and
        # the weight of one that is gathered for each call is not there between the calls.
        if not is_training or is_frozen or (len(states) > rows and not _is_gathered(head)):
            dtype = _product_dtype(head, states)
            bias = None if head.bias is None else head.bias.detach().to(dtype)
            linear = _Linear(head.weight.detach().to(dtype), bias, softcap)
            if not is_training:
                return _losses_and_hits_of(linear, states, targets, rows=rows)
            if is_frozen:
                return _FrozenHead.apply(states, targets, linear, rows), None
            return _TrainedHead.apply(states, targets, head.weight, head.bias, linear, rows), None
    capped = project if softcap is None else lambda states: soft_cap(project(states), softcap)
    parts = list(zip(states.split(rows), targets.split(rows), strict=True))
    if is_training:
        if len(parts) == 1:  # needs as much memory kept as made again
            return _losses(capped, states, targets), None
        return torch.cat([checkpoint(_losses, capped, *part, use_reentrant=False) for part in parts]), None
    losses, hits = zip(*[_losses_and_hits(capped, *part) for part in parts], strict=True)
    return torch.cat(losses), torch.cat(hits)


def _within(head: nn.Module, states: torch.Tensor, measure: Callable[..., Any]) -> Any:
    """Measure inside the one call of a head whose weight is gathered for each."""
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


class _Linear(NamedTuple):
    """A linear head in the dtype of its products."""

    weight: torch.Tensor  # (V, H)
    bias: torch.Tensor | None  # (V,)
    softcap: float | None

    def chunks(self, states: torch.Tensor, *, rows: int) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Yield each chunk's place, its states `(C, H)` and its logits `(C, V)` before the cap.

        On a CPU all chunks use the same memory, for fresh memory costs as much time as the product.
        """
        size = (min(rows, len(states)), len(self.weight))
        buffer = self.weight.new_empty(size) if self.weight.device.type == "cpu" else None
        for start in range(0, len(states), rows):
            part = states[start : start + rows].to(self.weight.dtype)
            if buffer is None:
                logits = F.linear(part, self.weight, self.bias)
            elif self.bias is None:
                logits = torch.mm(part, self.weight.t(), out=buffer[: len(part)])
            else:
                logits = torch.addmm(self.bias, part, self.weight.t(), out=buffer[: len(part)])
            yield slice(start, start + len(part)), part, logits


class _Measured(NamedTuple):
    """What some positions' logits say of their targets."""

    losses: torch.Tensor  # (C,), wide
    hits: torch.Tensor | None  # (C,), where asked for


def _measure(
    logits: torch.Tensor, targets: torch.Tensor, *, softcap: float | None, errors: bool = False, hits: bool = False
) -> _Measured:
    """Measure one chunk, on a CPU a few positions at a time."""
    step = max(1, _CPU_BLOCK_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    parts = zip(logits.split(step), targets.split(step), strict=True)
    blocks = [_measure_block(*part, softcap=softcap, errors=errors, hits=hits) for part in parts]
    return _Measured(
        losses=torch.cat([block.losses for block in blocks]),
        hits=torch.cat([block.hits for block in blocks if block.hits is not None]) if hits else None,
    )


def _measure_block(
    logits: torch.Tensor, targets: torch.Tensor, *, softcap: float | None, errors: bool, hits: bool
) -> _Measured:
    """Measure positions whose logits fit a cache in float32."""
    capped = soft_cap(logits, softcap)
    found = capped.argmax(-1) == targets if hits else None
    wide = capped.to(_wide(logits.dtype))
    if wide is logits and not errors:
        wide = logits.clone()
    slope = None if softcap is None or not errors else 1 - (wide / softcap).square_()
    chosen = targets.masked_fill(targets == IGNORE_INDEX, 0)[:, None]
    largest = wide.amax(-1, keepdim=True)
    distances = largest - wide.gather(1, chosen)  # before the exponentials take their place
    exponentials = wide.sub_(largest).exp_()
    sums = exponentials.sum(-1, keepdim=True)
    if errors:
        probabilities = exponentials.div_(sums)
        probabilities.scatter_add_(1, chosen, probabilities.new_full((1, 1), -1.0).expand_as(chosen))
        if slope is not None:
            probabilities.mul_(slope)
        if probabilities is not logits:
            logits.copy_(probabilities)
    return _Measured((distances + sums.log())[:, 0], found)


class _FrozenHead(torch.autograd.Function):
    """Losses `(N,)` of a linear layer without gradient; that of the states is made beside them, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, targets: torch.Tensor, linear: _Linear, rows: int) -> torch.Tensor:
        losses = torch.empty(len(states), dtype=_wide(linear.weight.dtype), device=states.device)
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(states) if wants_gradient else None
        for place, _, logits in linear.chunks(states, rows=rows):
            losses[place] = _measure(logits, targets[place], softcap=linear.softcap, errors=wants_gradient).losses
            if gradient is not None:
                gradient[place] = logits @ linear.weight
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None


class _TrainedHead(torch.autograd.Function):
    """Losses `(N,)` of a linear layer that is trained; its logits are made once more for the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        linear: _Linear,
        rows: int,
    ) -> torch.Tensor:
        ctx.rows, ctx.softcap, ctx.dtypes = rows, linear.softcap, (weight.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(states, targets, linear.weight, linear.bias)
        return _losses_and_hits_of(linear, states, targets, rows=rows, hits=False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        states, targets, weight, bias = ctx.saved_tensors
        linear = _Linear(weight, bias, ctx.softcap)
        of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=ctx.dtypes[0]) if ctx.needs_input_grad[2] else None
        of_bias = torch.zeros_like(bias, dtype=ctx.dtypes[1]) if ctx.needs_input_grad[3] else None
        for place, part, logits in linear.chunks(states, rows=ctx.rows):
            _measure(logits, targets[place], softcap=ctx.softcap, errors=True)
            scales = grads[0][place][:, None]  # (C, 1)
            if of_states is not None:
                of_states[place] = (logits @ weight) * scales
            if of_weight is not None:
                of_weight += logits.t() @ (part * scales).to(part.dtype)
            if of_bias is not None:
                of_bias += scales.to(logits.dtype)[:, 0] @ logits
        return of_states, None, of_weight, of_bias, None, None


def _losses_and_hits_of(
    linear: _Linear, states: torch.Tensor, targets: torch.Tensor, *, rows: int, hits: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return losses `(N,)` and, where asked for, hits `(N,)` of a linear head, without gradients."""
    found = [
        _measure(logits, targets[place], softcap=linear.softcap, hits=hits)
        for place, _, logits in linear.chunks(states, rows=rows)
    ]
    losses = torch.cat([part.losses for part in found])
    return losses, torch.cat([part.hits for part in found if part.hits is not None]) if hits else None


def _losses(project: Project, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy `(C,)` of one chunk; 0 for padding."""
    logits = project(states)
    # The dtype argument converts inside the kernel: no float32 copy of the logits beside their logarithms.
    logprobs = F.log_softmax(logits, dim=-1, dtype=_wide(logits.dtype))
    return F.nll_loss(logprobs, targets, reduction="none", ignore_index=IGNORE_INDEX)


def _losses_and_hits(
    project: Project, states: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses, and whether each target is the likeliest token."""
    logits = project(states)
    return _losses(lambda _: logits, states, targets), logits.argmax(-1) == targets


def _put(values: torch.Tensor, places: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """Values of the chosen positions in the targets' shape, without the padding; a copy: FSDP2 warns of views."""
    return values.new_zeros(like.numel() + 1).index_copy(0, places, values)[:-1].reshape(like.shape).clone()


def _chunk_size(num_targets: int, *, vocab_size: int, width: int, device: torch.device) -> int:
    """Positions of a chunk, whose logits take `width` bytes each: few chunks, of one size, with little padding."""
    if device.type == "cpu":
        most, unit = min(_CPU_POSITIONS, _CPU_BYTES // width), _CPU_ROUND
    else:
        most, unit = _DEVICE_LOGITS // vocab_size, _DEVICE_ROUND
    most = max(unit, most // unit * unit)
    even = -(-num_targets // -(-num_targets // most))
    return -(-even // unit) * unit


def _is_gathered(head: nn.Module) -> bool:
    """Return whether several processes share a head's weight: by FSDP2 or by DeepSpeed's third stage."""
    return hasattr(head, "set_reshard_after_backward") or any(hasattr(weight, "ds_id") for weight in head.parameters())


def _is_bare(head: nn.Module, *, is_gathered: bool) -> bool:
    """Return whether calling a head does nothing but what its class says. Hooks that gather a weight do not count."""
    hooks = (head._forward_pre_hooks, head._forward_hooks, head._backward_pre_hooks, head._backward_hooks)
    return "forward" not in vars(head) and (is_gathered or not any(hooks))


def _is_linear(head: nn.Module | None, states: torch.Tensor) -> bool:
    """Return whether a head is a plain linear layer, neither adapted nor quantised, whose weight is whole and here."""
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return False
    return type(head.weight) is nn.Parameter and head.weight.device == states.device


def _product_dtype(head: nn.Module, states: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a head's products are computed."""
    weight = getattr(head, "weight", None)
    is_plain = isinstance(weight, torch.Tensor) and weight.is_floating_point()
    return product_dtype(weight.dtype if is_plain else states.dtype, states.device)  # type: ignore[union-attr]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums."""
    return torch.promote_types(dtype, torch.float32)


__all__ = ["IGNORE_INDEX", "TokenLosses", "soft_cap", "token_losses"]
