"""Who may see whom, by rule and by layer: which states a changed token must move, and which it must not.

Written down anew, without the library's masks: a fault in those must not hide itself.
"""

from collections.abc import Sequence
from typing import Any

from modeling_magnet.masking_magnet import AttentionMode, layer_windows


def sees(query: int, key: int, *, mode: AttentionMode, segments: Sequence[int], window: int | None) -> bool:
    """Whether a token may attend to another.

    Args:
        query, key (`int`): Positions.
        mode (`str`): Of the call.
        segments (`Sequence[int]`): 0 for context, k for the k-th span; for infill mode.
        window (`int`, *optional*): Of the layer: causally it counts the token itself, else it is a distance.
    """
    if window is not None and abs(query - key) > window - (mode == "causal"):
        return False
    if mode == "bidirectional":
        return True
    if mode == "causal":
        return key <= query
    return segments[key] == 0 or (segments[key] == segments[query] and key <= query)


def windows_by_layer(config: Any) -> list[int | None]:
    """The window of each layer, from the first to the last."""
    windows = layer_windows(config)
    kinds = getattr(config, "layer_types", None)
    if kinds is None or "" in windows:
        return [windows[""]] * config.num_hidden_layers
    return [windows[kind] for kind in kinds]


def reached_from(
    place: int, *, mode: AttentionMode, segments: Sequence[int], windows: Sequence[int | None]
) -> set[int]:
    """The positions whose last state depends on a token, through all layers.

    Args:
        place (`int`): Of the token.
        mode, segments: See `sees`.
        windows (`Sequence[int]`): One for each layer.

    Example:

        >>> sorted(reached_from(2, mode="causal", segments=[0] * 6, windows=[2, 2]))
        [2, 3, 4]
        >>> sorted(reached_from(1, mode="infill", segments=[0, 1, 1, 0, 2], windows=[None]))
        [1, 2]
    """
    reached = {place}
    for window in windows:
        reached |= {
            query
            for query in range(len(segments))
            if any(sees(query, key, mode=mode, segments=segments, window=window) for key in reached)
        }
    return reached


__all__ = ["reached_from", "sees", "windows_by_layer"]
