"""An adapter merged into its base, and the proof that the files written say the same as the model in memory."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import logging

from ..adapters_magnet import ADAPTER_LAYERS
from ..configuration_magnet import MagnetSettings
from ..encoding_magnet import evaluating
from ..sources_magnet import CONFIG, CheckpointError

logger = logging.get_logger(__name__)

# Largest difference that rounding explains, relative to the largest value: of sums in another order, or of weights
# that were rounded to 8 bits of mantissa.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
HALF_TOLERANCE = 0.2
PROBE_TEXTS = ("The cat sat on the mat.", "She ate")
PROBE_LENGTH = 16


def check_can_merge(model: Any, state_dict: dict[str, Any] | None) -> None:
    """Refuse to merge where there is nothing to merge, or where the adapter would be lost or on in further modes."""
    if not model.has_adapter:
        raise ValueError("`merge_adapter=True` was given, but this model has no adapter. Leave it out.")
    modes = MagnetSettings.of(model.config).adapter_modes
    if modes is not None:
        raise ValueError(
            f"The adapter is only on in {modes}; merged, it would be on in every mode. Save it with "
            "`merge_adapter=False`, or call `model.set_adapter_modes(None)` first."
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "The base is quantised, and merging into rounded weights would lose the adapter. Load the adapter on "
            "the base without `quantization_config`, and merge it there."
        )
    if state_dict is not None:
        raise ValueError("`merge_adapter=True` merges the model's own weights; pass it or `state_dict`.")


def changed_checkpoint(
    model: Any, state_dict: dict[str, Any] | None, dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    """Merge the adapter and change the dtype of what is to be saved; the model is left as it is.

    Args:
        model: One of our models.
        state_dict (`dict`, *optional*): Weights in place of its own.
        dtype (`torch.dtype`): Of the result.

    Returns:
        A model of this class and config without adapters or weights, which says what is saved, and the weights.
    """
    if state_dict is None:
        state_dict = merged_weights(model) if model.has_adapter else model.state_dict()
    state_dict = in_dtype(state_dict, dtype)
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = are_tied(state_dict, model)
    with torch.device("meta"):
        twin: Any = type(model)(config)
    twin.to(dtype)
    twin.generation_config = model.generation_config
    return twin, state_dict


def merged_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a model with its adapters merged, under the names without them.

    Each adapted layer is merged in float32, in a copy: memory grows by one layer and the merged weights, and the model
    is left as it is.

    Raises:
        ValueError: the adapter is switched off by `disable_adapters()`.
    """
    return dict(_merged_pieces(model))


def _merged_pieces(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the merged weights, with one merged layer at a time in memory."""
    adapted: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, ADAPTER_LAYERS) and not any(name.startswith(f"{outer}.") for outer in adapted):
            adapted[name] = module
    if any(getattr(module, "disable_adapters", False) for module in adapted.values()):
        raise ValueError(
            "The adapter is switched off, so merging it would only save the base. Switch it on first: "
            "`model.enable_adapters()`, or `enable_adapter_layers()` of a PeftModel; where `modules_to_save` stay "
            "off, load the adapter anew."
        )
    for name, tensor in model.state_dict().items():
        if not any(name.startswith(f"{outer}.") for outer in adapted):
            yield name, tensor
    for outer, module in adapted.items():
        for name, tensor in _merge(copy.deepcopy(module)).state_dict().items():
            yield f"{outer}.{name}", tensor


def are_tied(weights: dict[str, torch.Tensor], model: Any) -> bool:
    """Return whether the LM head is the embedding matrix: as the config says, unless an adapter has changed one of
    them.
    """
    if not model.config.tie_word_embeddings:
        return False
    names = {id(module): name for name, module in model.named_modules()}
    ends = (names[id(model.get_input_embeddings())], names[id(model.get_output_embeddings())])
    first, second = (weights.get(f"{name}.weight") for name in ends)
    return first is None or second is None or torch.equal(first, second)


def in_dtype(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Convert floating-point weights to a dtype; one tensor under two names stays one."""
    cast: dict[tuple[Any, ...], torch.Tensor] = {}
    for tensor in weights.values():
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        cast.setdefault(_memory(tensor), tensor.to(wanted))
    return {name: cast[_memory(tensor)] for name, tensor in weights.items()}


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device)


