"""Cross entropy of positions that have a target, whose logits never exist all at once.

Logits are the largest tensor of a training step: with a vocabulary of 128,000 they are 60 times as large as states of
width 2,048. Here the LM head runs on a few positions at a time, and one number of each is kept. A frozen head has its
gradient taken at once, while the logits are there; one that is trained projects again during the backward pass, which
is one product more than the three of a plain head.

Shapes: T targets, set or not; N positions with a target, padded; C positions of a chunk; H hidden size; V vocabulary.
"""

from collections.abc import Callable
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
    project: Project,
    vocab_size: int,
    head: nn.Module | None = None,
    num_targets: int | None = None,
    chunk_size: int | None = None,
) -> TokenLosses:
    """Cross entropy at each position that has a target, with memory for the logits of one chunk.

    Args:
        states (`torch.FloatTensor` of shape `(B, S, H)`): Output of the last layer.
        target_ids (`torch.LongTensor` of shape `(B, S)` or `(K, B, S)`): The token to predict at each position, or
            -100; K of them where a position may have several.
        project (`Callable`): States `(C, H)` to logits `(C, V)`.
        vocab_size (`int`): V.
        head (`nn.Module`, *optional*): The layer that `project` is, if it is nothing more.
        num_targets (`int`, *optional*): How many targets are set, or an upper limit. Left out, it is read from the
            device, which has to be waited for.
        chunk_size (`int`, *optional*): C. By default what makes 4 million logits on a CPU, 67 million elsewhere.

    Returns:
        `TokenLosses`: part of the graph even where no target is set.

    Raises:
        ValueError: targets of another shape than the states', or more than `num_targets` (looked at on a CPU alone).
    """
    if target_ids.dim() not in (2, 3) or target_ids.shape[-2:] != states.shape[:2]:
        raise ValueError(
            f"`target_ids` has shape {tuple(target_ids.shape)} for states of {tuple(states.shape)}; pass "
            f"{tuple(states.shape[:2])}, or several of that, one token to predict or -100 for each position."
        )
    targets = target_ids.flatten()  # (T,)
    is_set = targets != IGNORE_INDEX
    if num_targets is None or targets.device.type == "cpu":
        found = int(is_set.sum())
        if num_targets is not None and num_targets < found:
            raise ValueError(f"`num_targets` is {num_targets}, but {found} targets are set. Pass as many, or None.")
        num_targets = found if num_targets is None else num_targets
    rows = chunk_size or _chunk_size(max(num_targets, 1), vocab_size=vocab_size, device=states.device)
    padded = -(-max(num_targets, 1) // rows) * rows  # N
    places = torch.nonzero_static(is_set, size=padded, fill_value=len(targets))[:, 0]  # (N,), T for padding
    wanted = F.pad(targets, (0, 1), value=IGNORE_INDEX)[places]  # (N,)
    picked = states.flatten(0, 1).index_select(0, places % states.shape[:2].numel())  # (N, H)

    hits = None
    if torch.is_grad_enabled() and _is_frozen(head, picked):
        assert isinstance(head, nn.Linear)
        losses = _FrozenHead.apply(picked, wanted, head.weight, head.bias, rows)
    elif torch.is_grad_enabled():
        parts = list(zip(picked.split(rows), wanted.split(rows), strict=True))
        # A single chunk needs as much memory kept as made again.
        run: Any = checkpoint if len(parts) > 1 else _call
        losses = torch.cat([run(_losses, project, *part, use_reentrant=False) for part in parts])
    else:
        chunks = [
            _losses_and_hits(project, *part) for part in zip(picked.split(rows), wanted.split(rows), strict=True)
        ]
        losses, hits = (torch.cat(found) for found in zip(*chunks, strict=True))
        hits = _put(hits, places, like=target_ids)
    return TokenLosses(losses=_put(losses, places, like=target_ids), hits=hits)


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
                chosen = targets[part].clamp(min=0)[:, None]
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


def _call(function: Callable[..., torch.Tensor], *arguments: Any, use_reentrant: bool) -> torch.Tensor:
    """`checkpoint` without its saving."""
    return function(*arguments)


def _put(values: torch.Tensor, places: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """Values of the chosen positions in the targets' shape, without the padding."""
    return values.new_zeros(like.numel() + 1).index_copy(0, places, values)[:-1].view(like.shape)


def _chunk_size(num_targets: int, *, vocab_size: int, device: torch.device) -> int:
    """Positions of a chunk: as few chunks as the logits' limit allows, of one size, with little padding."""
    most = (_CPU_LOGITS if device.type == "cpu" else _DEVICE_LOGITS) // vocab_size
    most = max(_ROUND, most // _ROUND * _ROUND)
    even = -(-num_targets // -(-num_targets // most))
    return -(-even // _ROUND) * _ROUND


def _is_frozen(head: nn.Module | None, states: torch.Tensor) -> bool:
    """Whether a head is a plain linear layer without gradient whose weight is whole and here."""
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or hasattr(head.weight, "ds_id"):
        return False  # adapted, quantised, or in parts with several processes
    frozen = not any(parameter.requires_grad for parameter in head.parameters())
    return frozen and states.requires_grad and head.weight.device == states.device


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums."""
    return torch.promote_types(dtype, torch.float32)


__all__ = ["IGNORE_INDEX", "TokenLosses", "token_losses"]
