"""Implement the default attention back-end, and the cache of the decoding loop.

The back-end is SDPA, except for plain matrix products in bfloat16 on a CPU outside causal mode. With a mask, the CPU's
fused SDPA is twice as slow in bfloat16, forward and backward, and its rounding depends on the padded length; plain
products give a row the same bits alone and in a batch. The mask of each call decides, so that a model can move between
devices.

Shapes: B rows, A heads, KV key-value heads, Q queries, K keys, D width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Value of `config._attn_implementation` in a loaded model; it is not written to config.json.
DEFAULT_ATTENTION = "sdpa_magnet"
# Argument of a decoder's call that marks a mask as rendered by `masking_magnet.py`.
MASK_IS_OURS = "magnet_mask"
# Limit in bytes of the attention scores in memory. Larger ones are computed in parts, or, if a backward pass would
# need them, by SDPA.
_MAX_BYTES = 2**26


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which products of tensors of a dtype are computed: that of autocast if it is enabled."""
    is_supported = torch.amp.is_autocast_available(device.type)
    if is_supported and torch.is_autocast_enabled(device.type) and dtype.is_floating_point:
        return torch.get_autocast_dtype(device.type)
    return dtype


def takes_float_masks(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether `masked_attention` computes the products itself."""
    return device.type == "cpu" and product_dtype(dtype, device) == torch.bfloat16


def call_decoder(model: Any, mode: str, *, attention_mask: Any, **inputs: Any) -> Any:
    """Call the decoder below the LM head. `forward` and the decoding loop both go through this function."""
    if mode != "causal":
        inputs[MASK_IS_OURS] = True
    return model.base_model(attention_mask=attention_mask, **inputs)


def masked_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention with the interface of transformers' attention functions.

    A float mask `(B, 1, Q, K)` marked by `MASK_IS_OURS` is added to scores computed here; any other mask is passed to
    SDPA. Returns `(B, Q, A, D)`, and `None` instead of weights.
    """
    is_ours = kwargs.pop(MASK_IS_OURS, False) and attention_mask is not None and attention_mask.is_floating_point()
    if not is_ours:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    assert attention_mask is not None
    fits = query.shape[:3].numel() * key.shape[2] * 2 <= _MAX_BYTES
    is_kept = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    is_plain = not any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    if query.device.type != "cpu" or not is_plain or (is_kept and not fits):
        mask = attention_mask.to(query.dtype)
        return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    with torch.autocast("cpu", enabled=False):
        query, key, value = (part.to(attention_mask.dtype) for part in (query, key, value))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attend = _attend if fits else _attend_in_parts
        attended = attend(query, key, value, attention_mask, scale=scale, dropout=dropout)
    return attended.transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, *, scale: float, dropout: float
) -> torch.Tensor:
    """Return the attended values `(B, A, Q, D)`. Heads that share keys are folded into the queries of one product."""
    batch_size, num_heads, num_queries, width = query.shape
    groups, num_keys = key.shape[1:3]
    folded = (query * scale).reshape(batch_size, groups, -1, width)  # (B, KV, A / KV * Q, D)
    scores = folded @ key.transpose(2, 3)
    scores = scores.view(batch_size, groups, -1, num_queries, num_keys) + mask[:, :, None]
    weights = torch.softmax(scores, dim=-1)  # half-precision softmax kernels sum in float32
    weights = F.dropout(weights, p=dropout, training=dropout > 0)
    attended = weights.view(batch_size, groups, -1, num_keys) @ value
    return attended.view(batch_size, num_heads, num_queries, width)


def _attend_in_parts(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, *, scale: float, dropout: float
) -> torch.Tensor:
    """Call `_attend` on some queries of one row at a time, without gradients."""
    attended = torch.empty_like(query)
    part_length = max(1, _MAX_BYTES // (2 * query.shape[1] * key.shape[2]))
    for index in range(len(query)):
        row = slice(index, index + 1)
        for start in range(0, query.shape[2], part_length):
            part = slice(start, start + part_length)
            attended[row, :, part] = _attend(
                query[row, :, part], key[row], value[row], mask[row, :, part], scale=scale, dropout=dropout
            )
    return attended


class ReservedLayer(DynamicLayer):
    """Preallocate the keys and values of one layer for a known number of tokens, and write them in place.

    `DynamicCache` copies its whole content at every step: with 32 rows of 256 tokens, more bytes than the weights of a
    small model.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0
        self.buffers: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states `(B, heads, new, D)`, and return views `(B, heads, seen, D)` of all keys and values."""
        if not self.buffers:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.buffers = tuple(
                states.new_empty(*states.shape[:2], self.capacity, states.shape[3])
                for states in (key_states, value_states)
            )
            self.is_initialized = True
        start, self.length = self.length, self.length + key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.length] = states
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return self.keys, self.values


class ReservedCache(Cache):
    """A cache with space for `capacity` tokens per row in each of `num_layers` layers."""

    def __init__(self, *, num_layers: int, capacity: int) -> None:
        self.reserved = [ReservedLayer(capacity) for _ in range(num_layers)]
        super().__init__(layers=list(self.reserved))

    def keep_first_rows(self, num_rows: int) -> None:
        """Keep only the first `num_rows` rows, without a copy."""
        for layer in self.reserved:
            layer.buffers = tuple(buffer[:num_rows] for buffer in layer.buffers)


AttentionInterface.register(DEFAULT_ATTENTION, masked_attention)
AttentionMaskInterface.register(DEFAULT_ATTENTION, sdpa_mask)
