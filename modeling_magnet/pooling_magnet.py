"""Pool hidden states to vectors, project, compare and quantize them, with the results of sentence-transformers.

Shapes: B texts, S tokens in the longest, H hidden size.
"""

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .configuration_magnet import POOLINGS, SIMILARITIES, Pooling, Similarity
from .sources_magnet import HEAD_WEIGHTS, CheckpointError, ModelSource
from .tokenization_magnet import check_choice

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PRECISIONS = get_args(Precision)


def pool_states(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor, *, pooling: Pooling, prompt_length: int = 0
) -> torch.Tensor:
    """Pool the hidden states of each text to one float32 vector.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(B, S, H)`): Output of the last layer.
        attention_mask (`torch.Tensor` of shape `(B, S)`): Nonzero for real tokens; padding on either side.
        pooling (`str`): `"last"`: the last real token, EOS. `"mean"`: all real tokens. `"weighted_mean"`: all real
            tokens, weighted 1, 2, 3, ... by position.
        prompt_length (`int`, defaults to 0): Leading tokens, BOS included, that a mean excludes. The last token is
            never excluded.

    Returns:
        `torch.FloatTensor` of shape `(B, H)`; the mean of a row without real tokens is 0.

    Source: Muennighoff 2022 (SGPT, https://huggingface.co/papers/2202.08904) for the weighted mean.

    Example:

        >>> states = torch.tensor([[[1.0], [4.0], [9.0]]])
        >>> [round(pool_states(states, torch.tensor([[1, 1, 1]]), pooling=p).item(), 2) for p in POOLINGS]
        [9.0, 4.67, 6.0]
    """
    check_choice(pooling, POOLINGS, name="pooling")
    if pooling == "last":
        return last_token_states(hidden_states, attention_mask).float()
    position = attention_mask.cumsum(-1) * attention_mask  # 1 for the first real token, 0 for padding
    # If the tokenizer merges the prompt's end with the text, a row can be shorter than the tokenized prompt.
    counted = position > (attention_mask.sum(-1, keepdim=True) - 1).clamp(0, prompt_length)
    weights = (position if pooling == "weighted_mean" else torch.ones_like(position)) * counted  # (B, S)
    total = torch.einsum("bs,bsh->bh", weights.float(), hidden_states.float())
    return total / weights.sum(-1, keepdim=True).clamp(min=1)


