"""Can an adapter be trained on a quantised base? Some of its layers pass no gradient on, and say nothing."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def about_quantized_base(model: Any) -> Iterator[str]:
    """What stands in the way of training on a quantised base; nothing for one that is not.

    A linear layer is asked for a gradient: whether a method can be trained is not what its quantiser says of itself
    (torchao's 8-bit dynamic activations, seen in 0.18).

    Args:
        model: The model itself, not its peft wrapper.

    Yields:
        `str`: a complaint.
    """
    if not getattr(model, "is_quantized", False):
        return
    method = getattr(model.config.quantization_config, "quant_method", "unknown")
    method = getattr(method, "value", method)
    if getattr(model, "is_loaded_in_4bit", False) and model.device.type == "cpu":
        # Its first forward without gradients repacks the weights for good, and evaluations are such forwards.
        yield (
            f"The base is quantised to 4 bits by {method} on a CPU, where evaluation would end all gradients. Train "
            "it on a GPU, or load 8-bit weights."
        )
    elif not _lets_gradient_through(model):
        yield (
            f"The base is quantised by {method} in a way that lets no gradient through its layers, so adapters would "
            "learn nothing. Load weights that alone are quantised (8-bit weight-only), or no quantised base."
        )


def _lets_gradient_through(model: Any) -> bool:
    """Whether the first linear layer that was quantised passes a gradient on to its input."""
    layers = [getattr(module, "base_layer", module) for module in model.base_model.modules()]
    linear = next((layer for layer in layers if isinstance(layer, nn.Linear)), None)
    if linear is None:
        return True
    dtype = model.dtype if model.dtype.is_floating_point else torch.float32
    inputs = torch.ones(1, linear.in_features, device=model.device, dtype=dtype, requires_grad=True)
    output = linear(inputs)
    if not output.requires_grad:
        return False
    try:
        (gradient,) = torch.autograd.grad(output.sum(), inputs, allow_unused=True)
    except RuntimeError:
        return False
    return gradient is not None and bool(gradient.any())


__all__ = ["about_quantized_base"]
