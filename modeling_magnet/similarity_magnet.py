"""How alike two sets of embeddings are, under sentence-transformers' names. Larger is always more alike."""

from typing import Any, Literal, get_args

import numpy as np
import torch

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
SIMILARITIES = get_args(Similarity)


def similarity_matrix(left: Any, right: Any, *, name: Similarity) -> torch.Tensor:
    """Every embedding of one set against every one of another.

    Args:
        left (`numpy.ndarray` or `torch.Tensor` of shape `(N, H)` or `(H,)`): Embeddings.
        right (`numpy.ndarray` or `torch.Tensor` of shape `(M, H)` or `(H,)`): Embeddings.
        name (`str`): `"cosine"`, `"dot"`, or a distance with a minus in front: `"euclidean"`, `"manhattan"`.

    Returns:
        `torch.FloatTensor` of shape `(N, M)`, in float32.

    Raises:
        ValueError: unknown name, no vectors of numbers, or widths that differ.

    Example:

        >>> similarity_matrix([[3.0, 4.0]], [[0.0, 5.0], [3.0, 4.0], [6.0, 8.0]], name="dot").tolist()
        [[20.0, 25.0, 50.0]]
    """
    left, right = _comparable(left, right, name=name)
    if name == "euclidean":
        return -torch.cdist(left, right)
    if name == "manhattan":
        return -torch.cdist(left, right, p=1)
    return left @ right.T


def similarity_pairs(left: Any, right: Any, *, name: Similarity) -> torch.Tensor:
    """Each embedding of one set against the one in the same row of another.

    Args:
        left (`numpy.ndarray` or `torch.Tensor` of shape `(N, H)` or `(H,)`): Embeddings.
        right (`numpy.ndarray` or `torch.Tensor` of shape `(N, H)` or `(H,)`): Embeddings.
        name (`str`): As for `similarity_matrix`.

    Returns:
        `torch.FloatTensor` of shape `(N,)`, in float32.

    Raises:
        ValueError: unknown name, no vectors of numbers, or shapes that differ.

    Example:

        >>> similarity_pairs([[3.0, 4.0], [1.0, 0.0]], [[3.0, 4.0], [1.0, 2.0]], name="euclidean").tolist()
        [-0.0, -2.0]
    """
    left, right = _comparable(left, right, name=name)
    if len(left) != len(right):
        raise ValueError(f"{len(left)} and {len(right)} embeddings do not make pairs; pass as many of each.")
    if name == "euclidean":
        return -(left - right).norm(dim=-1)
    if name == "manhattan":
        return -(left - right).abs().sum(-1)
    return (left * right).sum(-1)


def _comparable(left: Any, right: Any, *, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two float32 matrices of one width, their rows of unit length where cosines are asked for."""
    if not isinstance(name, str) or name not in SIMILARITIES:
        raise ValueError(f"The similarity is {name!r}; expected one of {list(SIMILARITIES)}.")
    left, right = _rows(left), _rows(right)
    if left.shape[-1] != right.shape[-1]:
        raise ValueError(f"Embeddings of {left.shape[-1]} and of {right.shape[-1]} dimensions cannot be compared.")
    if name == "cosine":
        return torch.nn.functional.normalize(left, dim=-1), torch.nn.functional.normalize(right, dim=-1)
    return left, right


def _rows(embeddings: Any) -> torch.Tensor:
    """A float32 matrix of them."""
    try:
        if isinstance(embeddings, list) and embeddings and isinstance(embeddings[0], torch.Tensor):
            rows = torch.stack(embeddings)
        elif isinstance(embeddings, torch.Tensor):
            rows = embeddings
        else:
            rows = torch.from_numpy(np.asarray(embeddings, order="C"))  # torch has no reversed views
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Embeddings were given as {type(embeddings).__name__} ({embeddings!r:.60}), which is no array of numbers "
            f"({error}). Pass what `encode` returns."
        ) from error
    if rows.dim() not in (1, 2):
        raise ValueError(f"Embeddings were given in shape {tuple(rows.shape)}; expected (width,) or (number, width).")
    return (rows[None] if rows.dim() == 1 else rows).float()


__all__ = ["SIMILARITIES", "Similarity", "similarity_matrix", "similarity_pairs"]