def last_token_states(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the hidden state `(B, H)` of each row's last real token, with padding on either side."""
    last = attention_mask.shape[1] - 1 - attention_mask.bool().flip(-1).long().argmax(-1)  # (B,)
    return hidden_states[torch.arange(len(hidden_states), device=hidden_states.device), last]


def sentence_vectors(
    model: Any, states: torch.Tensor, attention_mask: torch.Tensor, *, pooling: Pooling, prompt_length: int
) -> torch.Tensor:
    """Pool hidden states `(B, S, H)` to float32 vectors `(B, H)`, and apply the contrastive head if there is one."""
    vectors = pool_states(states, attention_mask, pooling=pooling, prompt_length=prompt_length)
    if model.magnet_settings.contrastive_head is not None:
        vectors = model.sscl_head(vectors.to(model.dtype)).float()
    return vectors


def similarity_matrix(left: Any, right: Any, *, name: Similarity) -> torch.Tensor:
    """Compute the similarity of every pair of embeddings of two sets.

    Args:
        left, right (`numpy.ndarray` or `torch.Tensor` of shape `(N, H)` and `(M, H)`, or `(H,)`): Embeddings.
        name (`str`): `"cosine"`, `"dot"`, or a negated distance, `"euclidean"` or `"manhattan"`.

    Returns:
        `torch.FloatTensor` of shape `(N, M)`.

    Example:

        >>> similarity_matrix([[3.0, 4.0]], [[0.0, 5.0], [3.0, 4.0], [6.0, 8.0]], name="dot").tolist()
        [[20.0, 25.0, 50.0]]
    """
    left, right = _comparable(left, right, name=name)
    if name in ("euclidean", "manhattan"):
        return -torch.cdist(left, right, p=2 if name == "euclidean" else 1)
    return left @ right.T


def similarity_pairs(left: Any, right: Any, *, name: Similarity) -> torch.Tensor:
    """Compute the similarity `(N,)` of the embeddings in the same row of two sets, as in `similarity_matrix`."""
    left, right = _comparable(left, right, name=name)
    if len(left) != len(right):
        raise ValueError(f"{len(left)} and {len(right)} embeddings do not make pairs; pass equal numbers of them.")
    if name in ("euclidean", "manhattan"):
        return -(left - right).norm(p=2 if name == "euclidean" else 1, dim=-1)
    return (left * right).sum(-1)


def _comparable(left: Any, right: Any, *, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert both sets to float32 matrices, with rows of unit length for `"cosine"`."""
    check_choice(name, SIMILARITIES, name="similarity_fn_name")
    left, right = _rows(left), _rows(right)
    if name == "cosine":
        return torch.nn.functional.normalize(left, dim=-1), torch.nn.functional.normalize(right, dim=-1)
    return left, right


def _rows(embeddings: Any) -> torch.Tensor:
    """Convert embeddings to a float32 matrix."""
    if isinstance(embeddings, list) and embeddings and isinstance(embeddings[0], torch.Tensor):
        embeddings = torch.stack(embeddings)
    elif not isinstance(embeddings, torch.Tensor):
        embeddings = torch.from_numpy(np.asarray(embeddings, order="C"))  # torch has no negative strides
    if embeddings.dim() not in (1, 2):
        raise ValueError(f"Embeddings have shape {tuple(embeddings.shape)}; expected (width,) or (number, width).")
    return torch.atleast_2d(embeddings).float()


def quantize_embeddings(
    embeddings: np.ndarray, *, precision: Precision, ranges: np.ndarray | None = None
) -> np.ndarray:
    """Quantize embeddings to a byte or a bit per dimension.

    Args:
        embeddings (`numpy.ndarray` of shape `(N, H)`): In floating point.
        precision (`str`): `"uint8"` and `"int8"` split each dimension's range into 256 buckets. `"ubinary"` packs the
            signs, eight to a byte; `"binary"` subtracts 128 from these bytes. `"float32"` does not quantize.
        ranges (`numpy.ndarray` of shape `(2, H)`, *optional*): Lowest and highest value of each dimension for
            `"uint8"` and `"int8"`; defaults to those of `embeddings`. Use the same ones for queries and documents.

    Returns:
        `numpy.ndarray`: `(N, H)`, or for bits `(N, ceil(H / 8))`.

    Raises:
        ValueError: If the precision is unknown, embeddings are not finite, or one is quantized without `ranges`.

    Example:

        >>> quantize_embeddings(np.array([[-1.0, 0.0], [254.0, 510.0]]), precision="uint8").tolist()
        [[0, 0], [255, 255]]
        >>> quantize_embeddings(np.array([[0.5, -1.0]]), precision="ubinary").tolist()
        [[128]]
    """
    check_choice(precision, PRECISIONS, name="precision")
    is_finite = np.isfinite(embeddings).all(axis=-1)
    if not is_finite.all():
        raise ValueError(
            f"{(~is_finite).sum()} of {len(embeddings)} embeddings are not finite, row {is_finite.argmin()} first; "
            "quantizing would hide that. The dtype float16 is a common cause."
        )
    if precision == "float32":
        return embeddings.astype(np.float32)
    if precision.endswith("binary"):
        bits = np.packbits(embeddings > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if ranges is None:
        if len(embeddings) == 1:
            raise ValueError(
                f"precision={precision!r} takes each dimension's range from the embeddings, but there is only one. "
                "Encode more texts in a call, or call `quantize_embeddings(..., ranges=)`."
            )
        empty = np.zeros((2, embeddings.shape[-1]))
        ranges = np.stack([embeddings.min(0), embeddings.max(0)]) if len(embeddings) else empty
    lowest, highest = ranges.astype(np.float32)
    step = (highest - lowest) / 255
    buckets = np.clip(np.floor((embeddings - lowest) / np.where(step == 0, 1, step)), 0, 255)
    return buckets.astype(np.uint8) if precision == "uint8" else (buckets - 128).astype(np.int8)


# Name of the contrastive head in the model, and its prefix in state dicts. On disk it has the file HEAD_WEIGHTS.
HEAD_NAME = "sscl_head"
HEAD_PREFIX = f"{HEAD_NAME}."


class ContrastiveHead(nn.Module):
    """Project the last token's state for the contrastive loss: a linear layer and a tanh.

    Source: Gao et al. 2021 (SimCSE, https://huggingface.co/papers/2104.08821), section 3.
    """

    # transformers collects both attributes from a model's modules. `save_pretrained` of a quantized model ignores the
    # `state_dict` that is passed, so the head must be excluded here; quantization must skip it, because its own file
    # is loaded afterwards in the model's dtype.
    _keys_to_ignore_on_save = frozenset({"linear.weight", "linear.bias"})
    _keep_in_fp32_modules = frozenset({"sscl_head"})

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Project states `(..., H)` to `(..., H)`, in the head's own dtype."""
        return torch.tanh(self.linear(states.to(self.linear.weight.dtype)))


def write_head(model: Any, directory: Path, weights: dict[str, Any]) -> None:
    """Write the contrastive head of a state dict to its file, if the settings say that the model has one."""
    if model.magnet_settings.contrastive_head is not None:
        names = [name for name in weights if name.startswith(HEAD_PREFIX)]
        file = directory / HEAD_WEIGHTS
        file.parent.mkdir(exist_ok=True)
        save_file({name.removeprefix(HEAD_PREFIX): weights[name].contiguous() for name in names}, file)


def load_head(model: Any, source: ModelSource) -> None:
    """Load the contrastive head from its file."""
    file = source.file(HEAD_WEIGHTS)
    if file is None:
        raise CheckpointError(
            f"{source} has no {HEAD_WEIGHTS}, the file of its contrastive head. Download it again, or set "
            "`contrastive_head` in its settings to null to encode without it."
        )
    # Always build a new head: the one of the model may be missing (adapters) or quantized with the base.
    model.sscl_head = ContrastiveHead(model.config.hidden_size).to(device=model.device, dtype=model.dtype)
    model.sscl_head.load_state_dict(load_file(str(file)))
