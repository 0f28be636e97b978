"""Texts -> sentence embeddings, with sentence-transformers' names, defaults and vectors.

What is joined, cut and pooled here is what the sidecar files of a checkpoint tell that library. The file runs rows of
tokens through a model, then `encode` and its kin, then checks that attention is what a mode says.

Shapes: B rows of a batch, S tokens of the longest, H hidden size.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
import transformers
from transformers.utils.logging import tqdm

from .attention_magnet import takes_float_masks
from .configuration_magnet import AttentionMode, MagnetSettings, check_tokenizer_fits
from .losses_magnet import IGNORE_INDEX
from .pooling_magnet import (
    PRECISIONS,
    Pooling,
    Precision,
    check_choice,
    check_pooling,
    pool_states,
    quantize_embeddings,
)
from .tokenization_magnet import (
    check_room,
    check_texts,
    check_whole_number,
    choose_prompt,
    context_length,
    front_tokens,
    longest_row,
    pad_token_rows,
    plan_batches,
    tokenize_texts,
)

# Tokens of a forward. On a CPU they should stay in its caches; an accelerator needs more work to be busy.
CPU_BATCH_TOKENS = 2048
ACCELERATOR_BATCH_TOKENS = 16_384
# In bfloat16 on a CPU the kernels of matrix products change with the shape, and sum in another order. 18 layers turn
# that into cosines of 0.994 between a text alone and in a batch. These shapes get kernels with the same sums (torch
# 2.13, AMX): at least so many positions in all, in rows of 16 or of a multiple of 32.
LEAST_BFLOAT16_POSITIONS = 1024
BFLOAT16_ROWS = (16, 32)
# Token ids of this many texts are held at once; their lengths vary little, because texts are sorted before.
TEXTS_TOKENIZED_AT_ONCE = 8192
# Moving vectors from the device waits for it, so those of many batches are moved at once.
BATCHES_MOVED_AT_ONCE = 16
# A progress bar over fewer texts only flickers; fewer batches suffice for fills, each of which takes many forwards.
PROGRESS_FROM_TEXTS = 1000
PROGRESS_FROM_BATCHES = 8

ReadingMode = Literal["bidirectional", "causal"]
OutputValue = Literal["sentence_embedding", "token_embeddings"]


def hides_bar(show_progress_bar: bool | None, number: int, *, least: int = PROGRESS_FROM_TEXTS) -> bool:
    """Return whether to show no progress over so many texts or batches."""
    return number < least if show_progress_bar is None else not show_progress_bar


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Run a block without dropout; modules that were in training mode are so again afterwards.

    A model that is not in training mode is not written to, so that threads can share it.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def token_budget(model: Any, batch_tokens: int | None = None, batch_size: int | None = None) -> int:
    """Check both limits of a batch, and return how many tokens it may have."""
    for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if value is not None:
            check_whole_number(value, name=name, least=1)
    default = CPU_BATCH_TOKENS if model.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS
    return default if batch_tokens is None else batch_tokens


def pad_token_id(model: Any) -> int:
    """Return the token that fills up a batch; it is never attended to.

    Raises:
        ValueError: tokens were added to the tokenizer that the model has no embeddings for.
    """
    tokenizer = model.tokenizer
    check_tokenizer_fits(tokenizer, model.config.vocab_size)
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token_id for token_id in known if token_id is not None)


def to_device(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move a batch to the model's device; a GPU fetches pinned memory without the host waiting."""
    if model.device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(model.device, non_blocking=True) for name, tensor in batch.items()}


