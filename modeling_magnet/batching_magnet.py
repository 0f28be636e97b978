"""Token rows -> batches: as many rows as a budget of tokens allows, padded, or laid end to end without padding.

Nothing here knows about models or texts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch


def plan_batches(
    lengths: Sequence[int], *, max_tokens: int, max_rows: int | None = None, padded: bool = True
) -> list[list[int]]:
    """Group rows so that no batch holds more than `max_tokens`.

    Rows of like length come together, the longest first: the first batch needs the most memory, so that what cannot
    work fails at once. A row that is longer than the budget makes a batch of its own.

    Args:
        lengths (`Sequence[int]`): Tokens of each row, >= 1.
        max_tokens (`int`): Budget of a batch, padding included, >= 1.
        max_rows (`int`, *optional*): Upper limit of the rows of a batch.
        padded (`bool`, defaults to `True`): Whether rows will be padded to the longest of their batch, which then
            counts; rows that are laid end to end need no padding.

    Returns:
        `list[list[int]]`: indices of rows; each occurs once.

    Example:

        >>> plan_batches([3, 9, 2, 3, 8], max_tokens=18)
        [[1, 4], [0, 3, 2]]
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    used = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        # The first row of a batch is its longest: all others are padded to it.
        needed = (len(batch) + 1) * lengths[batch[0]] if padded and batch else used + lengths[index]
        if batch and (needed > max_tokens or len(batch) == max_rows):
            batches.append(batch)
            batch, used = [], 0
        batch.append(index)
        used += lengths[index]
    return [*batches, batch] if batch else batches


def pad_token_rows(
    rows: Sequence[Sequence[int]], *, pad_token_id: int, padding_side: str = "right", width: int | None = None
) -> dict[str, torch.Tensor]:
    """Token rows as one batch.

    Args:
        rows (`Sequence[Sequence[int]]`): At least one row.
        pad_token_id (`int`): Fills up shorter rows.
        padding_side (`str`, defaults to `"right"`): Where.
        width (`int`, *optional*): Tokens of a padded row, at least as many as the longest has, which is the default.

    Returns:
        `dict`: `input_ids` and `attention_mask`, both `torch.LongTensor` of shape `(len(rows), width)`.

    Example:

        >>> pad_token_rows([[1, 5, 2], [1, 2]], pad_token_id=0)["input_ids"].tolist()
        [[1, 5, 2], [1, 2, 0]]
    """
    width = width or max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        cells = slice(0, len(row)) if padding_side == "right" else slice(width - len(row), width)
        input_ids[index, cells] = torch.tensor(row, dtype=torch.long)
        attention_mask[index, cells] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


class PackedRows(NamedTuple):
    """Rows laid end to end in one row of L tokens, padding at its end alone."""

    input_ids: torch.Tensor  # (1, L)
    position_ids: torch.Tensor  # (1, L): from 0 in each row
    row_ids: torch.Tensor  # (1, L): which row a token belongs to; one number more for padding


def pack_token_rows(rows: Sequence[Sequence[int]], *, pad_token_id: int, multiple: int) -> PackedRows:
    """Lay token rows end to end.

    Args:
        rows (`Sequence[Sequence[int]]`): At least one row.
        pad_token_id (`int`): Fills up the end.
        multiple (`int`): L is rounded up to a multiple of this: block masks come in blocks, and kernels compiled for a
            length are used again.

    Example:

        >>> packed = pack_token_rows([[1, 5, 2], [1, 2]], pad_token_id=0, multiple=4)
        >>> packed.input_ids.tolist(), packed.position_ids.tolist(), packed.row_ids.tolist()
        ([[1, 5, 2, 1, 2, 0, 0, 0]], [[0, 1, 2, 0, 1, 0, 1, 2]], [[0, 0, 0, 1, 1, 2, 2, 2]])
    """
    lengths = [len(row) for row in rows]
    lengths.append(-sum(lengths) % multiple)
    ids = torch.tensor([token for row in rows for token in row] + [pad_token_id] * lengths[-1])
    positions = torch.cat([torch.arange(length) for length in lengths])
    row_ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return PackedRows(ids[None], positions[None], row_ids[None])


__all__ = ["PackedRows", "pack_token_rows", "pad_token_rows", "plan_batches"]
