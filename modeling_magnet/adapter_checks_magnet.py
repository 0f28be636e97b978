"""What of an adapter is looked at before peft reads it: what it would import, and the base that it was trained on."""

from typing import Any

from .sources_magnet import ADAPTER_CONFIG, CheckpointError, ModelSource

# What an adapter must agree on with its base before any weight is read.
BASE_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


def check_adapter_imports_nothing(source: ModelSource) -> None:
    """Refuse a configuration by which peft would import a module that it names: of Megatron, and so of anything.

    Raises:
        CheckpointError: naming the module, or a configuration that is no JSON.
    """
    values = source.read_json(ADAPTER_CONFIG) or {}
    if values.get("megatron_config"):
        raise CheckpointError(
            f"{ADAPTER_CONFIG} of {source} has a `megatron_config`, for which peft would import the module "
            f"{values.get('megatron_core')!r:.60}. Remove it there: no model here is one of Megatron's."
        )


def check_adapter_fits(source: ModelSource, settings: dict[str, Any] | None, values: dict[str, Any]) -> None:
    """Refuse an adapter of another base by what is stored beside it.

    Args:
        source (`ModelSource`): The adapter.
        settings (`dict`, *optional*): Its `adapter_settings()`; one without is not checked.
        values (`dict`): config.json of the base.

    Raises:
        CheckpointError: naming what differs.
    """
    stored = (settings or {}).get("base") or {}
    # A base whose vocabulary was resized in memory is the right one, too.
    resized = {"vocab_size": (settings or {}).get("resized_vocab_size")}
    differing = [
        key
        for key in BASE_SHAPE
        if stored.get(key) not in (None, values.get(key)) and values.get(key) != resized.get(key, stored.get(key))
    ]
    if differing:
        told = ", ".join(f"{key} {stored[key]!r} where this base has {values.get(key)!r}" for key in differing)
        raise CheckpointError(f"The adapter at {source} was trained on another base: {told}. Load it on its own base.")


__all__ = ["BASE_SHAPE", "check_adapter_fits", "check_adapter_imports_nothing"]
