"""The projection that the contrastive loss trains on top of the last token's state."""

import torch
from torch import nn


class ContrastiveHead(nn.Module):
    """One linear layer of the model's width and a tanh, as SimCSE's unsupervised recipe has it.

    Args:
        hidden_size (`int`): H, width of the states.

    Source: Gao et al. 2021 (https://huggingface.co/papers/2104.08821), section 3; the MAGNET paper names a
    projection head without describing it.
    """

    # transformers collects both from a model's modules. It takes a quantised model's state dict by itself, whatever
    # `save_pretrained` is handed; quantisation leaves the head alone, which is loaded afterwards in the model's dtype.
    _keys_to_ignore_on_save = frozenset({"linear.weight", "linear.bias"})
    _keep_in_fp32_modules = frozenset({"sscl_head"})

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Project states `(..., H)` to `(..., H)`, in the head's own dtype."""
        return torch.tanh(self.linear(states.to(self.linear.weight.dtype)))


__all__ = ["ContrastiveHead"]
