"""Encode one chunk of a corpus. Every engine runs this code, so that all of them write the same bytes."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from modeling_magnet.masking_magnet import MASKED_BACKENDS
from modeling_magnet.pooling_magnet import check_pooling
from modeling_magnet.sources_magnet import ModelSource
from modeling_magnet.tokenization_magnet import check_room, choose_prompt, context_length

MODEL_DTYPES = ("float32", "bfloat16")
# Precision -> what its vectors are stored as; for "float32", `dtype` says it.
BIT_DTYPES = {"binary": "int8", "ubinary": "uint8"}
DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """Which model, and how it encodes: as in `encode`."""

    model_name_or_path: str = field(
        metadata={"help": "Directory or Hub id of a MAGNET checkpoint, or of a plain Llama.", "aliases": ["--model"]}
    )
    model_dtype: str = field(default="float32", metadata={"help": "Dtype of the weights: float32 or bfloat16."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "eager, sdpa or flex_attention."})
    prompt: str | None = field(default=None, metadata={"help": "Instruction in front of each text; '' for none."})
    prompt_name: str | None = field(default=None, metadata={"help": "Name of an instruction stored with the model."})
    pooling: str | None = field(default=None, metadata={"help": "last, mean or weighted_mean; default the model's."})
    normalize_embeddings: bool = field(default=False, metadata={"help": "Scale each vector to unit length."})
    truncate_dim: int | None = field(default=None, metadata={"help": "Keep this many dimensions."})
    precision: str = field(default="float32", metadata={"help": "float32, binary or ubinary."})
    max_length: int | None = field(default=None, metadata={"help": "Longest row in tokens."})
    batch_tokens: int | None = field(default=None, metadata={"help": "Tokens of a forward, padding included."})
    dtype: str = field(default="float32", metadata={"help": "How the vectors are stored: float32 or float16."})
    threads: int | None = field(
        default=None,
        metadata={
            "help": "CPU threads of each process; default an equal share, or as the run that goes on began. The last "
            "bits of a vector depend on it."
        },
    )


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model before its weights are read."""

    width: int  # numbers of a stored vector
    dtype: str  # of a stored vector, as NumPy names it
    prompt: str | None  # before each text
    pooling: str
    revision: str | None  # of a model of the Hub
    files: dict[str, Any]  # what tells this state of a model on disk from another