def _merge(layer: Any) -> torch.nn.Module:
    """Return a plain layer in place of an adapted one, which is used up."""
    layer.float()
    if hasattr(layer, "unload_and_optionally_merge_module"):
        merged: torch.nn.Module = layer.unload_and_optionally_merge_module(
            merge=True, safe_merge=True, adapter_names=None
        )
        return merged
    layer.merge(safe_merge=True)
    base: torch.nn.Module = layer.get_base_layer()
    return base


@torch.no_grad()
def largest_differences(model: Any, other: Any) -> dict[str, float]:
    """Return how far two models are apart in each mode and in embeddings, relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (2, PROBE_LENGTH), generator=generator)
    segments = torch.zeros_like(ids)
    segments[:, 5:9] = 1
    differences = {}
    for mode in ("causal", "bidirectional", "infill"):
        segment_ids = segments if mode == "infill" else None
        first, second = (
            one(
                ids.to(one.device), mode=mode, segment_ids=None if segment_ids is None else segment_ids.to(one.device)
            ).logits.float()
            for one in (model, other)
        )
        differences[f"logits, {mode}"] = _relative(first, second.to(first.device))
    if model._tokenizer_source.find() is not None:
        first, second = (one.encode(list(PROBE_TEXTS), convert_to_tensor=True).float() for one in (model, other))
        differences["embeddings"] = _relative(first, second.to(first.device))
    return differences


def _relative(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max() / first.abs().max().clamp_min(1e-30))


def verify_files(model: Any, directory: Path, *, dtype: torch.dtype) -> dict[str, float]:
    """Load what was written and compare it to the model in memory.

    Args:
        model: The model that was saved.
        directory (`Path`): Where to.
        dtype (`torch.dtype`): What the weights were written in.

    Returns:
        `dict[str, float]`: the largest differences.

    Raises:
        CheckpointError: a tensor is not what was to be written, or the differences are more than rounding explains.
    """
    loaded = (
        type(model)
        .from_pretrained(directory, dtype=dtype, attn_implementation=model.config._attn_implementation)
        .to(model.device)
    )
    _check_written(model, loaded, directory, dtype=dtype)
    with evaluating(model):
        differences = largest_differences(model, loaded)
    coarser = max((model.dtype, dtype), key=lambda kind: TOLERANCES.get(kind, HALF_TOLERANCE))
    limit = TOLERANCES.get(coarser, HALF_TOLERANCE)
    found = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    logger.info(f"saved; largest differences: {found}")
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= limit:
        raise _says_something_else(
            f"{worst} differ by {differences[worst]:.2g} of the largest value; rounding to {dtype} explains {limit:g}"
        )
    return differences


@torch.no_grad()
def _check_written(model: Any, loaded: Any, directory: Path, *, dtype: torch.dtype) -> None:
    """Compare the files of a checkpoint to what was to be written, bit for bit and one tensor at a time."""
    if not (directory / CONFIG).is_file() or getattr(model, "is_quantized", False):
        return
    with ExitStack() as opened:
        stored = {}
        for path in sorted(directory.glob("model*.safetensors")):
            file = opened.enter_context(safe_open(path, "pt"))
            stored.update(dict.fromkeys(file.keys(), file))
        loaded_weights = loaded.state_dict()
        for name, tensor in _merged_pieces(model):
            if name.startswith("sscl_head."):  # has a file of its own
                continue
            file = stored.pop(name, None)
            written = loaded_weights.get(name) if file is None else file.get_tensor(name)
            wanted = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if written is None or not _are_same_bits(wanted, written):
                raise _says_something_else(f"{name} is {'missing' if written is None else 'another tensor'}")
        if stored:
            raise _says_something_else(f"they have {sorted(stored)[:3]}, which the model has not")


def _are_same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors are equal in shape, dtype and every bit."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    first, second = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second))
    return torch.equal(first, second)


def _says_something_else(what: str) -> CheckpointError:
    return CheckpointError(
        f"The files written do not say what the model in memory says: {what}. Nothing was saved; report this with the "
        "versions of torch, transformers and peft."
    )
