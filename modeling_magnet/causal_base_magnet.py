"""A base that was trained as an encoder, such as EmbeddingGemma, made the causal decoder that the modes begin from."""

from typing import Any

from .configuration_magnet import MagnetSettings


def make_causal(config: Any, settings: MagnetSettings, *, opened_as_encoder: bool) -> bool:
    """Turn off `use_bidirectional_attention`, which would make every mode bidirectional.

    Gemma 3 reads a window of w in such a config as `w // 2` positions to either side. Bidirectional and infill mode
    keep them, as `settings.bidirectional_window`; causal mode gets w back, as the family's causal models have it.

    Args:
        config (`PreTrainedConfig`): Changed in place.
        settings (`MagnetSettings`): Changed in place.
        opened_as_encoder (`bool`): Whether the config was opened with `is_causal: false`, for which our checkpoints
            hand sentence-transformers their window to either side.

    Returns:
        `bool`: whether the base says that it is an encoder.
    """
    # Where the class does not have the field, its decoder does not read it.
    is_encoder = hasattr(type(config), "use_bidirectional_attention") and bool(config.use_bidirectional_attention)
    window = getattr(config, "sliding_window", None)
    if is_encoder:
        config.use_bidirectional_attention = False
        if window is not None and _halves_windows(type(config)):
            settings.bidirectional_window = window - 1
            config.sliding_window = 2 * (window - 1)
    elif opened_as_encoder and settings.bidirectional_window is not None:
        config.sliding_window = 2 * settings.bidirectional_window
    return is_encoder


def _halves_windows(config_class: type[Any]) -> bool:
    """Whether a family's config changes the window that it is given when attention is bidirectional."""
    probe = config_class(sliding_window=64, use_bidirectional_attention=True)
    return bool(probe.sliding_window != 64)


__all__ = ["make_causal"]
