"""Smaller embeddings: a byte or a bit per dimension, by sentence-transformers' rules, so that indexes fit both."""

from typing import Literal, get_args

import numpy as np

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PRECISIONS = get_args(Precision)


def quantize_embeddings(
    embeddings: np.ndarray, *, precision: Precision, ranges: np.ndarray | None = None
) -> np.ndarray:
    """Quantise embeddings.

    Args:
        embeddings (`numpy.ndarray` of shape `(N, H)`): In floating point.
        precision (`str`): `"float32"` changes nothing. `"uint8"` and `"int8"` split each dimension's range into 256
            buckets, numbered from 0 or from -128. `"ubinary"` keeps the signs, eight to a byte, the first in the
            highest bit; `"binary"` is the same less 128 as a signed byte.
        ranges (`numpy.ndarray` of shape `(2, H)`, *optional*): Lowest and highest value of each dimension, for the
            bytes; by default those of `embeddings`. Queries and documents need the same ones.

    Returns:
        `numpy.ndarray`: `(N, H)`, or for bits `(N, ceil(H / 8))`.

    Raises:
        ValueError: unknown precision, numbers that are not finite, or ranges that would have to come from a single
            embedding.

    Example:

        >>> quantize_embeddings(np.array([[-1.0, 0.0], [254.0, 510.0]]), precision="uint8").tolist()
        [[0, 0], [255, 255]]
        >>> quantize_embeddings(np.array([[0.5, -1.0]]), precision="ubinary").tolist()
        [[128]]
    """
    check_precision(precision)
    if not np.isfinite(embeddings).all():
        rows = np.flatnonzero(~np.isfinite(embeddings).all(axis=-1))
        raise ValueError(
            f"{len(rows)} of {len(embeddings)} embeddings are not finite, row {rows[0]} first; as bytes or bits they "
            "would look like any other. Find out where the NaN comes from: often it is the dtype float16."
        )
    if precision == "float32":
        return embeddings.astype(np.float32)
    if precision.endswith("binary"):
        bits = np.packbits(embeddings > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if ranges is None:
        if len(embeddings) == 1:
            raise ValueError(
                f"precision={precision!r} takes each dimension's range from the embeddings, but there is one only. "
                "Encode more texts in a call, or quantise with `quantize_embeddings(..., ranges=)`."
            )
        empty = np.zeros((2, embeddings.shape[-1]))
        ranges = np.stack([embeddings.min(0), embeddings.max(0)]) if len(embeddings) else empty
    lowest, highest = ranges.astype(np.float32)
    step = (highest - lowest) / 255
    buckets = np.clip(np.floor((embeddings - lowest) / np.where(step == 0, 1, step)), 0, 255)
    return buckets.astype(np.uint8) if precision == "uint8" else (buckets - 128).astype(np.int8)


def check_precision(precision: str) -> None:
    """Refuse a precision that does not exist.

    Raises:
        ValueError: naming those that do.
    """
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"`precision` is {precision!r}; expected one of {list(PRECISIONS)}.")


__all__ = ["PRECISIONS", "Precision", "check_precision", "quantize_embeddings"]
