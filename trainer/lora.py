"""Low-rank adapters on every linear layer, through peft."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import PreTrainedModel

from .adapted_linear import AdaptedLinear, can_be_fused
from .contrastive import HEAD_NAME


@dataclass
class LoraArguments:
    """Whether and how to train low-rank adapters instead of all weights.

    Raises:
        ValueError: listing every field that is out of its range.

    Source: Hu et al. 2021 (https://huggingface.co/papers/2106.09685); MAGNET (Khosla et al. 2025), section 4 for
    rank and alpha.

    Example:
        >>> LoraArguments(lora_r=0)
        Traceback (most recent call last):
        ...
        ValueError: The LoRA arguments cannot be used:
        - `lora_r` is 0; the rank is at least 1. Pass a positive number, or `use_lora=False` to train all weights.
    """

    use_lora: bool = field(default=True, metadata={"help": "Train low-rank adapters; false trains all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters, >= 1."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapters' output is scaled by alpha / r, > 0."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters, in [0, 1)."})

    def __post_init__(self) -> None:
        complaints = []
        if self.lora_r < 1:
            complaints.append(
                f"`lora_r` is {self.lora_r}; the rank is at least 1. Pass a positive number, or `use_lora=False` to "
                "train all weights."
            )
        if self.lora_alpha <= 0:
            complaints.append(f"`lora_alpha` is {self.lora_alpha}; pass 1 or more.")
        if not 0 <= self.lora_dropout < 1:
            complaints.append(f"`lora_dropout` is {self.lora_dropout}; pass a number from 0 to below 1.")
        if complaints:
            raise ValueError("\n- ".join(["The LoRA arguments cannot be used:", *complaints]))


def apply_lora(model: PreTrainedModel, args: LoraArguments) -> PreTrainedModel | PeftModel:
    """Freeze a model and put trainable adapters on all its linear layers but the LM head.

    The initial adapters are drawn from torch's global generator: seed it before, where that matters.

    Args:
        model (`PreTrainedModel`): The model; its linear layers are replaced in place.
        args (`LoraArguments`): Rank, scale and dropout.

    Returns:
        `PeftModel`: the wrapped model, or `model` itself where `args.use_lora` is false.

    Raises:
        ValueError: the model has an adapter already.
    """
    if getattr(model, "has_adapter", False):
        raise ValueError(
            "The model has an adapter already, and another on top of it could not be saved with its base. Merge it "
            "first: `model.save_pretrained(directory, merge_adapter=True)`, and train what stands there."
        )
    if not args.use_lora:
        return model
    # A head kept from an earlier contrastive training goes on as it is; peft warns of names that match nothing.
    kept_head = rf"(.*\.)?{HEAD_NAME}\..*" if HEAD_NAME in dict(model.named_children()) else None
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules="all-linear",
        exclude_modules=kept_head,
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
    )
    with warnings.catch_warnings():  # peft asks whether layers are checkpointed by a name that transformers retires
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return get_peft_model(model, config)


def adapter_layers(model: nn.Module) -> list[Any]:
    """The layers of a model that have an adapter of peft, and convert what they read."""
    return [module for module in model.modules() if hasattr(module, "cast_input_dtype_enabled")]


@contextmanager
def adapters_under_autocast(layers: Sequence[Any]) -> Iterator[None]:
    """Let autocast alone convert what adapters read, and fuse adapters with their layers where that is faster.

    peft converts inputs to the dtype of the adapter's weights, float32, from which autocast converts them back to half
    precision. The values are the same, but every adapted layer keeps a copy of its input for the backward pass: for
    seven layers of a block and 16,384 tokens of width 4,096, a gigabyte a block.

    Args:
        layers (sequence): What `adapter_layers` returned; they must be called under autocast until the context ends.
    """
    before = [layer.cast_input_dtype_enabled for layer in layers]
    fused = [layer for layer in layers if can_be_fused(layer)]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    for layer in fused:
        layer.__class__ = AdaptedLinear
    try:
        yield
    finally:
        for layer in fused:
            layer.__class__ = LoraLinear
        for layer, value in zip(layers, before, strict=True):
            layer.cast_input_dtype_enabled = value


__all__ = ["LoraArguments", "adapter_layers", "adapters_under_autocast", "apply_lora"]