def even_shape(longest: int, num_rows: int) -> tuple[int, int]:
    """Return the width and the number of rows with which a bfloat16 batch has the same sums as any other.

    Example:

        >>> even_shape(5, 2), even_shape(20, 40), even_shape(600, 1)
        ((16, 64), (32, 40), (608, 2))
    """
    small, multiple = BFLOAT16_ROWS
    width = small if longest <= small else -(-longest // multiple) * multiple
    return width, max(num_rows, -(-LEAST_BFLOAT16_POSITIONS // width))


class HiddenStates(NamedTuple):
    """Hidden states of some rows of a call."""

    indices: list[int]  # which rows these are
    rows: list[Sequence[int]]  # their token ids
    states: torch.Tensor  # (B, S, H)
    attention_mask: torch.Tensor  # (B, S), right padded


def hidden_states(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    batch_tokens: int,
    batch_size: int | None,
    mode: ReadingMode = "bidirectional",
) -> Iterator[HiddenStates]:
    """Yield the hidden states of all rows, batch by batch, without waiting for the device.

    Args:
        model: One of our models.
        rows (`Sequence[Sequence[int]]`): Token ids.
        batch_tokens (`int`): Tokens of a forward, padding included.
        batch_size (`int`, *optional*): Rows of a forward.
        mode (`str`): Of the forwards.
    """
    filler = pad_token_id(model)
    is_evened = mode == "bidirectional" and takes_float_masks(model.dtype, model.device)
    for indices in plan_batches([len(row) for row in rows], max_tokens=batch_tokens, max_rows=batch_size):
        own = [rows[index] for index in indices]
        longest, shortest = len(own[0]), len(own[-1])
        width, num_rows = even_shape(longest, len(own)) if is_evened else (longest, len(own))
        fillers = [[filler]] * (num_rows - len(own))
        batch = to_device(model, pad_token_rows([*own, *fillers], pad_token_id=filler, width=width))
        attention_mask = batch["attention_mask"]
        # Read off the lists: the device is not waited for.
        is_padded = shortest < width or len(fillers) > 0
        outputs = model(
            batch["input_ids"],
            attention_mask=attention_mask if is_padded else None,
            mode=mode,
            use_cache=False,
            logits_to_keep=torch.arange(0, device=model.device),
        )
        states = outputs.last_hidden_state[: len(own), :longest]
        yield HiddenStates(indices, own, states, attention_mask[: len(own), :longest])


def infill_batch(
    model: Any, ids: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], segments: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Return rows with their positions and segments as arguments of an infill forward, on the model's device."""
    batch = pad_token_rows(ids, pad_token_id=pad_token_id(model))
    batch["position_ids"] = pad_token_rows(positions, pad_token_id=0)["input_ids"]
    batch["segment_ids"] = pad_token_rows(segments, pad_token_id=0)["input_ids"]
    return to_device(model, batch)


def target_logprobs(
    model: Any, batch: dict[str, torch.Tensor], targets: Sequence[tuple[int, int, int, int]], *, mode: AttentionMode
) -> list[float]:
    """Return the log-probabilities of tokens in one forward, with memory for the logits of a few of them.

    Args:
        model: One of our models.
        batch (`dict`): Arguments of the forward, on the model's device.
        targets (`Sequence[tuple[int, int, int, int]]`): Layer, row, position and token: the output at the position
            predicts the token. Tokens of one position are in different layers, numbered from 0.
        mode (`str`): Of the forward.
    """
    if not targets:
        return []
    layers, rows, columns, tokens = to_device(model, {"all": torch.tensor(targets).T.contiguous()})["all"]
    shape = (1 + max(target[0] for target in targets), *batch["input_ids"].shape)
    target_ids = torch.full(shape, IGNORE_INDEX, device=model.device)
    target_ids[layers, rows, columns] = tokens
    outputs = model(**batch, mode=mode, target_ids=target_ids, num_targets=len(targets), use_cache=False)
    found: list[float] = (-outputs.token_losses[layers, rows, columns]).tolist()
    return found


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
    call = _Call(model, texts, prompt, prompt_name, max_length, split_special_tokens, **how)
    if device is not None:
        model.to(device)
    budget, hide = token_budget(model, batch_tokens, batch_size), hides_bar(show_progress_bar, len(texts))
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


class _Call:
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


# Tokens that any vocabulary has; special ones would do as well.
PROBE_IDS = (3, 7, 4, 9, 5, 8)
NUM_KEPT = 3
# Equal rows of one batch may differ in their last bits.
NOISE_FACTOR = 10

_REMEDY = (
    "Either its weights are damaged: look for NaN in the checkpoint. Or its states are too large for this dtype: load "
    "it with dtype='bfloat16' or dtype='float32'."
)


def probe_attention(model: Any) -> None:
    """Check the modes once for each back-end, device and dtype that a model is used with."""
    used_with = (str(model.config._attn_implementation), model.device.type, str(model.dtype))
    if used_with not in model._probed:
        check_attention(model)
        model._probed.add(used_with)


@torch.no_grad()
def check_attention(model: Any) -> None:
    """Check by two short forwards that later tokens change earlier hidden states in bidirectional mode only.

    The batch holds a row, the same row with other tokens at its end, and the row again, which shows the rounding noise
    of the back-end. Each row begins with BOS as real texts do: its hidden state is far larger than the others.

    Raises:
        RuntimeError: a mode attends to too much or too little, or hidden states are not finite; names back-end and
            versions.
    """
    vocab_size = model.config.vocab_size
    ids = torch.tensor([PROBE_IDS] * 3) % vocab_size
    ids[1, NUM_KEPT:] = (ids[1, NUM_KEPT:] + 1) % vocab_size
    try:
        front = front_tokens(model.tokenizer)
    except ValueError:  # a model without a tokenizer
        front = []
    ids = torch.cat([torch.tensor([front] * 3, dtype=torch.long), ids], dim=1).to(model.device)
    moved, noise = {}, {}
    for mode in ("bidirectional", "causal"):  # a back-end without the first raises
        outputs = model(ids, mode=mode, use_cache=False, logits_to_keep=torch.arange(0))
        kept = outputs.last_hidden_state[:, : len(front) + NUM_KEPT]
        if not kept.isfinite().all():
            raise RuntimeError(f"The hidden states of the model are not finite, with {_used_with(model)}. {_REMEDY}")
        moved[mode], noise[mode] = (float((kept[row] - kept[0]).abs().max()) for row in (1, 2))
    complaints = []
    if not moved["bidirectional"] > NOISE_FACTOR * noise["bidirectional"]:
        complaints.append("bidirectional mode does not see later tokens: embeddings would silently be causal")
    if moved["causal"] > NOISE_FACTOR * noise["causal"] and moved["causal"] > 0.01 * moved["bidirectional"]:
        complaints.append("causal mode sees later tokens: generation would silently be wrong")
    if complaints:
        raise RuntimeError(
            f"Attention is not what the mode says, with {_used_with(model)}: {'; '.join(complaints)} (hidden states "
            f"moved by {moved}, noise {noise}). Choose another back-end with `model.set_attn_implementation(...)` or "
            "other versions, and report it."
        )


def check_vectors(model: Any, is_finite: torch.Tensor, *, texts: Sequence[str], indices: Sequence[int]) -> None:
    """Raise a RuntimeError that names the first texts whose vectors are not finite; waits for the device once.

    Args:
        model (`PreTrainedModel`): The model that made them.
        is_finite (`torch.BoolTensor` of shape `(N,)`): Whether all vectors of a text are finite.
        texts (`Sequence[str]`): All texts of the call.
        indices (`Sequence[int]`): Which N of them were embedded.
    """
    if bool(is_finite.all()):
        return
    wrong = sorted(index for index, fine in zip(indices, is_finite.tolist(), strict=True) if not fine)
    named = ", ".join(f"{index} ({texts[index]!r:.40})" for index in wrong[:3]) + (", ..." if len(wrong) > 3 else "")
    raise RuntimeError(
        f"The vectors of {len(wrong)} of {len(indices)} texts are not finite: texts {named}, with "
        f"{_used_with(model)}. {_REMEDY}"
    )


def _used_with(model: Any) -> str:
    """Return back-end, device, dtype and versions for a message."""
    return (
        f"attn_implementation={model.config._attn_implementation!r} on {model.device.type} in {model.dtype}, "
        f"transformers {transformers.__version__}, torch {torch.__version__}"
    )


__all__ = [
    "ACCELERATOR_BATCH_TOKENS",
    "CPU_BATCH_TOKENS",
    "PROGRESS_FROM_BATCHES",
    "PROGRESS_FROM_TEXTS",
    "ReadingMode",
    "check_attention",
    "check_vectors",
    "encode",
    "encode_as",
    "evaluating",
    "hidden_states",
    "hides_bar",
    "infill_batch",
    "pad_token_id",
    "preprocess",
    "probe_attention",
    "sentence_vectors",
    "target_logprobs",
    "to_device",
    "token_budget",
]
