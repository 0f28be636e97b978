"""Make adapters that change outputs from their first step on."""

from typing import Any

import torch
from peft import LoraConfig


def lora(**changes: Any) -> LoraConfig:
    """Return the config of an adapter on all linear layers."""
    defaults = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4, "init_lora_weights": False}
    return LoraConfig(**{**defaults, **changes})


def add_lora(model: Any, *, seed: int = 0, **changes: Any) -> Any:
    """Add an adapter that is drawn from a seed, and return the model in evaluation mode."""
    torch.manual_seed(seed)
    model.add_adapter(lora(**changes))
    return model.eval()
