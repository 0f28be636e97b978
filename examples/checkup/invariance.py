"""Check that vectors and fills do not depend on the batch, and that sentence-transformers gives the same vectors."""

import importlib.util
from typing import Any

import numpy as np
import torch

from examples.checkup.findings import Finding, judged, not_applicable
from examples.checkup.opening import Opened

TEXTS = (
    "The cat sat on the mat.",
    "dog",
    "She ate the apple for breakfast and the bread for lunch, and then she went home through the forest.",
    "",
    "naïve café",
)
BLANKS = (("The cat", " the mat."), ("She ate the apple", " for lunch, and the dog barked at the cat."), ("", " dog."))
FILL_LENGTH = 4
# Tolerance of float32 unit vectors; in half precision, the least cosine.
VECTOR_TOLERANCE = 1e-5
MIN_HALF_COSINE = 0.999


def vectors_agree(first: np.ndarray, second: np.ndarray, dtype: torch.dtype) -> tuple[bool, str]:
    """Return whether two tables of unit vectors agree, and the figure that shows it.

    Args:
        first, second (`np.ndarray` of shape `(N, hidden size)`): Unit vectors.
    """
    if dtype in (torch.float32, torch.float64):
        furthest = float(np.abs(first - second).max())
        return furthest <= VECTOR_TOLERANCE, f"unit vectors differ by {furthest:.1e} (limit {VECTOR_TOLERANCE:.0e})"
    # sentence-transformers normalizes in the model's own precision, so that lengths differ slightly from one.
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    cosine = float(((first * second).sum(-1) / lengths).min())
    return cosine >= MIN_HALF_COSINE, f"cosine {cosine:.5f} or more (limit {MIN_HALF_COSINE})"


def encode_findings(model: Any) -> list[Finding]:
    """Compare the vectors of texts encoded together, in another order, and one by one."""
    texts = list(TEXTS)
    together = model.encode(texts, normalize_embeddings=True)
    backwards = model.encode(texts[::-1], normalize_embeddings=True)[::-1]
    alone = np.stack([model.encode(text, normalize_embeddings=True) for text in texts])
    both = np.concatenate([together, together]), np.concatenate([backwards, alone])
    good, figure = vectors_agree(*both, model.dtype)
    return [
        judged("encode, batch invariance", good, f"{len(texts)} texts alone, together, in another order: {figure}")
    ]


def infill_findings(model: Any) -> list[Finding]:
    """Compare blanks filled together with blanks filled one by one."""
    name = "infill, batch invariance"
    if model.dtype not in (torch.float32, torch.float64):
        return [not_applicable(name, f"in {model.dtype} the likeliest of two like tokens may change with the batch")]
    prefixes, suffixes = (list(column) for column in zip(*BLANKS, strict=True))
    together = model.infill(prefixes, suffixes, max_new_tokens=FILL_LENGTH, do_sample=False)
    alone = [model.infill(prefix, suffix, max_new_tokens=FILL_LENGTH, do_sample=False) for prefix, suffix in BLANKS]
    detail = f"{len(BLANKS)} blanks of {FILL_LENGTH} tokens, alone and together: "
    differing = [f"{one!r} and {other!r}" for one, other in zip(alone, together, strict=True) if one != other]
    return [judged(name, not differing, detail + ("; ".join(differing) or "the same fills"))]


def embedder_findings(opened: Opened) -> list[Finding]:
    """Compare the vectors of sentence-transformers with those of `encode`, both with the default prompt."""
    name = "sentence-transformers"
    if opened.is_causal_embedder():
        return [not_applicable(name, f"{opened.kind} that it would read causally; save or merge it first")]
    if importlib.util.find_spec("sentence_transformers") is None:
        return [not_applicable(name, "not installed: pip install '.[eval]'")]
    from sentence_transformers import SentenceTransformer

    model = opened.model
    where: dict[str, Any] = {"revision": opened.source.arguments.get("revision")}
    embedder = SentenceTransformer(
        opened.source.path, device=str(model.device), model_kwargs={"dtype": model.dtype}, **where
    )
    theirs = embedder.encode(list(TEXTS), normalize_embeddings=True, show_progress_bar=False)
    ours = model.encode(list(TEXTS), normalize_embeddings=True)
    good, figure = vectors_agree(ours, theirs.astype("float32"), model.dtype)
    return [judged(name, good, f"its vectors of {len(TEXTS)} texts and `encode`'s: {figure}")]
