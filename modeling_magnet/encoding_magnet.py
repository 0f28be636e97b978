"""Texts -> sentence embeddings, with sentence-transformers' names, defaults and vectors.

What is joined, cut and pooled here is what the sidecar files of a checkpoint tell that library.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from transformers.utils.logging import tqdm

from .embedder_magnet import EmbedderMixin
from .pooling_magnet import Pooling, check_pooling, pool_states
from .probe_magnet import check_vectors
from .prompts_magnet import choose_prompt
from .quantization_magnet import Precision, check_precision, quantize_embeddings
from .similarity_magnet import similarity_matrix, similarity_pairs
from .states_magnet import check_whole_number
from .texts_magnet import check_is_unicode, check_room, check_texts, prompt_length, tokenize_texts

# Token ids of this many texts are held at once; their lengths vary little, for the texts are sorted before.
TEXTS_TOKENIZED_AT_ONCE = 8192
# A progress bar over fewer texts only flickers.
PROGRESS_FROM_TEXTS = 1000
# The same of fills, each batch of which takes many forwards.
PROGRESS_FROM_BATCHES = 8

OutputValue = Literal["sentence_embedding", "token_embeddings"]


class _EncodedBatch(NamedTuple):
    """States of some texts of a call."""

    indices: list[int]  # which texts these are
    rows: list[list[int]]  # their token ids
    states: torch.Tensor  # (B, S, H)
    attention_mask: torch.Tensor  # (B, S)


class EncodingMixin(EmbedderMixin):
    """`encode`, `encode_query`, `encode_document`, `similarity`."""

    @torch.no_grad()
    def encode(
        self,
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
        pool: None = None,
        chunk_size: None = None,
    ) -> Any:
        """Embed texts: bidirectional attention over `BOS prompt text EOS`, one vector from the states.

        Batches are filled to a budget of tokens with texts of like length, so that memory is bounded by the budget
        and next to nothing is padded; with flex attention they are laid end to end and nothing is. A model in training
        mode encodes without dropout, and is in training mode afterwards.

        Args:
            inputs (`str` or `list[str]`): Texts, in any sequence. An empty text gives the vector of the prompt alone;
                a text beyond `max_length` is cut at its end, before the EOS, and a warning counts such texts.
            prompt_name (`str`, *optional*): Name of a prompt stored with the model.
            sentences (`str` or `list[str]`): The older name of `inputs`.
            prompt (`str`, *optional*): The prompt itself, joined by `join_prompt`; `""` for none. Without either,
                the model's default prompt. One that does not end in white space gets `": "` or a space behind it;
                sentence-transformers puts it in front as it is, so give it `"Find: "` where this gets `"Find"`.
            batch_size (`int`, *optional*): Texts per forward at most, beside `batch_tokens`.
            show_progress_bar (`bool`, *optional*): Defaults to showing one on long lists.
            output_value (`str`, *optional*, defaults to `"sentence_embedding"`): Or `"token_embeddings"`: the states
                of all tokens of a text, BOS, prompt and EOS included. Or `None`: a `dict` for each text with its
                `input_ids`, `attention_mask`, `token_embeddings` and `sentence_embedding`. Both come as tensors in a
                list, without padding, whatever the `convert_to_*` say. See `encode_tokens` for places in the text.
            precision (`str`, defaults to `"float32"`): See `quantize_embeddings`; others are for sentence embeddings.
            convert_to_numpy (`bool`, defaults to `True`): Return an array; else a list of tensors.
            convert_to_tensor (`bool`, defaults to `False`): Return one tensor on the model's device instead.
            device (`str` or `torch.device`, *optional*): Move the model there first.
            normalize_embeddings (`bool`, defaults to `False`): Scale each vector to unit length, those of
                `"token_embeddings"` too, where sentence-transformers ignores it.
            truncate_dim (`int`, *optional*): Keep this many dimensions in front, before scaling; of
                `"token_embeddings"` too, where sentence-transformers ignores it. With `output_value=None` both apply
                to `sentence_embedding` only.
            pooling (`str`, *optional*): See `pool_states`; defaults to the model's own. A mean leaves out the tokens
                of the prompt, counted alone as sentence-transformers does: where the prompt ends in a space that the
                vocabulary writes in one token with the word behind it, as byte-level vocabularies do, the first
                token of the text counts as the prompt's and is left out. `encode_tokens` gives that token a vector.
            max_length (`int`, *optional*): Longest row in tokens; defaults to `max_seq_length`.
            batch_tokens (`int`, *optional*): Tokens of a forward, padding included; defaults to what suits the device.
            split_special_tokens (`bool`, defaults to `True`): Read control tokens that stand in a text or a prompt,
                such as `</s>`, as the characters they are written with; `False` reads them as control tokens.
            pool, chunk_size: sentence-transformers' several processes; refused, as is a list of devices.

        Returns:
            Float32 vectors whatever the model's dtype, of shape `(hidden_size,)` for a string and `(len(inputs),
            hidden_size)` for a list, in the order of `inputs`.

        Raises:
            ValueError: something that is no text, an unknown prompt or option, one out of range, or a prompt that
                leaves no room for text.
            RuntimeError: the back-end does not attend as the mode says, or vectors are not finite.

        Source: Khosla et al. 2025, section 3.2, and section 5 of their appendix for the instructions.
        """
        if inputs is not None and sentences is not None:
            raise ValueError("Both `inputs` and its older name `sentences` were given. Pass the texts once.")
        inputs = sentences if inputs is None else inputs
        single = isinstance(inputs, str)
        texts = check_texts([inputs] if single else inputs, name="inputs")
        chosen = self._choose_prompt(prompt=prompt, prompt_name=prompt_name)
        pooling = self.magnet_settings.pooling if pooling is None else pooling
        check_pooling(pooling)
        _check_output(output_value, precision)
        _check_is_one_process(device, pool, chunk_size)
        width = self._check_width(truncate_dim)
        limit = self._longest_row(max_length)
        check_room(self.tokenizer, prompt=chosen, max_length=limit, split_special_tokens=split_special_tokens)
        if device is not None:
            self.to(device)  # type: ignore[arg-type]
        left_out = 0
        if pooling != "last":
            left_out = prompt_length(self.tokenizer, chosen, split_special_tokens=split_special_tokens)
        lost: list[int] = []
        batches = self._text_states(
            texts,
            prompt=chosen,
            limit=limit,
            batch_tokens=self._batch_tokens(batch_tokens, batch_size),
            batch_size=batch_size,
            split_special_tokens=split_special_tokens,
            lost=lost,
            hide=hides_bar(show_progress_bar, len(texts)),
        )

        def shorten(vectors: torch.Tensor) -> torch.Tensor:
            vectors = vectors[..., :width]
            return torch.nn.functional.normalize(vectors, dim=-1) if normalize_embeddings else vectors

        def pool_batch(batch: _EncodedBatch) -> torch.Tensor:
            return shorten(
                self._sentence_vectors(batch.states, batch.attention_mask, pooling=pooling, prompt_length=left_out)
            )

        with self._evaluating():
            if output_value == "sentence_embedding":
                place = self.device if convert_to_tensor else torch.device("cpu")
                table = self._fill_table(batches, texts, pool_batch, width=width, device=place)
                output = self._convert(table, precision, to_numpy=convert_to_numpy, to_tensor=convert_to_tensor)
            elif output_value == "token_embeddings":
                output = self._token_states(batches, texts, shorten)
            else:
                output = self._all_outputs(batches, texts, pool_batch)
        _warn_of_cuts(lost, len(texts), limit=limit, context=self._longest_row(None))
        return output[0] if single else output

    def encode_query(
        self, inputs: str | Sequence[str] | None = None, prompt_name: str | None = None, **kwargs: Any
    ) -> Any:
        """`encode` with the stored prompt `query`, where there is one and no other is asked for.

        Args:
            inputs (`str` or `list[str]`): Queries.
            prompt_name, kwargs: As in `encode`.
        """
        return self._encode_as("query", inputs, prompt_name, **kwargs)

    def encode_document(
        self, inputs: str | Sequence[str] | None = None, prompt_name: str | None = None, **kwargs: Any
    ) -> Any:
        """`encode` with the stored prompt `document`, where there is one and no other is asked for.

        Args:
            inputs (`str` or `list[str]`): Documents.
            prompt_name, kwargs: As in `encode`.
        """
        return self._encode_as("document", inputs, prompt_name, **kwargs)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Every embedding of one set against every one of another, by the model's similarity.

        Args:
            embeddings1 (`numpy.ndarray` or `torch.Tensor` of shape `(N, H)`): Embeddings.
            embeddings2 (`numpy.ndarray` or `torch.Tensor` of shape `(M, H)`): Embeddings.

        Returns:
            `torch.FloatTensor` of shape `(N, M)`; larger is more alike.
        """
        return similarity_matrix(embeddings1, embeddings2, name=self.magnet_settings.similarity_fn_name)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Each embedding of one set against the one in the same row of another, by the model's similarity.

        Args:
            embeddings1 (`numpy.ndarray` or `torch.Tensor` of shape `(N, H)`): Embeddings.
            embeddings2 (`numpy.ndarray` or `torch.Tensor` of shape `(N, H)`): Embeddings.

        Returns:
            `torch.FloatTensor` of shape `(N,)`; larger is more alike.
        """
        return similarity_pairs(embeddings1, embeddings2, name=self.magnet_settings.similarity_fn_name)

    def _encode_as(self, role: str, inputs: str | Sequence[str] | None, prompt_name: str | None, **kwargs: Any) -> Any:
        """`encode` with the prompt of a role, unless another is asked for."""
        unasked = kwargs.get("prompt") is None and prompt_name is None
        if unasked and role in self.magnet_settings.prompts:
            prompt_name = role
        return self.encode(inputs, prompt_name, **kwargs)

    def _sentence_vectors(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, *, pooling: Pooling, prompt_length: int
    ) -> torch.Tensor:
        """Float32 vectors `(B, hidden_size)` of states `(B, S, hidden_size)`, through the head where one was kept."""
        vectors = pool_states(hidden_states, attention_mask, pooling=pooling, prompt_length=prompt_length)
        if self.config.magnet["contrastive_head"] is not None:
            vectors = self.sscl_head(vectors.to(self.dtype)).float()
        return vectors

    def _choose_prompt(self, *, prompt: str | None, prompt_name: str | None) -> str | None:
        """The prompt of a call: given, named, or the model's default."""
        settings = self.magnet_settings
        chosen = choose_prompt(
            settings.prompts, prompt=prompt, prompt_name=prompt_name, default_prompt_name=settings.default_prompt_name
        )
        check_is_unicode(chosen or "", name="prompt")
        return chosen

    def _check_width(self, truncate_dim: int | None) -> int:
        """Dimensions of an embedding."""
        full: int = self.config.hidden_size
        if truncate_dim is not None:
            check_whole_number(truncate_dim, name="truncate_dim")
        if truncate_dim is not None and not 1 <= truncate_dim <= full:
            raise ValueError(f"`truncate_dim` is {truncate_dim}; embeddings have {full} dimensions, pass 1 to {full}.")
        return full if truncate_dim is None else truncate_dim

    def _text_states(
        self,
        texts: list[str],
        *,
        prompt: str | None,
        limit: int,
        batch_tokens: int,
        batch_size: int | None,
        split_special_tokens: bool,
        lost: list[int],
        hide: bool,
    ) -> Iterator[_EncodedBatch]:
        """States of texts, longest first; `lost` takes how many tokens each text that was cut has lost."""
        self._probe_attention()
        longest_first = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        with tqdm(total=len(texts), desc="Encoding", unit="text", disable=hide) as bar:
            for start in range(0, len(texts), TEXTS_TOKENIZED_AT_ONCE):
                chosen = longest_first[start : start + TEXTS_TOKENIZED_AT_ONCE]
                rows = tokenize_texts(
                    self.tokenizer,
                    [texts[index] for index in chosen],
                    prompt=prompt,
                    max_length=limit,
                    split_special_tokens=split_special_tokens,
                    lost=lost,
                )
                for batch in self._row_states(rows, batch_tokens=batch_tokens, batch_size=batch_size):
                    indices = [chosen[index] for index in batch.indices]
                    own = [rows[index] for index in batch.indices]
                    yield _EncodedBatch(indices, own, batch.states, batch.attention_mask)
                    bar.update(len(batch.indices))

    def _fill_table(
        self,
        batches: Iterator[_EncodedBatch],
        texts: list[str],
        pool_batch: Callable[[_EncodedBatch], torch.Tensor],
        *,
        width: int,
        device: Any,
    ) -> torch.Tensor:
        """Sentence embeddings `(len(texts), width)` in the order of the texts."""

        def check(vectors: torch.Tensor, indices: list[int]) -> None:
            check_vectors(self, vectors.isfinite().all(-1), texts=texts, indices=indices)

        table = _VectorTable(len(texts), width, device=device, check=check)
        for batch in batches:
            table.put(batch.indices, pool_batch(batch))
        return table.finish()

    def _convert(self, embeddings: torch.Tensor, precision: Precision, *, to_numpy: bool, to_tensor: bool) -> Any:
        """Sentence embeddings in the form that was asked for."""
        if precision != "float32":
            embeddings = torch.from_numpy(quantize_embeddings(embeddings.cpu().numpy(), precision=precision))
        if to_tensor:
            return embeddings.to(self.device)
        return embeddings.numpy() if to_numpy else list(embeddings)

    def _token_states(
        self, batches: Iterator[_EncodedBatch], texts: list[str], shorten: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[torch.Tensor]:
        """Float32 states `(S, width)` of all tokens of each text."""
        states: list[torch.Tensor] = [torch.empty(0, dtype=torch.float32)] * len(texts)
        for batch in batches:
            for index, row, mask in zip(batch.indices, batch.states, batch.attention_mask, strict=True):
                states[index] = shorten(row[mask.bool()].float())
        if states:
            is_finite = torch.stack([row.isfinite().all() for row in states])
            check_vectors(self, is_finite, texts=texts, indices=range(len(texts)))
        return states

    def _all_outputs(
        self, batches: Iterator[_EncodedBatch], texts: list[str], pool_batch: Callable[[_EncodedBatch], torch.Tensor]
    ) -> list[dict[str, torch.Tensor]]:
        """All that a text has, under sentence-transformers' names, without padding."""
        outputs: list[dict[str, torch.Tensor]] = [{} for _ in texts]
        for batch in batches:
            for index, row, states, mask, vector in zip(*batch, pool_batch(batch), strict=True):
                outputs[index] = {
                    "input_ids": torch.tensor(row, dtype=torch.long, device=states.device),
                    "attention_mask": mask[mask.bool()],
                    "token_embeddings": states[mask.bool()].float(),
                    "sentence_embedding": vector,
                }
        if outputs:
            names = ("token_embeddings", "sentence_embedding")
            is_finite = [torch.stack([one[name].isfinite().all() for name in names]).all() for one in outputs]
            check_vectors(self, torch.stack(is_finite), texts=texts, indices=range(len(texts)))
        return outputs


def hides_bar(show_progress_bar: bool | None, number: int, *, least: int = PROGRESS_FROM_TEXTS) -> bool:
    """Whether to show no progress over so many texts or batches, asked for or not."""
    return number < least if show_progress_bar is None else not show_progress_bar


def _check_is_one_process(device: Any, pool: Any, chunk_size: Any) -> None:
    """Refuse what sentence-transformers has for several processes."""
    several = {"device": device if isinstance(device, (list, tuple)) else None, "pool": pool, "chunk_size": chunk_size}
    for name, value in several.items():
        if value is not None:
            raise ValueError(
                f"`{name}` is {value!r:.60}; expected one device and no pool, for this encodes in one process. For "
                "several use examples/encode_corpus.py, or SentenceTransformer(directory) with its pool."
            )


def _check_output(output_value: Any, precision: Any) -> None:
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


def _warn_of_cuts(lost: list[int], num_texts: int, *, limit: int, context: int) -> None:
    """Say how many texts were cut, and by how much."""
    if lost:
        remedy = f"Raise `max_length` up to {context}, split" if limit < context else "Split"
        warnings.warn(
            f"{len(lost)} of {num_texts} texts were longer than {limit} tokens with BOS, prompt and EOS, and lost "
            f"their ends: at most {max(lost)} tokens, {sum(lost)} in all. {remedy} them, or use `encode_words` or "
            "`encode_tokens`, which read long texts in windows.",
            stacklevel=4,
        )


class _VectorTable:
    """Vectors that come in any order, in their order. An accelerator is waited for once in thousands of rows."""

    def __init__(
        self, num_rows: int, width: int, *, device: torch.device, check: Callable[[torch.Tensor, list[int]], None]
    ) -> None:
        # Said aloud: while any thread loads a model, torch's default dtype is that model's, for all threads.
        self.vectors = torch.empty(num_rows, width, dtype=torch.float32, device=device)
        self._indices: list[int] = []
        self._parts: list[torch.Tensor] = []
        self._check = check

    def put(self, indices: list[int], vectors: torch.Tensor) -> None:
        """Take the vectors of some rows."""
        self._indices += indices
        self._parts.append(vectors)
        if len(self._indices) >= TEXTS_TOKENIZED_AT_ONCE:
            self._move()

    def finish(self) -> torch.Tensor:
        """The whole table, `(num_rows, width)`."""
        self._move()
        return self.vectors

    def _move(self) -> None:
        """Write what has come into its rows."""
        if self._parts:
            rows = torch.tensor(self._indices, dtype=torch.long, device=self.vectors.device)
            vectors = torch.cat(self._parts).to(self.vectors.device)
            self._check(vectors, self._indices)
            self.vectors[rows] = vectors
            self._indices, self._parts = [], []


__all__ = ["EncodingMixin", "OutputValue", "hides_bar"]
