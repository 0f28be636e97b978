"""States of tokens -> one vector per text. The rules are sentence-transformers', so that both give the same vectors.

Shapes: B texts, S tokens in the longest, H hidden size.
"""

from typing import Literal, get_args

import torch

Pooling = Literal["last", "mean", "weighted_mean"]
POOLINGS = get_args(Pooling)


def pool_states(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor, *, pooling: Pooling, prompt_length: int = 0
) -> torch.Tensor:
    """One vector per text, in float32.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(B, S, H)`): Output of the last layer.
        attention_mask (`torch.Tensor` of shape `(B, S)`): Nonzero for real tokens; padding on either side.
        pooling (`str`): `"last"`: the last real token, which is EOS. `"mean"`: over all real tokens, EOS included.
            `"weighted_mean"`: the same with weights 1, 2, 3, ... by position.
        prompt_length (`int`, defaults to 0): So many tokens in front, BOS included, are left out of a mean; positions
            go on counting them. The last token always counts, also in a row that is no longer than that.

    Returns:
        `torch.FloatTensor` of shape `(B, H)`; the mean of a row that is padding alone is 0.

    Raises:
        ValueError: unknown pooling.

    Source: Muennighoff 2022 (SGPT, https://huggingface.co/papers/2202.08904) for the weighted mean.

    Example:

        >>> states = torch.tensor([[[1.0], [4.0], [9.0]]])
        >>> [round(pool_states(states, torch.tensor([[1, 1, 1]]), pooling=p).item(), 2) for p in POOLINGS]
        [9.0, 4.67, 6.0]
    """
    check_pooling(pooling)
    if pooling == "last":
        return last_token_states(hidden_states, attention_mask).float()
    position = attention_mask.cumsum(-1) * attention_mask  # 1 for the first real token, 0 for padding
    # Where a tokenizer joins the prompt's end to the text, a row may be shorter than the prompt alone.
    counted = position > (attention_mask.sum(-1, keepdim=True) - 1).clamp(0, prompt_length)
    weights = (position if pooling == "weighted_mean" else torch.ones_like(position)) * counted  # (B, S)
    total = torch.einsum("bs,bsh->bh", weights.float(), hidden_states.float())
    return total / weights.sum(-1, keepdim=True).clamp(min=1)


def last_token_states(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The state of each row's last real token, wherever the padding is.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(B, S, H)`): Output of the last layer.
        attention_mask (`torch.Tensor` of shape `(B, S)`): Nonzero for real tokens.

    Returns:
        `torch.FloatTensor` of shape `(B, H)`.
    """
    last = attention_mask.shape[1] - 1 - attention_mask.bool().flip(-1).long().argmax(-1)  # (B,)
    return hidden_states[torch.arange(len(hidden_states), device=hidden_states.device), last]


def check_pooling(pooling: str) -> None:
    """Refuse a pooling that does not exist.

    Raises:
        ValueError: naming those that do.
    """
    if not isinstance(pooling, str) or pooling not in POOLINGS:
        raise ValueError(f"`pooling` is {pooling!r}; expected one of {list(POOLINGS)}.")


__all__ = ["POOLINGS", "Pooling", "check_pooling", "last_token_states", "pool_states"]
