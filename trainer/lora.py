"""Add low-rank adapters with peft."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from modeling_magnet.pooling_magnet import HEAD_NAME
from modeling_magnet.publishing.adapters import sets_in_order

from .training_args import option


@dataclass
class LoraArguments:
    """Arguments of low-rank adapters.

    Raises:
        ValueError: If a field is out of its range; the message lists all of them.

    Source: Hu et al. 2021 (https://huggingface.co/papers/2106.09685); MAGNET (Khosla et al. 2025), section 4 for
    rank and alpha.
    """

    lora_r: int = option(16, "Rank of the adapters; 0 trains all weights instead.")
    lora_alpha: int = option(32, "The adapters' output is scaled by alpha / r, > 0.")
    lora_dropout: float = option(0.0, "Dropout before the adapters, in [0, 1).")

    def __post_init__(self) -> None:
        complaints = [
            f"`{name}` is {getattr(self, name)}; pass {expected}."
            for name, expected, is_right in (
                ("lora_r", "1 or more, or 0 to train all weights", self.lora_r >= 0),
                ("lora_alpha", "a number above 0", self.lora_alpha > 0),
                ("lora_dropout", "a number from 0 to below 1", 0 <= self.lora_dropout < 1),
            )
            if not is_right
        ]
        if complaints:
            raise ValueError("\n- ".join(["The LoRA arguments cannot be used:", *complaints]))

    @property
    def use_lora(self) -> bool:
        """Whether adapters are trained instead of all weights."""
        return self.lora_r > 0


def apply_lora(model: PreTrainedModel, args: LoraArguments) -> PreTrainedModel | PeftModel:
    """Freeze a model and add trainable adapters to all its linear layers except the LM head.

    The adapters are initialized from torch's global generator. The linear layers are replaced in place.

    Args:
        model (`PreTrainedModel`): A model without adapters.
        args (`LoraArguments`): Rank, scale and dropout.

    Returns:
        `PeftModel`: the wrapped model, or `model` if the rank is 0.

    Raises:
        ValueError: If the model already has an adapter.
    """
    if getattr(model, "has_adapter", False):
        raise ValueError(
            "The model already has an adapter, and a second one could not be saved with its base. Merge it first: "
            "`model.save_pretrained(directory, merge_adapter=True)`, and train the saved model."
        )
    if not args.use_lora:
        return model
    # A contrastive head gets no adapter. Without one nothing is excluded, since peft warns about unmatched names.
    head_name = rf"(.*\.)?{HEAD_NAME}\..*" if HEAD_NAME in dict(model.named_children()) else None
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules="all-linear",
        exclude_modules=head_name,
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
    )
    with warnings.catch_warnings():  # peft reads a property that transformers deprecates
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return get_peft_model(model, config)


@contextmanager
def targets_in_order(model: Any) -> Iterator[None]:
    """Sort the target modules of adapters in this context: peft's sets have another order in every process."""
    configs = list(model.peft_config.values()) if isinstance(model, PeftModel) else []
    before = [dict(vars(config)) for config in configs]
    for config in configs:
        vars(config).update(sets_in_order(config))
    try:
        yield
    finally:
        for config, values in zip(configs, before, strict=True):
            vars(config).update(values)
