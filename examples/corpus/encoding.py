"""Encode one chunk of a corpus."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from examples.corpus.reading import Chunk, Complaint, describe_files
from modeling_magnet import AutoMagnetForCausalLM, MagnetSettings
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.sources_magnet import ModelSource
from modeling_magnet.tokenization_magnet import checked_prompt_length, context_length


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Facts about a model that are known before its weights are read."""

    width: int  # numbers per stored vector
    prompt: str | None  # prepended to each text
    pooling: str
    revision: str | None  # of a model on the Hub
    files: dict[str, Any]  # distinguishes this state of a model on disk from others


def inspect_model(args: argparse.Namespace) -> ModelFacts:
    """Check, without reading weights, that a MAGNET checkpoint or plain decoder supports the requested options."""
    source = ModelSource(args.model, {})
    try:
        revision = None if source.directory else extract_commit_hash(cached_file(source.path, "config.json"), None)
    except OSError as error:
        raise ValueError(
            f"`--model` is {args.model!r}, where no model can be read ({error}). Name a folder or a Hub id."
        ) from error
    config, tokenizer = open_without_weights(args.model, revision=revision)
    settings = MagnetSettings.validated(config)
    context = context_length(config, tokenizer)
    width = args.truncate_dim or config.hidden_size
    for name, most in (("truncate_dim", config.hidden_size), ("max_length", context)):
        value = getattr(args, name)
        if value is not None and value > most:
            raise ValueError(f"`--{name}` is {value}; this model has {most}. Pass at most that.")
    prompt = settings.choose_prompt(prompt=args.prompt, prompt_name=args.prompt_name)
    checked_prompt_length(tokenizer, prompt=prompt, max_length=args.max_length or context)
    return ModelFacts(
        width=width,
        prompt=prompt,
        pooling=args.pooling or settings.pooling,
        revision=revision,
        files=describe_files(sorted(file for file in Path(source.path).glob("*") if file.is_file())),
    )


class ChunkEncoder:
    """Encode chunks with a model that is loaded for the first text."""

    def __init__(self, args: argparse.Namespace, facts: ModelFacts, *, device: str) -> None:
        self.args = args
        self.facts = facts
        self.device = device
        # Read when cuBLAS starts: excludes its fast but nondeterministic workspaces.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    @cached_property
    def model(self) -> Any:
        """Load the model at the revision that was inspected."""
        where = {} if self.facts.revision is None else {"revision": self.facts.revision}
        model = AutoMagnetForCausalLM.from_pretrained(
            self.args.model,
            attn_implementation=self.args.attn_implementation,
            dtype=getattr(torch, self.args.dtype),
            **where,
        )
        return model.to(self.device).eval()

    def __call__(self, chunk: Chunk) -> np.ndarray:
        """Encode the texts of a chunk. The result depends only on the chunk, arguments, device and threads.

        Returns:
            `numpy.ndarray` of shape `(chunk.num_rows, width)`: NaN in rows without a text and in rows whose vector is
            not finite in the stored dtype.
        """
        vectors = np.full((chunk.num_rows, self.facts.width), np.nan, dtype=self.args.output_dtype)
        if chunk.texts:
            with _repeatable(self.args.threads), np.errstate(over="ignore"):
                vectors[chunk.offsets] = self.model.encode(
                    chunk.texts,
                    prompt="" if self.facts.prompt is None else self.facts.prompt,
                    pooling=self.facts.pooling,
                    normalize_embeddings=self.args.normalize_embeddings,
                    truncate_dim=self.args.truncate_dim,
                    max_length=self.args.max_length,
                    batch_tokens=self.args.batch_tokens,
                    show_progress_bar=False,
                )
        vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
        return vectors


def complaints_about(chunk: Chunk, vectors: np.ndarray) -> Iterator[Complaint]:
    """Yield a complaint for each text whose vector is not finite in the stored dtype; files and lines are not kept.

    Args:
        vectors (`numpy.ndarray` of shape `(chunk.num_rows, width)`): What a `ChunkEncoder` made of it.
    """
    for offset in chunk.offsets:
        if np.isnan(vectors[offset, 0]):
            yield Complaint(chunk.first_row + offset, None, None, f"the vector is not finite in {vectors.dtype}")


@contextlib.contextmanager
def _repeatable(threads: int) -> Iterator[None]:
    """Use deterministic kernels on the given number of CPU threads."""
    memory: Any = torch.utils.deterministic
    num_threads, fills = torch.get_num_threads(), memory.fill_uninitialized_memory
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # nothing here reads memory before writing it
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        memory.fill_uninitialized_memory = fills
