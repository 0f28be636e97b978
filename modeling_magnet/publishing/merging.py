"""Merge an adapter into its base, and verify that a written checkpoint equals the model in memory."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import logging

from ..adapters_magnet import ADAPTER_LAYERS
from ..batching_magnet import evaluating
from ..configuration_magnet import MODES, MagnetSettings
from ..pooling_magnet import HEAD_PREFIX
from ..sources_magnet import CONFIG, CheckpointError

logger = logging.get_logger(__name__)

# Largest difference that rounding explains, relative to the largest value: from the order of a sum in single and
# double precision, or from rounding the weights to a mantissa of 8 bits.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
HALF_TOLERANCE = 0.2
PROBE_TEXTS = ("The cat sat on the mat.", "She ate")
PROBE_LENGTH = 16


def check_can_merge(model: Any, state_dict: dict[str, Any] | None) -> None:
    """Raise a `ValueError` if there is no adapter, or if merging would lose it or switch it on in further modes."""
    if not model.has_adapter:
        raise ValueError("`merge_adapter=True` was passed, but this model has no adapter. Omit the argument.")
    modes = MagnetSettings.from_config(model.config).adapter_modes
    if modes is not None:
        raise ValueError(
            f"The adapter is only on in {modes}; merged, it would be on in every mode. Save it with "
            "`merge_adapter=False`, or call `model.set_adapter_modes(None)` first."
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "The base is quantized, and merging into its rounded weights would lose the adapter. Load the base "
            "without `quantization_config`, load the adapter, and merge it there."
        )
    if state_dict is not None:
        raise ValueError("`merge_adapter=True` merges the weights of the model; do not pass `state_dict` with it.")


def changed_checkpoint(
    model: Any, state_dict: dict[str, Any] | None, dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    """Return a model whose `save_pretrained` writes the config, and the weights to save, merged and in `dtype`.

    The returned model is on the meta device, without adapters. `model` stays unchanged. A `state_dict` replaces its
    weights.
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
    """Return the state dict of a model with merged adapters, under the names of the base: see `_iterate_merged`."""
    return dict(_iterate_merged(model))


def _iterate_merged(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the merged weights by name.

    Merges a copy of one adapted layer at a time, in float32, and leaves the model unchanged.

    Raises:
        ValueError: If the adapter is switched off by `disable_adapters()`.
    """
    adapted: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, ADAPTER_LAYERS) and not any(name.startswith(f"{outer}.") for outer in adapted):
            adapted[name] = module
    if any(getattr(module, "disable_adapters", False) for module in adapted.values()):
        raise ValueError(
            "The adapter is switched off, so merging would save the base. Call `model.enable_adapters()`, or "
            "`enable_adapter_layers()` of a PeftModel; if that leaves `modules_to_save` off, load the adapter again."
        )
    for name, tensor in model.state_dict().items():
        if not any(name.startswith(f"{outer}.") for outer in adapted):
            yield name, tensor
    for outer, module in adapted.items():
        for name, tensor in _merge(copy.deepcopy(module)).state_dict().items():
            yield f"{outer}.{name}", tensor


def are_tied(weights: dict[str, torch.Tensor], model: Any) -> bool:
    """Return whether LM head and embeddings are tied: as in the config, unless an adapter has changed one of them."""
    if not model.config.tie_word_embeddings:
        return False
    names = {id(module): name for name, module in model.named_modules()}
    ends = (names[id(model.get_input_embeddings())], names[id(model.get_output_embeddings())])
    first, second = (weights.get(f"{name}.weight") for name in ends)
    return first is None or second is None or torch.equal(first, second)


def in_dtype(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Convert floating-point weights to a dtype, and keep tied weights tied."""
    cast: dict[tuple[Any, ...], torch.Tensor] = {}
    for tensor in weights.values():
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        cast.setdefault(_memory(tensor), tensor.to(wanted))
    return {name: cast[_memory(tensor)] for name, tensor in weights.items()}


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device)


