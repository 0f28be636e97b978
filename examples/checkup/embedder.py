"""Check that sentence-transformers opens the same files and gives the same vectors."""

import importlib.util
from typing import Any

from examples.checkup.files import is_refused_as_embedder
from examples.checkup.findings import Finding, judged, not_applicable
from examples.checkup.invariance import TEXTS, vectors_agree
from examples.checkup.leaks import windows_by_layer
from examples.checkup.opening import Opened

NAME = "sentence-transformers"


def embedder_findings(opened: Opened) -> list[Finding]:
    """Return one row: its vectors against those of `encode`, with the stored default prompt on both sides."""
    if opened.kind == "plain decoder":
        return [not_applicable(NAME, "a plain decoder; it would be read causally")]
    if is_refused_as_embedder(opened):
        return [not_applicable(NAME, "an adapter over a plain decoder; merge it first")]
    if opened.source.file("modules.json") is None and opened.kind == "adapter":
        return [not_applicable(NAME, "an adapter of peft's own making")]
    if importlib.util.find_spec("sentence_transformers") is None:
        return [not_applicable(NAME, "not installed: pip install '.[eval]'")]
    from sentence_transformers import SentenceTransformer

    model = opened.model
    where: dict[str, Any] = {"revision": opened.source.arguments.get("revision")}
    embedder = SentenceTransformer(
        opened.source.path, device=str(model.device), model_kwargs={"dtype": model.dtype}, **where
    )
    theirs = embedder.encode(list(TEXTS), normalize_embeddings=True, show_progress_bar=False)
    ours = model.encode(list(TEXTS), normalize_embeddings=True)
    good, figure = vectors_agree(ours, theirs.astype("float32"), model.dtype)
    windows = [window for window in windows_by_layer(model.config) if window is not None]
    longest = max(len(states) for states in model.encode(list(TEXTS), output_value="token_embeddings"))
    if windows and longest <= min(windows):
        figure += f"; no text reaches beyond the window of {min(windows)}"
    return [judged(NAME, good, f"its vectors of {len(TEXTS)} texts and `encode`'s: {figure}")]


__all__ = ["embedder_findings"]
