"""A text beyond the context -> overlapping windows, each of which gives the vectors of its middle."""

from typing import Literal, NamedTuple

from .states_magnet import ReadingMode, check_whole_number

Shift = Literal["next", "same"]


class Window(NamedTuple):
    """A stretch of a row that the model reads at once, and the part of it whose states are kept."""

    start: int
    end: int
    keep_start: int
    keep_end: int


def plan_windows(length: int, *, size: int, overlap: int, context: int = 0) -> list[Window]:
    """Cut a row into overlapping windows, each token kept where it is farthest from an edge.

    Args:
        length (`int`): Tokens of the row.
        size (`int`): Tokens of a window, >= 1.
        overlap (`int`): Tokens two neighbours share, >= 0 and < `size`; the last two share more, so that every window
            is full.
        context (`int`, defaults to 0): Tokens in front of what a later window keeps, >= 0 and <= `overlap`.

    Returns:
        `list[Window]`: their kept parts are disjoint and cover the row.

    Example:

        >>> [tuple(window) for window in plan_windows(10, size=6, overlap=2)]
        [(0, 6, 0, 5), (4, 10, 5, 10)]
        >>> [tuple(window) for window in plan_windows(9, size=5, overlap=1, context=1)]
        [(0, 5, 0, 5), (4, 9, 5, 9)]
    """
    starts = list(range(0, max(length - size, 0), size - overlap)) + [max(length - size, 0)]
    ends = [min(start + size, length) for start in starts]
    # Half of what two neighbours share goes to each.
    cuts = [max((start + end) // 2, start + context) for start, end in zip(starts[1:], ends, strict=False)]
    return [
        Window(*window)
        for window in zip(starts, ends, [0, *cuts], [*cuts, length], strict=True)
        if window[2] < window[3]
    ]


def windows_of_text(
    length: int,
    *,
    num_front: int,
    size: int,
    overlap: int | None,
    shift: Shift,
    mode: ReadingMode = "bidirectional",
) -> list[Window]:
    """The windows in which a text is read; each vector of a later one has its own context.

    Args:
        length (`int`): Tokens of the text, >= 0.
        num_front (`int`): Tokens of BOS and prompt, which stand in front of each window.
        size (`int`): Tokens of text for which there is room beside them.
        overlap (`int`, *optional*): Tokens two neighbours share; defaults to a quarter of `size`.
        shift (`str`): With `"next"` a token is represented by the output before it, so that at least one token of text
            must stand in front of what a later window keeps: BOS and prompt know nothing of the text before.
        mode (`str`, defaults to `"bidirectional"`): With `"causal"` what follows a token is of no use to it, so that
            the whole overlap stands in front of what a later window keeps.

    Raises:
        ValueError: there is no room for them, or for their overlap.
    """
    if overlap is None:
        overlap = max(size, 0) // 4
    check_whole_number(overlap, name="window_overlap")
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(
            f"Windows of {size} tokens of text cannot overlap by {overlap}: `window_overlap` must be at least 0 and "
            f"less than a window. BOS and prompt take {num_front} tokens of each window; raise `max_length`, or "
            "shorten the overlap or the prompt."
        )
    context = int(shift == "next")
    if length > size and size <= context:
        raise ValueError(
            f"A text of {length} tokens does not fit into a window of {size}, in which no token has another in front, "
            "as shift='next' needs. Raise `max_length`, shorten the prompt, or pass shift='same'."
        )
    overlap = max(overlap, min(context, size - 1))
    context = overlap if mode == "causal" else context
    return plan_windows(length, size=size, overlap=overlap, context=context) if length else []


__all__ = ["Shift", "Window", "plan_windows", "windows_of_text"]