def _merge(layer: Any) -> torch.nn.Module:
    """Merge the adapter of a layer in place, and return the plain layer."""
    layer.float()
    merged: torch.nn.Module
    if hasattr(layer, "unload_and_optionally_merge_module"):
        merged = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
    else:
        layer.merge(safe_merge=True)
        merged = layer.get_base_layer()
    return merged


@torch.no_grad()
def largest_differences(model: Any, other: Any) -> dict[str, float]:
    """Return the largest differences of two models in each mode and in embeddings, relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (2, PROBE_LENGTH), generator=generator)
    segments = torch.zeros_like(ids)
    segments[:, 5:9] = 1
    differences = {}

    def compute_logits(decoder: Any, mode: str) -> torch.Tensor:
        options = {"segment_ids": segments.to(decoder.device)} if mode == "infill" else {}
        logits: torch.Tensor = decoder(ids.to(decoder.device), mode=mode, **options).logits.float()
        return logits

    for mode in MODES:
        first, second = compute_logits(model, mode), compute_logits(other, mode)
        differences[f"logits, {mode}"] = _relative(first, second.to(first.device))
    if model._tokenizer_source.find() is not None:
        first = model.encode(list(PROBE_TEXTS), convert_to_tensor=True).float()
        second = other.encode(list(PROBE_TEXTS), convert_to_tensor=True).float()
        differences["embeddings"] = _relative(first, second.to(first.device))
    return differences


def _relative(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max() / first.abs().max().clamp_min(1e-30))


def verify_files(model: Any, directory: Path, *, dtype: torch.dtype) -> dict[str, float]:
    """Load a checkpoint that was written in `dtype`, and compare it to the model in memory.

    Returns:
        `dict[str, float]`: see `largest_differences`.

    Raises:
        CheckpointError: If a written tensor is wrong, or a difference is larger than rounding explains.
    """
    attention = model.config._attn_implementation
    loaded = type(model).from_pretrained(directory, dtype=dtype, attn_implementation=attention).to(model.device)
    _check_written(model, loaded, directory, dtype=dtype)
    with evaluating(model):
        differences = largest_differences(model, loaded)
    coarser = max((model.dtype, dtype), key=lambda kind: TOLERANCES.get(kind, HALF_TOLERANCE))
    limit = TOLERANCES.get(coarser, HALF_TOLERANCE)
    listed = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    logger.info(f"saved; largest differences: {listed}")
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= limit:  # also true of NaN
        raise _verification_error(
            f"{worst} differ by {differences[worst]:.2g} of the largest value; rounding to {dtype} explains {limit:g}"
        )
    return differences


@torch.no_grad()
def _check_written(model: Any, loaded: Any, directory: Path, *, dtype: torch.dtype) -> None:
    """Compare the files of a checkpoint to the weights of the model, bit for bit and one tensor at a time."""
    if not (directory / CONFIG).is_file() or getattr(model, "is_quantized", False):
        return
    with ExitStack() as opened:
        stored = {}
        for path in sorted(directory.glob("model*.safetensors")):
            file = opened.enter_context(safe_open(path, "pt"))
            stored.update(dict.fromkeys(file.keys(), file))
        loaded_weights = loaded.state_dict()
        for name, tensor in _iterate_merged(model):
            if name.startswith(HEAD_PREFIX):  # stored in a separate file
                continue
            file = stored.pop(name, None)
            written = loaded_weights.get(name) if file is None else file.get_tensor(name)
            expected = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if written is None or not _are_same_bits(expected, written):
                raise _verification_error(f"{name} is {'missing' if written is None else 'another tensor'}")
        if stored:
            raise _verification_error(f"the files have {sorted(stored)[:3]}, which the model does not have")


def _are_same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors are equal in shape, dtype and every bit."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    first, second = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second))
    return torch.equal(first, second)


def _verification_error(difference: str) -> CheckpointError:
    return CheckpointError(
        f"The written files differ from the model in memory: {difference}. Nothing was saved; please report this with "
        "the versions of torch, transformers and peft."
    )