def inspect_model(options: EncodingOptions) -> ModelFacts:
    """Check that a model, a MAGNET checkpoint or a plain Llama, can do what the options ask for; reads no weights."""
    _check_options(options)
    path = options.model_name_or_path
    source = ModelSource(path, {})
    try:
        revision = None if source.directory else extract_commit_hash(cached_file(source.path, "config.json"), None)
    except OSError as error:
        raise ValueError(
            f"`model_name_or_path` is {path!r}, where no model can be read ({error}). Name a folder or a Hub id."
        ) from error
    config, tokenizer = open_without_weights(path, revision=revision)
    settings = MagnetSettings.validated(config)
    context = context_length(config, tokenizer)
    if options.max_length is not None and not 3 <= options.max_length <= context:
        raise ValueError(f"`max_length` is {options.max_length}; expected 3 to {context}, the context of the model.")
    width = config.hidden_size if options.truncate_dim is None else options.truncate_dim
    if not 1 <= width <= config.hidden_size:
        raise ValueError(
            f"`truncate_dim` is {width}; embeddings have {config.hidden_size} dimensions, pass 1 to that."
        )
    prompt = choose_prompt(
        settings.prompts,
        prompt=options.prompt,
        prompt_name=options.prompt_name,
        default_prompt_name=settings.default_prompt_name,
    )
    check_room(tokenizer, prompt=prompt, max_length=options.max_length or context)
    return ModelFacts(
        width=-(-width // 8) if options.precision in BIT_DTYPES else width,
        dtype=BIT_DTYPES.get(options.precision, options.dtype),
        prompt=prompt,
        pooling=settings.pooling if options.pooling is None else options.pooling,
        revision=revision,
        files=describe_files(sorted(file for file in Path(source.path).glob("*") if file.is_file())),
    )


def _check_options(options: EncodingOptions) -> None:
    """Refuse what no model can do."""
    for name, known in (
        ("model_dtype", MODEL_DTYPES),
        ("attn_implementation", tuple(MASKED_BACKENDS)),
        ("dtype", DTYPES),
    ):
        if getattr(options, name) not in known:
            raise ValueError(f"`{name}` is {getattr(options, name)!r}; pass one of {list(known)}.")
    if options.pooling is not None:
        check_pooling(options.pooling)
    for name in ("batch_tokens", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` is {value}; expected at least 1.")
    if options.precision in ("int8", "uint8"):
        raise ValueError(
            f"`precision` is {options.precision!r}, which needs the range of each dimension over the whole corpus. "
            "Write float32, then call `quantize_embeddings` of `modeling_magnet.pooling_magnet` on the file."
        )
    if options.precision not in ("float32", *BIT_DTYPES):
        raise ValueError(f"`precision` is {options.precision!r}; pass one of {['float32', *BIT_DTYPES]}.")
    if options.precision in BIT_DTYPES and options.dtype != "float32":
        raise ValueError(
            f"`precision` is {options.precision!r}, whose vectors are bytes, but `dtype` is {options.dtype!r}. "
            "Leave one of them out."
        )


class ChunkEncoder:
    """A model that encodes chunks; it is loaded when the first text comes."""

    def __init__(self, options: EncodingOptions, facts: ModelFacts, *, device: str) -> None:
        self.options = options
        self.facts = facts
        self.device = device
        # Read when cuBLAS starts: its fast but unrepeatable workspaces are not used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    @cached_property
    def model(self) -> Any:
        """The model, from the revision that was inspected."""
        where = {} if self.facts.revision is None else {"revision": self.facts.revision}
        model = AutoMagnetForCausalLM.from_pretrained(
            self.options.model_name_or_path,
            attn_implementation=self.options.attn_implementation,
            dtype=getattr(torch, self.options.model_dtype),
            **where,
        )
        return model.to(self.device).eval()

    def __call__(self, chunk: Chunk, *, tell: Callable[[int], object] | None = None) -> np.ndarray:
        """Encode the texts of a chunk. The result depends on the chunk, options, device and threads, nothing else.

        Returns:
            `numpy.ndarray` of shape `(chunk.num_rows, width)`: NaN, or 0 where vectors are bytes, in rows without a
            text and in rows whose vector is not finite in the stored dtype.
        """
        dtype = np.dtype(self.facts.dtype)
        floating = dtype.kind == "f"
        vectors = np.full((chunk.num_rows, self.facts.width), np.nan if floating else 0, dtype=dtype)
        if chunk.texts:
            with _repeatable(self.options.threads), np.errstate(over="ignore"), _telling(self.model, tell):
                vectors[chunk.places] = self.model.encode(
                    chunk.texts,
                    prompt="" if self.facts.prompt is None else self.facts.prompt,
                    pooling=self.facts.pooling,
                    normalize_embeddings=self.options.normalize_embeddings,
                    truncate_dim=self.options.truncate_dim,
                    precision=self.options.precision,
                    max_length=self.options.max_length,
                    batch_tokens=self.options.batch_tokens,
                    show_progress_bar=False,
                )
        if floating:
            vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
        return vectors


def complaints_about(chunk: Chunk, vectors: np.ndarray) -> Iterator[Complaint]:
    """Yield texts whose vector overflowed or is not a number, by their row alone: their lines are not kept.

    Args:
        vectors (`numpy.ndarray` of shape `(chunk.num_rows, width)`): What a `ChunkEncoder` made of it.
    """
    if vectors.dtype.kind == "f":
        known = {complaint.row for complaint in chunk.complaints}
        for place in np.flatnonzero(np.isnan(vectors[:, 0])):
            row = chunk.first_row + int(place)
            if row not in known:
                yield Complaint(row, None, None, f"the vector is not finite in {vectors.dtype}")


@contextlib.contextmanager
def _telling(model: Any, tell: Callable[[int], object] | None) -> Iterator[None]:
    """Call `tell` with the number of texts of each batch that the model has read."""
    if tell is None:
        yield
        return
    run = model._row_states

    def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in run(*args, **kwargs):
            yield batch
            tell(len(batch.indices))

    model._row_states = counted
    try:
        yield
    finally:
        del model._row_states  # the method of the class is there again


@contextlib.contextmanager
def _repeatable(threads: int | None) -> Iterator[None]:
    """Use kernels that repeat their results bit for bit, on so many CPU threads."""
    memory: Any = torch.utils.deterministic
    num_threads, fills = torch.get_num_threads(), memory.fill_uninitialized_memory
    enabled, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.set_num_threads(num_threads if threads is None else threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # it costs time, and nothing here reads memory before writing it
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        memory.fill_uninitialized_memory = fills
