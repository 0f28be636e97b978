"""Texts -> sentence embeddings, with sentence-transformers' names, defaults and vectors.

What is joined, cut and pooled here is what the sidecar files of a checkpoint tell that library. The first half of the
file runs rows of tokens through a model; `encode` and its kin are the second half.

Shapes: B rows of a batch, S tokens of the longest, H hidden size, L tokens of rows packed into one.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Integral
from typing import Any, Literal, NamedTuple, get_args

import torch
from transformers.utils.logging import tqdm

from .attention_magnet import takes_float_masks
from .configuration_magnet import AttentionMode, MagnetSettings, check_tokenizer_fits
from .losses_magnet import IGNORE_INDEX
from .masking_magnet import PACKED_BACKENDS, layer_masks, packed_pattern
from .pooling_magnet import (
    Pooling,
    Precision,
    check_pooling,
    check_precision,
    pool_states,
    quantize_embeddings,
    similarity_matrix,
    similarity_pairs,
)
from .probe_magnet import check_attention, check_vectors
from .tokenization_magnet import (
    check_is_unicode,
    check_room,
    check_texts,
    choose_prompt,
    context_length,
    pack_token_rows,
    pad_token_rows,
    plan_batches,
    prompt_length,
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
# Packed rows end at a multiple of this: the blocks of a block mask, and few lengths to compile for.
PACKED_MULTIPLE = 1024
# Token ids of this many texts are held at once; their lengths vary little, because texts are sorted before.
TEXTS_TOKENIZED_AT_ONCE = 8192
# A progress bar over fewer texts only flickers; fewer batches suffice for fills, each of which takes many forwards.
PROGRESS_FROM_TEXTS = 1000
PROGRESS_FROM_BATCHES = 8

ReadingMode = Literal["bidirectional", "causal"]
OutputValue = Literal["sentence_embedding", "token_embeddings"]


def check_whole_number(value: Any, *, name: str, least: int | None = None) -> None:
    """Refuse a value that is not a whole number (`True` is not one), or is less than `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and int(value) < least):
        limit = "" if least is None else f" of at least {least}"
        raise ValueError(f"`{name}` is {value!r}; expected a whole number{limit}.")


def check_reading_mode(mode: str) -> None:
    """Refuse a mode that plain text cannot be read in."""
    if not isinstance(mode, str) or mode not in get_args(ReadingMode):
        raise ValueError(f"`mode` is {mode!r}; expected 'bidirectional' or 'causal'. Infill mode needs segment ids.")


def even_shape(longest: int, num_rows: int) -> tuple[int, int]:
    """Return the width and the number of rows with which a bfloat16 batch has the same sums as any other.

    Args:
        longest (`int`): Tokens of its longest row.
        num_rows (`int`): Its rows.

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
    states: torch.Tensor  # (B, S, H)
    attention_mask: torch.Tensor  # (B, S), right padded


def longest_row(model: Any, max_length: int | None) -> int:
    """Return the context in tokens, or the shorter `max_length`."""
    context = context_length(model.config, model.tokenizer)
    if max_length is None:
        return context
    check_whole_number(max_length, name="max_length")
    if max_length > context:
        raise ValueError(f"`max_length` is {max_length}; model and tokenizer have a context of {context} tokens.")
    return max_length


def token_budget(model: Any, batch_tokens: int | None = None, batch_size: int | None = None) -> int:
    """Check both limits of a batch, and return how many tokens it may have."""
    for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if value is not None:
            check_whole_number(value, name=name, least=1)
    if batch_tokens is not None:
        return batch_tokens
    return CPU_BATCH_TOKENS if model.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS


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


def probe_attention(model: Any) -> None:
    """Check the modes once for each back-end, device and dtype that a model is used with."""
    used_with = (str(model.config._attn_implementation), model.device.type, str(model.dtype))
    if used_with not in model._probed:
        check_attention(model)
        model._probed.add(used_with)


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


def hidden_states(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    batch_tokens: int,
    batch_size: int | None,
    mode: ReadingMode = "bidirectional",
) -> Iterator[HiddenStates]:
    """Yield the hidden states of all rows, batch by batch, without waiting for the device.

    Rows are packed where the back-end skips the blocks that a block mask leaves out; otherwise, and in causal mode,
    they are padded to the longest of their batch.

    Args:
        model: One of our models.
        rows (`Sequence[Sequence[int]]`): Token ids.
        batch_tokens (`int`): Tokens of a forward, padding included.
        batch_size (`int`, *optional*): Rows of a forward.
        mode (`str`): Of the forwards.
    """
    packed = mode == "bidirectional" and model.config._attn_implementation in PACKED_BACKENDS
    run = _packed_states if packed else partial(_padded_states, mode=mode)
    lengths = [len(row) for row in rows]
    for indices in plan_batches(lengths, max_tokens=batch_tokens, max_rows=batch_size, padded=not packed):
        yield HiddenStates(indices, *run(model, [rows[index] for index in indices]))


def _padded_states(
    model: Any, rows: Sequence[Sequence[int]], *, mode: ReadingMode
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states `(B, S, H)` and attention mask `(B, S)` of a padded batch."""
    filler, longest = pad_token_id(model), max(map(len, rows))
    width, num_rows = longest, len(rows)
    if mode == "bidirectional" and takes_float_masks(model.dtype, model.device):
        width, num_rows = even_shape(longest, len(rows))
    fillers = [[filler]] * (num_rows - len(rows))
    batch = to_device(model, pad_token_rows([*rows, *fillers], pad_token_id=filler, width=width))
    attention_mask = batch["attention_mask"]
    # Read off the lists: the device is not waited for.
    is_padded = min(map(len, rows)) < width or len(fillers) > 0
    outputs = model(
        batch["input_ids"],
        attention_mask=attention_mask if is_padded else None,
        mode=mode,
        use_cache=False,
        logits_to_keep=torch.arange(0, device=model.device),
    )
    return outputs.last_hidden_state[: len(rows), :longest], attention_mask[: len(rows), :longest]


def _packed_states(model: Any, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same for rows that the model reads as one, each of which sees only itself."""
    packed = to_device(
        model, pack_token_rows(rows, pad_token_id=pad_token_id(model), multiple=PACKED_MULTIPLE)._asdict()
    )
    masks = layer_masks(
        model.config,
        packed_pattern(packed["row_ids"]),
        query_positions=packed["position_ids"],
        key_positions=packed["position_ids"],
        dtype=model.dtype,
    )
    states = model.run_decoder(
        "bidirectional",
        input_ids=packed["input_ids"],
        attention_mask=masks,
        position_ids=packed["position_ids"],
        use_cache=False,
    ).last_hidden_state[0]  # (L, H)
    lengths = torch.tensor([len(row) for row in rows])
    place = torch.arange(int(lengths.max()))
    inside = place < lengths[:, None]  # (B, S)
    source = (lengths.cumsum(0) - lengths)[:, None] + place.where(inside, 0)
    unpacked = to_device(model, {"source": source, "inside": inside.long()})
    return states[unpacked["source"]], unpacked["inside"]


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
    _check_output(output_value, precision, device)
    rows = _TextRows.of(model, prompt, prompt_name, max_length, split_special_tokens)
    read = _Reader.of(model, rows, pooling, truncate_dim, normalize_embeddings)
    budget, hide = token_budget(model, batch_tokens, batch_size), hides_bar(show_progress_bar, len(texts))
    if device is not None:
        model.to(device)
    with evaluating(model):
        batches = _encoded_batches(model, texts, rows, batch_tokens=budget, batch_size=batch_size, hide=hide)
        if output_value == "sentence_embedding":
            output: Any = _sentence_table(read, batches, texts, on_device=convert_to_tensor)
            output = _convert(model, output, precision, to_numpy=convert_to_numpy, to_tensor=convert_to_tensor)
        else:
            output = (_all_outputs if output_value is None else _token_states)(read, batches, texts)
    _warn_of_cuts(rows, len(texts), context=longest_row(model, None))
    return output[0] if single else output


def encode_as(model: Any, role: str, inputs: Any, prompt_name: str | None, **kwargs: Any) -> Any:
    """Encode with the stored prompt of a role, where there is one and no other is asked for."""
    unasked = kwargs.get("prompt") is None and prompt_name is None
    if unasked and role in model.magnet_settings.prompts:
        prompt_name = role
    return model.encode(inputs, prompt_name, **kwargs)


def compare(model: Any, left: Any, right: Any, *, pairwise: bool = False) -> torch.Tensor:
    """Compare two sets of embeddings by the model's similarity."""
    measure = similarity_pairs if pairwise else similarity_matrix
    return measure(left, right, name=model.magnet_settings.similarity_fn_name)


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
    if isinstance(inputs, str):
        raise ValueError(f"`inputs` is a string ({inputs!r:.60}); expected a list of texts. Put it into a list.")
    texts = check_texts(inputs, name="inputs")
    if not texts:
        return {}
    length = model.max_seq_length
    rows = tokenize_texts(
        model.tokenizer, texts, prompt=prompt, max_length=length, split_special_tokens=split_special_tokens
    )
    return pad_token_rows(rows, pad_token_id=pad_token_id(model))


def sentence_vectors(
    model: Any, states: torch.Tensor, attention_mask: torch.Tensor, *, pooling: Pooling, prompt_length: int
) -> torch.Tensor:
    """Pool hidden states `(B, S, H)` to float32 vectors `(B, H)`, through the contrastive head where one was kept."""
    vectors = pool_states(states, attention_mask, pooling=pooling, prompt_length=prompt_length)
    if MagnetSettings.of(model.config).contrastive_head is not None:
        vectors = model.sscl_head(vectors.to(model.dtype)).float()
    return vectors


def chosen_prompt(model: Any, *, prompt: str | None, prompt_name: str | None) -> str | None:
    """Return the prompt of a call: given, named, or the model's default."""
    settings = model.magnet_settings
    chosen = choose_prompt(
        settings.prompts, prompt=prompt, prompt_name=prompt_name, default_prompt_name=settings.default_prompt_name
    )
    check_is_unicode(chosen or "", name="prompt")
    return chosen


def hides_bar(show_progress_bar: bool | None, number: int, *, least: int = PROGRESS_FROM_TEXTS) -> bool:
    """Return whether to show no progress over so many texts or batches."""
    return number < least if show_progress_bar is None else not show_progress_bar


class _TextRows(NamedTuple):
    """How the texts of a call become rows of tokens: the arguments of `tokenize_texts`."""

    prompt: str | None
    max_length: int
    split_special_tokens: bool
    lost: list[int]  # takes how many tokens each text that was cut has lost

    @classmethod
    def of(cls, model: Any, prompt: str | None, prompt_name: str | None, max_length: int | None, split: bool) -> Any:
        """Choose the prompt, and check that it leaves space for text."""
        chosen = chosen_prompt(model, prompt=prompt, prompt_name=prompt_name)
        rows = cls(chosen, longest_row(model, max_length), split, [])
        check_room(model.tokenizer, prompt=chosen, max_length=rows.max_length, split_special_tokens=split)
        return rows


class _Reader(NamedTuple):
    """What is read of the hidden states of a call."""

    model: Any
    pooling: Pooling
    prompt_length: int  # tokens that a mean leaves out
    width: int
    normalize: bool

    @classmethod
    def of(cls, model: Any, rows: _TextRows, pooling: Pooling | None, width: int | None, normalize: bool) -> Any:
        """Take the model's pooling where none is asked for, and check the rest."""
        pooling = model.magnet_settings.pooling if pooling is None else pooling
        check_pooling(pooling)
        left_out = 0
        if pooling != "last":
            left_out = prompt_length(model.tokenizer, rows.prompt, split_special_tokens=rows.split_special_tokens)
        return cls(model, pooling, left_out, _check_width(model, width), normalize)

    def shorten(self, vectors: torch.Tensor) -> torch.Tensor:
        """Keep the first dimensions, and scale to unit length where that was asked for."""
        vectors = vectors[..., : self.width]
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def pool(self, batch: "_EncodedBatch") -> torch.Tensor:
        """Return the sentence vectors of a batch."""
        options: dict[str, Any] = {"pooling": self.pooling, "prompt_length": self.prompt_length}
        return self.shorten(sentence_vectors(self.model, batch.states, batch.attention_mask, **options))


class _EncodedBatch(NamedTuple):
    """Hidden states of some texts of a call."""

    indices: list[int]  # which texts these are
    rows: list[list[int]]  # their token ids
    states: torch.Tensor  # (B, S, H)
    attention_mask: torch.Tensor  # (B, S)


def _encoded_batches(
    model: Any, texts: list[str], how: _TextRows, *, batch_tokens: int, batch_size: int | None, hide: bool
) -> Iterator[_EncodedBatch]:
    """Yield the hidden states of texts, longest first."""
    probe_attention(model)
    longest_first = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    with tqdm(total=len(texts), desc="Encoding", unit="text", disable=hide) as bar:
        for start in range(0, len(texts), TEXTS_TOKENIZED_AT_ONCE):
            chosen = longest_first[start : start + TEXTS_TOKENIZED_AT_ONCE]
            rows = tokenize_texts(model.tokenizer, [texts[index] for index in chosen], **how._asdict())
            # A method, so that whoever encodes a corpus can count the batches.
            for batch in model._row_states(rows, batch_tokens=batch_tokens, batch_size=batch_size):
                indices = [chosen[index] for index in batch.indices]
                own = [rows[index] for index in batch.indices]
                yield _EncodedBatch(indices, own, batch.states, batch.attention_mask)
                bar.update(len(batch.indices))


def _sentence_table(
    read: _Reader, batches: Iterator[_EncodedBatch], texts: list[str], *, on_device: bool
) -> torch.Tensor:
    """Return sentence embeddings `(len(texts), width)` in the order of the texts."""
    # The dtype is explicit: while any thread loads a model, torch's default dtype is that model's, for all threads.
    table = torch.empty(len(texts), read.width, dtype=torch.float32, device=read.model.device if on_device else "cpu")
    indices: list[int] = []
    parts: list[torch.Tensor] = []

    def move() -> None:
        rows = torch.tensor(indices, dtype=torch.long, device=table.device)
        vectors = torch.cat(parts).to(table.device)
        check_vectors(read.model, vectors.isfinite().all(-1), texts=texts, indices=indices)
        table[rows] = vectors

    for batch in batches:
        indices += batch.indices
        parts.append(read.pool(batch))
        if len(indices) >= TEXTS_TOKENIZED_AT_ONCE:
            move()
            indices, parts = [], []
    if parts:
        move()
    return table


def _convert(model: Any, embeddings: torch.Tensor, precision: Precision, *, to_numpy: bool, to_tensor: bool) -> Any:
    """Return sentence embeddings in the form that was asked for."""
    if precision != "float32":
        embeddings = torch.from_numpy(quantize_embeddings(embeddings.cpu().numpy(), precision=precision))
    if to_tensor:
        return embeddings.to(model.device)
    return embeddings.numpy() if to_numpy else list(embeddings)


def _token_states(read: _Reader, batches: Iterator[_EncodedBatch], texts: list[str]) -> list[torch.Tensor]:
    """Return float32 states `(S, width)` of all tokens of each text."""
    states: list[torch.Tensor] = [torch.empty(0, dtype=torch.float32)] * len(texts)
    for batch in batches:
        for index, row, mask in zip(batch.indices, batch.states, batch.attention_mask, strict=True):
            states[index] = read.shorten(row[mask.bool()].float())
    if states:
        is_finite = torch.stack([row.isfinite().all() for row in states])
        check_vectors(read.model, is_finite, texts=texts, indices=range(len(texts)))
    return states


def _all_outputs(read: _Reader, batches: Iterator[_EncodedBatch], texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """Return all that a text has, under sentence-transformers' names, without padding."""
    outputs: list[dict[str, torch.Tensor]] = [{} for _ in texts]
    for batch in batches:
        for index, row, states, mask, vector in zip(*batch, read.pool(batch), strict=True):
            outputs[index] = {
                "input_ids": torch.tensor(row, dtype=torch.long, device=states.device),
                "attention_mask": mask[mask.bool()],
                "token_embeddings": states[mask.bool()].float(),
                "sentence_embedding": vector,
            }
    if outputs:
        names = ("token_embeddings", "sentence_embedding")
        is_finite = [torch.stack([one[name].isfinite().all() for name in names]).all() for one in outputs]
        check_vectors(read.model, torch.stack(is_finite), texts=texts, indices=range(len(texts)))
    return outputs


def _checked_texts(inputs: Any, sentences: Any) -> tuple[bool, list[str]]:
    """Return whether a single string was given, and the texts."""
    if inputs is not None and sentences is not None:
        raise ValueError("Both `inputs` and its older name `sentences` were given. Pass the texts once.")
    inputs = sentences if inputs is None else inputs
    single = isinstance(inputs, str)
    return single, check_texts([inputs] if single else inputs, name="inputs")


def _check_width(model: Any, truncate_dim: int | None) -> int:
    """Return the dimensions of an embedding."""
    full: int = model.config.hidden_size
    if truncate_dim is None:
        return full
    check_whole_number(truncate_dim, name="truncate_dim")
    if not 1 <= truncate_dim <= full:
        raise ValueError(f"`truncate_dim` is {truncate_dim}; embeddings have {full} dimensions, pass 1 to {full}.")
    return truncate_dim


def _check_output(output_value: Any, precision: Any, device: Any) -> None:
    """Refuse an output or a precision that does not exist, or both where they do not go together."""
    check_precision(precision)
    if output_value is not None and (not isinstance(output_value, str) or output_value not in get_args(OutputValue)):
        raise ValueError(
            f"`output_value` is {output_value!r}; expected 'sentence_embedding', 'token_embeddings' or None."
        )
    if output_value != "sentence_embedding" and precision != "float32":
        raise ValueError(
            f"precision={precision!r} was given with output_value={output_value!r}; only sentence embeddings are "
            "quantised. Leave it out, or pass token vectors to `quantize_embeddings`."
        )
    if isinstance(device, list | tuple):
        raise ValueError(
            f"`device` is {device!r:.60}; expected one device, because this encodes in one process. For several use "
            "examples/encode_corpus.py, or SentenceTransformer(directory) with its pool."
        )


def _warn_of_cuts(rows: _TextRows, num_texts: int, *, context: int) -> None:
    """Say how many texts were cut, and by how much."""
    lost, limit = rows.lost, rows.max_length
    if lost:
        remedy = f"Raise `max_length` up to {context}, split" if limit < context else "Split"
        warnings.warn(
            f"{len(lost)} of {num_texts} texts were longer than {limit} tokens with BOS, prompt and EOS, and lost "
            f"their ends: at most {max(lost)} tokens, {sum(lost)} in all. {remedy} them, or use `encode_words` or "
            "`encode_tokens`, which read long texts in windows.",
            stacklevel=4,
        )


# The infill side is to be functions, too; until then its mixins have no base of their own here.
EncodingMixin: Any = object


__all__ = [
    "ACCELERATOR_BATCH_TOKENS",
    "CPU_BATCH_TOKENS",
    "EncodingMixin",
    "HiddenStates",
    "OutputValue",
    "PROGRESS_FROM_BATCHES",
    "PROGRESS_FROM_TEXTS",
    "ReadingMode",
    "check_reading_mode",
    "check_whole_number",
    "chosen_prompt",
    "compare",
    "encode",
    "encode_as",
    "evaluating",
    "even_shape",
    "hidden_states",
    "hides_bar",
    "infill_batch",
    "longest_row",
    "pad_token_id",
    "preprocess",
    "probe_attention",
    "sentence_vectors",
    "target_logprobs",
    "to_device",
    "token_budget",
]
