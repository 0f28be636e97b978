"""A key-value cache whose room is reserved at once, because the number of tokens to come is known.

`DynamicCache` copies all it holds at every step: for 32 rows of 256 tokens more bytes than a small model's weights.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class ReservedLayer(DynamicLayer):
    """One layer's keys and values, written in place.

    Args:
        capacity (`int`): Tokens a row will hold.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0
        self.buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self.columns: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new states `(B, heads, new, D)` behind the old; returns views `(B, heads, seen, D)` of all.

        With fixed shapes (see `ReservedCache.fix_shapes`) it writes to the columns it was told, and returns all room.
        """
        if self.columns is not None:
            assert self.buffers is not None
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
                buffer.index_copy_(2, self.columns, states)
            return self.buffers
        if self.buffers is None:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.buffers = tuple(
                states.new_empty(*states.shape[:2], self.capacity, states.shape[3])
                for states in (key_states, value_states)
            )  # type: ignore[assignment]
            self.is_initialized = True
        assert self.buffers is not None
        start, self.length = self.length, self.length + key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.length] = states
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return self.keys, self.values

    def keep_first_rows(self, rows: int) -> None:
        """Forget all rows but the first so many; nothing is copied."""
        assert self.buffers is not None
        self.buffers = (self.buffers[0][:rows], self.buffers[1][:rows])

    def fix_shapes(self, columns: torch.Tensor) -> None:
        """From now on write to these columns; what was never written becomes 0, for nothing times NaN is NaN."""
        assert self.buffers is not None
        self.columns = columns
        for buffer in self.buffers:
            buffer[:, :, self.length :] = 0


class ReservedCache(Cache):
    """A `ReservedLayer` for every layer of a model.

    Args:
        num_layers (`int`): Layers of the model.
        capacity (`int`): Tokens a row will hold.
    """

    def __init__(self, *, num_layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.reserved = [ReservedLayer(capacity) for _ in range(num_layers)]
        super().__init__(layers=list(self.reserved))

    def keep_first_rows(self, rows: int) -> None:
        """Forget all rows but the first so many; nothing is copied."""
        for layer in self.reserved:
            layer.keep_first_rows(rows)

    def fix_shapes(self, columns: torch.Tensor) -> None:
        """Give every further step the same shapes and addresses, as a CUDA graph needs them.

        Args:
            columns (`torch.LongTensor` of shape `(new,)`): Where the new states of a row go, read at every step: the
                caller moves them on in place.
        """
        for layer in self.reserved:
            layer.fix_shapes(columns)


__all__ = ["ReservedCache"]
