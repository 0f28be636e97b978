"""Encode texts as sentence embeddings, with the names, defaults and results of sentence-transformers.

The sidecar files of a checkpoint configure that library to tokenize, truncate and pool as this module does.

Shapes: B rows of a batch, S tokens of the longest, H hidden size.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from transformers.utils.logging import tqdm

from .batching_magnet import (
    HiddenStates,
    check_vectors,
    evaluating,
    hidden_states,
    is_progress_hidden,
    pad_token_id,
    probe_attention,
    token_budget,
)
from .configuration_magnet import POOLINGS, MagnetSettings, Pooling
from .pooling_magnet import PRECISIONS, Precision, quantize_embeddings, sentence_vectors
from .tokenization_magnet import (
    check_choice,
    check_texts,
    check_whole_number,
    checked_prompt_length,
    context_length,
    longest_row,
    pad_token_rows,
    tokenize_texts,
)

# Number of texts whose token ids are in memory. Texts are sorted by length first, so these have similar lengths.
TEXTS_TOKENIZED_AT_ONCE = 8192
# Copying vectors from the device synchronizes with it, so the vectors of several batches are copied together.
BATCHES_MOVED_AT_ONCE = 16
OutputValue = Literal["sentence_embedding", "token_embeddings"]


@torch.no_grad()
def encode(
    model: Any,
    inputs: str | Sequence[str] | None = None,
    prompt_name: str | None = None,
    *,
    sentences: str | Sequence[str] | None = None,
    prompt: str | None = None,
    batch_size: int | None = None,
    show_progress_bar: bool | None = None,
    output_value: OutputValue | None = "sentence_embedding",
    precision: Precision = "float32",
    convert_to_numpy: bool = True,
    convert_to_tensor: bool = False,
    device: str | torch.device | None = None,
    normalize_embeddings: bool = False,
    truncate_dim: int | None = None,
    pooling: Pooling | None = None,
    max_length: int | None = None,
    batch_tokens: int | None = None,
    split_special_tokens: bool = True,
) -> Any:
    """Run bidirectional attention over `BOS prompt text EOS`, and pool the hidden states of each text to a vector.

    Args:
        inputs, sentences (`str` or `list[str]`): Texts; `sentences` is the older name.
        prompt_name, prompt (`str`, *optional*): Name of a stored prompt, or the prompt itself (`""` for none).
        batch_size, batch_tokens (`int`, *optional*): Maximum number of texts, and of tokens with padding, per forward.
        output_value (`str`, *optional*): `"sentence_embedding"`, `"token_embeddings"` (a tensor for each text) or
            `None` (a `dict` for each text); the last two ignore `convert_to_*` and `precision`.
        precision, pooling: See `quantize_embeddings` and `pool_states`.
        convert_to_numpy, convert_to_tensor: Return an array, or one tensor, or, if both are false, a list of tensors.
        truncate_dim, normalize_embeddings: Number of dimensions to keep, and whether to scale these to unit length.
        show_progress_bar (`bool`, *optional*): Defaults to showing one for long lists.
        device (`str` or `torch.device`, *optional*): Device to which the model is moved first.
        max_length (`int`, *optional*): Longest row in tokens; longer texts are truncated, with a warning.
        split_special_tokens (`bool`): Read control tokens in a text, such as `</s>`, as plain text.

    Returns:
        Float32 `(hidden_size,)` for a string, `(len(inputs), hidden_size)` for a list, in the order of `inputs`.

    Raises:
        ValueError: If an input is not text, an option is invalid, or the prompt leaves no space for text.
        RuntimeError: If the attention back-end does not implement the mode, or vectors are not finite.
    """
    single, texts = _checked_texts(inputs, sentences)
    _check_output(output_value, precision)
    options: dict[str, Any] = {"pooling": pooling, "truncate_dim": truncate_dim, "normalize": normalize_embeddings}
    call = _EncodeCall(model, texts, prompt, prompt_name, max_length, split_special_tokens, **options)
    if device is not None:
        model.to(device)
    budget, hide = token_budget(model, batch_tokens, batch_size), is_progress_hidden(show_progress_bar, len(texts))
    with evaluating(model):
        batches = call.read(batch_tokens=budget, batch_size=batch_size, hide=hide)
        if output_value == "sentence_embedding":
            output = call.embeddings(batches, precision, to_numpy=convert_to_numpy, to_tensor=convert_to_tensor)
        else:
            output = call.outputs(batches, output_value)
    call.warn_of_truncation()
    return output[0] if single else output


def encode_as(model: Any, role: str, inputs: Any, prompt_name: str | None, **kwargs: Any) -> Any:
    """Encode with the prompt that is stored under the name of a role, if any, unless another prompt is passed."""
    if kwargs.get("prompt") is None and prompt_name is None and role in model.prompts:
        prompt_name = role
    return model.encode(inputs, prompt_name, **kwargs)


def preprocess(
    model: Any, inputs: Sequence[str], prompt: str | None = None, *, split_special_tokens: bool = True
) -> dict[str, torch.Tensor]:
    """Tokenize texts as `encode` does, for `model(**features, mode="bidirectional")`.

    Args:
        inputs (`list[str]`): Texts.
        prompt (`str`, *optional*): Prepended to each text; by default not even the model's default prompt is.
        split_special_tokens (`bool`, defaults to `True`): As in `encode`.

    Returns:
        `dict`: `input_ids` and `attention_mask` of shape `(len(inputs), longest)`, padded on the right, on the CPU;
        empty without texts.
    """
    texts = check_texts(inputs, name="inputs")
    if not texts:
        return {}
    rows = tokenize_texts(
        model.tokenizer,
        texts,
        prompt=prompt,
        max_length=model.max_seq_length,
        split_special_tokens=split_special_tokens,
    )
    return pad_token_rows(rows.input_ids, pad_token_id=pad_token_id(model))


class _EncodeCall:
    """The validated options of one `encode` call; missing ones are taken from the model's settings."""

    def __init__(
        self,
        model: Any,
        texts: list[str],
        prompt: str | None,
        prompt_name: str | None,
        max_length: int | None,
        split_special_tokens: bool,
        *,
        pooling: Pooling | None,
        truncate_dim: int | None,
        normalize: bool,
    ) -> None:
        settings, tokenizer = MagnetSettings.from_config(model.config), model.tokenizer
        self.model, self.tokenizer, self.texts = model, tokenizer, texts
        self.reading: dict[str, Any] = {
            "prompt": settings.choose_prompt(prompt=prompt, prompt_name=prompt_name),
            "max_length": longest_row(model.config, tokenizer, max_length),
            "split_special_tokens": split_special_tokens,
        }
        self.prompt_length = checked_prompt_length(tokenizer, **self.reading)  # tokens that a mean excludes
        self.num_removed: list[int] = []  # tokens removed from each truncated text
        self.pooling: Pooling = settings.pooling if pooling is None else pooling
        check_choice(self.pooling, POOLINGS, name="pooling")
        self.width: int = model.config.hidden_size
        if truncate_dim is not None:
            check_whole_number(truncate_dim, name="truncate_dim", minimum=1, maximum=self.width)
            self.width = truncate_dim
        self.normalize = normalize

    def read(self, *, batch_tokens: int, batch_size: int | None, hide: bool) -> Iterator[HiddenStates]:
        """Yield the hidden states of all texts, the longest first."""
        probe_attention(self.model)
        longest_first = sorted(range(len(self.texts)), key=lambda index: -len(self.texts[index]))
        with tqdm(total=len(self.texts), desc="Encoding", unit="text", disable=hide) as bar:
            for start in range(0, len(self.texts), TEXTS_TOKENIZED_AT_ONCE):
                chosen = longest_first[start : start + TEXTS_TOKENIZED_AT_ONCE]
                texts = [self.texts[index] for index in chosen]
                rows, num_removed = tokenize_texts(self.tokenizer, texts, **self.reading)
                self.num_removed += filter(None, num_removed)
                for batch in hidden_states(self.model, rows, batch_tokens=batch_tokens, batch_size=batch_size):
                    yield batch._replace(indices=[chosen[index] for index in batch.indices])
                    bar.update(len(batch.indices))

    def pool(self, batch: HiddenStates) -> torch.Tensor:
        """Return the sentence vectors of a batch."""
        options: dict[str, Any] = {"pooling": self.pooling, "prompt_length": self.prompt_length}
        return self.shorten(sentence_vectors(self.model, batch.states, batch.attention_mask, **options))

    def shorten(self, vectors: torch.Tensor) -> torch.Tensor:
        """Truncate vectors to `truncate_dim`, and normalize them if requested."""
        vectors = vectors[..., : self.width]
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def embeddings(
        self, batches: Iterator[HiddenStates], precision: Precision, *, to_numpy: bool, to_tensor: bool
    ) -> Any:
        """Return sentence embeddings `(number of texts, width)` in the order of the texts."""
        # The dtype is explicit, because a thread that loads a model changes torch's default dtype for all threads.
        device = self.model.device if to_tensor else "cpu"
        table = torch.empty(len(self.texts), self.width, dtype=torch.float32, device=device)
        pending: list[tuple[list[int], torch.Tensor]] = []
        for batch in batches:
            pending.append((batch.indices, self.pool(batch)))
            if len(pending) == BATCHES_MOVED_AT_ONCE:
                self._move(pending, table)
        self._move(pending, table)
        if precision != "float32":
            table = torch.from_numpy(quantize_embeddings(table.cpu().numpy(), precision=precision)).to(device)
        return table if to_tensor else table.numpy() if to_numpy else list(table)

    def _move(self, pending: list[tuple[list[int], torch.Tensor]], table: torch.Tensor) -> None:
        """Check the pending vectors, and move them to the table."""
        if pending:
            indices = [index for batch, _ in pending for index in batch]
            vectors = torch.cat([vectors for _, vectors in pending]).to(table.device)
            check_vectors(self.model, vectors.isfinite().all(-1), texts=self.texts, indices=indices)
            table[torch.tensor(indices, device=table.device)] = vectors
            pending.clear()

    def outputs(self, batches: Iterator[HiddenStates], output_value: OutputValue | None) -> list[Any]:
        """Return float32 states `(S, width)` of each text, or all its outputs, named as in sentence-transformers."""
        outputs: list[Any] = [None] * len(self.texts)
        is_finite = torch.ones(len(self.texts), dtype=torch.bool)
        for batch in batches:
            for index, row, states, mask, vector in zip(*batch, self.pool(batch), strict=True):
                token_states = states[mask.bool()].float()
                is_finite[index] = token_states.isfinite().all() & vector.isfinite().all()
                outputs[index] = {
                    "input_ids": torch.tensor(row, device=states.device),
                    "attention_mask": mask[mask.bool()],
                    "token_embeddings": token_states,
                    "sentence_embedding": vector,
                }
        check_vectors(self.model, is_finite, texts=self.texts, indices=range(len(self.texts)))
        return [self.shorten(output["token_embeddings"]) for output in outputs] if output_value else outputs

    def warn_of_truncation(self) -> None:
        """Warn of truncated texts."""
        if self.num_removed:
            context, limit = context_length(self.model.config, self.tokenizer), self.reading["max_length"]
            remedy = f"Raise `max_length` up to {context}, split" if limit < context else "Split"
            warnings.warn(
                f"{len(self.num_removed)} of {len(self.texts)} texts were longer than {limit} tokens with BOS, prompt "
                f"and EOS, and were truncated by up to {max(self.num_removed)} tokens each "
                f"({sum(self.num_removed)} in total). {remedy} them, or use `encode_words` or "
                "`encode_tokens`, which read long texts in windows.",
                stacklevel=4,
            )


def _checked_texts(inputs: Any, sentences: Any) -> tuple[bool, list[str]]:
    """Return whether a single string was passed, and the texts as a list."""
    if inputs is not None and sentences is not None:
        raise ValueError("Both `inputs` and its older name `sentences` were passed. Pass one of them.")
    inputs = sentences if inputs is None else inputs
    single = isinstance(inputs, str)
    return single, check_texts([inputs] if single else inputs, name="inputs")


def _check_output(output_value: Any, precision: Any) -> None:
    """Raise for an unknown output or precision, or for quantized outputs other than sentence embeddings."""
    check_choice(output_value, (*get_args(OutputValue), None), name="output_value")
    check_choice(precision, PRECISIONS, name="precision")
    if output_value != "sentence_embedding" and precision != "float32":
        raise ValueError(
            f"precision={precision!r} was passed with output_value={output_value!r}; only sentence embeddings are "
            "quantized. Omit it, or pass token vectors to `quantize_embeddings`."
        )
