"""Low-rank adapters on every linear layer, through peft."""

from dataclasses import dataclass, field

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

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
    return get_peft_model(model, config)


__all__ = ["LoraArguments", "apply_lora"]
