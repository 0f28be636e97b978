"""Encode texts as sentence embeddings, with sentence-transformers' names, defaults and vectors.

The sidecar files of a checkpoint tell that library to tokenize, truncate and pool as the functions here do.

Shapes: B rows of a batch, S tokens of the longest, H hidden size.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from transformers.utils.logging import tqdm

from .batching_magnet import HiddenStates, evaluating, is_progress_hidden, pad_token_id, token_budget
from .configuration_magnet import MagnetSettings
from .pooling_magnet import (
    PRECISIONS,
    Pooling,
    Precision,
    check_choice,
    check_pooling,
    pool_states,
    quantize_embeddings,
)
from .probe_magnet import check_vectors, probe_attention
from .tokenization_magnet import (
    check_room,
    check_texts,
    check_whole_number,
    choose_prompt,
    context_length,
    longest_row,
    pad_token_rows,
    tokenize_texts,
)

# Token ids of this many texts are held at once; their lengths vary little, because texts are sorted before.
TEXTS_TOKENIZED_AT_ONCE = 8192
# Moving vectors from the device waits for it, so those of many batches are moved at once.
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
    """Embed texts: bidirectional attention over `BOS prompt text EOS`, one vector from the hidden states.

    Args:
        inputs, sentences (`str` or `list[str]`): Texts, by the new or the older name.
        prompt_name, prompt (`str`, *optional*): Name of a stored prompt, or the prompt itself (`""` for none).
        batch_size, batch_tokens (`int`, *optional*): Texts, and tokens with padding, of a forward at most.
        output_value (`str`, *optional*): `"sentence_embedding"`, `"token_embeddings"` (a tensor for each text) or
            `None` (a `dict` for each text); the last two ignore `convert_to_*` and `precision`.
        precision, pooling: See `quantize_embeddings` and `pool_states`.
        convert_to_numpy, convert_to_tensor: An array, or one tensor; without either a list of tensors.
        truncate_dim, normalize_embeddings: Dimensions to keep, and whether to scale what is kept to unit length.
        show_progress_bar (`bool`, *optional*): Defaults to showing one on long lists.
        device (`str` or `torch.device`, *optional*): Move the model there first.
        max_length (`int`, *optional*): Longest row in tokens; longer texts are cut, and a warning counts them.
        split_special_tokens (`bool`): Read control tokens in a text, such as `</s>`, as plain characters.

    Returns:
        Float32 `(hidden_size,)` for a string, `(len(inputs), hidden_size)` for a list, in the order of `inputs`.

    Raises:
        ValueError: an input that is not text, an invalid option, or a prompt that leaves no space for text.
        RuntimeError: the back-end does not attend as the mode says, or vectors are not finite.
    """
    single, texts = _checked_texts(inputs, sentences)
    _check_output(output_value, precision)
    how: dict[str, Any] = {"pooling": pooling, "truncate_dim": truncate_dim, "normalize": normalize_embeddings}
    call = _EncodeCall(model, texts, prompt, prompt_name, max_length, split_special_tokens, **how)
    if device is not None:
        model.to(device)
    budget, hide = token_budget(model, batch_tokens, batch_size), is_progress_hidden(show_progress_bar, len(texts))
    with evaluating(model):
        batches = call.read(batch_tokens=budget, batch_size=batch_size, hide=hide)
        if output_value == "sentence_embedding":
            output = call.embeddings(batches, precision, to_numpy=convert_to_numpy, to_tensor=convert_to_tensor)
        else:
            output = call.outputs(batches, output_value)
    call.warn_of_cuts()
    return output[0] if single else output


def encode_as(model: Any, role: str, inputs: Any, prompt_name: str | None, **kwargs: Any) -> Any:
    """Encode with the stored prompt of a role, where there is one and no other is asked for."""
    if kwargs.get("prompt") is None and prompt_name is None and role in model.prompts:
        prompt_name = role
    return model.encode(inputs, prompt_name, **kwargs)


def preprocess(
    model: Any, inputs: Sequence[str], prompt: str | None = None, *, split_special_tokens: bool = True
) -> dict[str, torch.Tensor]:
    """Tokenise texts as `encode` does, for `model(**features, mode="bidirectional")`.

    Args:
        model: One of our models.
        inputs (`list[str]`): Texts.
        prompt (`str`, *optional*): Put in front of each; none by default, the model's default prompt included.
        split_special_tokens (`bool`, defaults to `True`): As in `encode`.

    Returns:
        `dict`: `input_ids` and `attention_mask` of shape `(len(inputs), longest)`, padded on the right, on the CPU;
        empty for no texts.

    Raises:
        ValueError: the inputs are not a list of texts.
    """
    texts = check_texts(inputs, name="inputs")
    if not texts:
        return {}
    options: dict[str, Any] = {"prompt": prompt, "split_special_tokens": split_special_tokens}
    rows = tokenize_texts(model.tokenizer, texts, max_length=model.max_seq_length, **options)
    return pad_token_rows(rows, pad_token_id=pad_token_id(model))


def sentence_vectors(
    model: Any, states: torch.Tensor, attention_mask: torch.Tensor, *, pooling: Pooling, prompt_length: int
) -> torch.Tensor:
    """Pool hidden states `(B, S, H)` to float32 vectors `(B, H)`, through the contrastive head where one was kept."""
    vectors = pool_states(states, attention_mask, pooling=pooling, prompt_length=prompt_length)
    if MagnetSettings.of(model.config).contrastive_head is not None:
        vectors = model.sscl_head(vectors.to(model.dtype)).float()
    return vectors


class _EncodeCall:
    """A call of `encode`: its options, checked, or the model's settings in place of those that were not given."""

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
        settings, tokenizer = MagnetSettings.of(model.config), model.tokenizer
        self.model, self.tokenizer, self.texts = model, tokenizer, texts
        self.reading: dict[str, Any] = {
            "prompt": choose_prompt(settings, prompt=prompt, prompt_name=prompt_name),
            "max_length": longest_row(model.config, tokenizer, max_length),
            "split_special_tokens": split_special_tokens,
        }
        self.prompt_length = check_room(tokenizer, **self.reading)  # tokens that a mean leaves out
        self.lost: list[int] = []  # takes how many tokens each text that was cut has lost
        self.pooling: Pooling = settings.pooling if pooling is None else pooling
        check_pooling(self.pooling)
        self.width: int = model.config.hidden_size
        if truncate_dim is not None:
            check_whole_number(truncate_dim, name="truncate_dim", least=1, most=self.width)
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
                rows = tokenize_texts(self.tokenizer, texts, **self.reading, lost=self.lost)
                # A method, so that whoever encodes a corpus can count the batches.
                for batch in self.model._row_states(rows, batch_tokens=batch_tokens, batch_size=batch_size):
                    yield batch._replace(indices=[chosen[index] for index in batch.indices])
                    bar.update(len(batch.indices))

    def pool(self, batch: HiddenStates) -> torch.Tensor:
        """Return the sentence vectors of a batch."""
        how: dict[str, Any] = {"pooling": self.pooling, "prompt_length": self.prompt_length}
        return self.shorten(sentence_vectors(self.model, batch.states, batch.attention_mask, **how))

    def shorten(self, vectors: torch.Tensor) -> torch.Tensor:
        """Keep the first dimensions, and scale to unit length where that was asked for."""
        vectors = vectors[..., : self.width]
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def embeddings(
        self, batches: Iterator[HiddenStates], precision: Precision, *, to_numpy: bool, to_tensor: bool
    ) -> Any:
        """Return sentence embeddings `(number of texts, width)` in the order of the texts."""
        # The dtype is explicit: while any thread loads a model, torch's default is that model's, for all threads.
        device = self.model.device if to_tensor else "cpu"
        table = torch.empty(len(self.texts), self.width, dtype=torch.float32, device=device)
        waiting: list[tuple[list[int], torch.Tensor]] = []
        for batch in batches:
            waiting.append((batch.indices, self.pool(batch)))
            if len(waiting) == BATCHES_MOVED_AT_ONCE:
                self._move(waiting, table)
        self._move(waiting, table)
        if precision != "float32":
            table = torch.from_numpy(quantize_embeddings(table.cpu().numpy(), precision=precision)).to(device)
        return table if to_tensor else table.numpy() if to_numpy else list(table)

    def _move(self, waiting: list[tuple[list[int], torch.Tensor]], table: torch.Tensor) -> None:
        """Check the vectors that wait, and write them into the table."""
        if waiting:
            indices = [index for batch, _ in waiting for index in batch]
            vectors = torch.cat([vectors for _, vectors in waiting]).to(table.device)
            check_vectors(self.model, vectors.isfinite().all(-1), texts=self.texts, indices=indices)
            table[torch.tensor(indices, device=table.device)] = vectors
            waiting.clear()

    def outputs(self, batches: Iterator[HiddenStates], output_value: OutputValue | None) -> list[Any]:
        """Return float32 states `(S, width)` of each text, or all it has under sentence-transformers' names."""
        outputs: list[Any] = [None] * len(self.texts)
        is_finite = torch.ones(len(self.texts), dtype=torch.bool)
        for batch in batches:
            for index, row, states, mask, vector in zip(*batch, self.pool(batch), strict=True):
                own = states[mask.bool()].float()
                is_finite[index] = own.isfinite().all() & vector.isfinite().all()
                outputs[index] = {
                    "input_ids": torch.tensor(row, device=states.device),
                    "attention_mask": mask[mask.bool()],
                    "token_embeddings": own,
                    "sentence_embedding": vector,
                }
        check_vectors(self.model, is_finite, texts=self.texts, indices=range(len(self.texts)))
        return [self.shorten(each["token_embeddings"]) for each in outputs] if output_value else outputs

    def warn_of_cuts(self) -> None:
        """Say how many texts were cut, and by how much."""
        if self.lost:
            context, limit = context_length(self.model.config, self.tokenizer), self.reading["max_length"]
            remedy = f"Raise `max_length` up to {context}, split" if limit < context else "Split"
            warnings.warn(
                f"{len(self.lost)} of {len(self.texts)} texts were longer than {limit} tokens with BOS, prompt and "
                f"EOS, and lost their ends: at most {max(self.lost)} tokens, {sum(self.lost)} in all. {remedy} them, "
                "or use `encode_words` or `encode_tokens`, which read long texts in windows.",
                stacklevel=4,
            )


def _checked_texts(inputs: Any, sentences: Any) -> tuple[bool, list[str]]:
    """Return whether a single string was given, and the texts."""
    if inputs is not None and sentences is not None:
        raise ValueError("Both `inputs` and its older name `sentences` were given. Pass the texts once.")
    inputs = sentences if inputs is None else inputs
    single = isinstance(inputs, str)
    return single, check_texts([inputs] if single else inputs, name="inputs")


def _check_output(output_value: Any, precision: Any) -> None:
    """Refuse an output or a precision that does not exist, or both where they do not go together."""
    check_choice(output_value, (*get_args(OutputValue), None), name="output_value")
    check_choice(precision, PRECISIONS, name="precision")
    if output_value != "sentence_embedding" and precision != "float32":
        raise ValueError(
            f"precision={precision!r} was given with output_value={output_value!r}; only sentence embeddings are "
            "quantised. Leave it out, or pass token vectors to `quantize_embeddings`."
        )
