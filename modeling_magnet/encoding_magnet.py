"""Texts -> sentence embeddings, with sentence-transformers' names, defaults and vectors.

What is joined, cut and pooled here is what the sidecar files of a checkpoint tell that library.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from transformers.utils.logging import tqdm

from .pooling_magnet import Pooling, check_pooling, pool_states
from .prompts_magnet import choose_prompt
from .quantization_magnet import Precision, check_precision, quantize_embeddings
from .similarity_magnet import similarity_matrix, similarity_pairs
from .states_magnet import StatesMixin, check_whole_number
from .texts_magnet import check_is_unicode, check_room, check_texts, prompt_length, tokenize_texts

# Token ids of this many texts are held at once; their lengths vary little, for the texts are sorted before.
TEXTS_TOKENIZED_AT_ONCE = 8192
# A progress bar over fewer texts only flickers.
PROGRESS_FROM_TEXTS = 1000
# The same of fills, each batch of which takes many forwards.
PROGRESS_FROM_BATCHES = 8

OutputValue = Literal["sentence_embedding", "token_embeddings"]


class EncodingMixin(StatesMixin):
    """`encode`, `encode_query`, `encode_document`, `similarity`."""

    @torch.no_grad()
    def encode(
        self,
        inputs: str | Sequence[str],
        prompt_name: str | None = None,
        *,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: OutputValue = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | torch.device | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pooling: Pooling | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        pool: None = None,
        chunk_size: None = None,
    ) -> Any:
        """Embed texts: bidirectional attention over `BOS prompt text EOS`, one vector from the states.

        Batches are filled to a budget of tokens with texts of like length, so that memory is bounded by the budget
        and next to nothing is padded; with flex attention they are laid end to end and nothing is. A model in training
        mode encodes without dropout, and is in training mode afterwards.

        Args:
            inputs (`str` or `list[str]`): Texts, in any sequence. An empty text gives the vector of the prompt alone;
                a text beyond `max_length` is cut at its end, before the EOS.
            prompt_name (`str`, *optional*): Name of a prompt stored with the model.
            prompt (`str`, *optional*): The prompt itself, joined by `join_prompt`; `""` for none. Without either,
                the model's default prompt. One that does not end in white space gets `": "` or a space behind it;
                sentence-transformers puts it in front as it is, so give it `"Find: "` where this gets `"Find"`.
            batch_size (`int`, *optional*): Texts per forward at most, beside `batch_tokens`.
            show_progress_bar (`bool`, *optional*): Defaults to showing one on long lists.
            output_value (`str`, defaults to `"sentence_embedding"`): Or `"token_embeddings"`: the states of all tokens
                of a text, BOS, prompt and EOS included, as a list of tensors. See `encode_tokens` for places.
            precision (`str`, defaults to `"float32"`): See `quantize_embeddings`.
            convert_to_numpy (`bool`, defaults to `True`): Return an array; else a list of tensors.
            convert_to_tensor (`bool`, defaults to `False`): Return one tensor on the model's device instead.
            device (`str` or `torch.device`, *optional*): Move the model there first.
            normalize_embeddings (`bool`, defaults to `False`): Scale each vector to unit length.
            truncate_dim (`int`, *optional*): Keep this many dimensions in front, before scaling.
            pooling (`str`, *optional*): See `pool_states`; defaults to the model's own.
            max_length (`int`, *optional*): Longest row in tokens; defaults to the context of model and tokenizer.
            batch_tokens (`int`, *optional*): Tokens of a forward, padding included; defaults to what suits the device.
            pool, chunk_size: sentence-transformers' several processes; refused, as is a list of devices.

        Returns:
            Float32 vectors whatever the model's dtype, of shape `(hidden_size,)` for a string and `(len(inputs),
            hidden_size)` for a list, in the order of `inputs`.

        Raises:
            ValueError: something that is no text, an unknown prompt or option, one out of range, or a prompt that
                leaves no room for text.
            RuntimeError: the back-end does not attend as the mode says.

        Source: Khosla et al. 2025, section 3.2, and section 5 of their appendix for the instructions.
        """
        single = isinstance(inputs, str)
        texts = check_texts([inputs] if single else inputs, name="inputs")
        chosen = self._choose_prompt(prompt=prompt, prompt_name=prompt_name)
        pooling = self.magnet_settings.pooling if pooling is None else pooling
        check_pooling(pooling)
        check_precision(precision)
        _check_is_one_process(device, pool, chunk_size)
        width = self._check_width(truncate_dim)
        limit = self._longest_row(max_length)
        check_room(self.tokenizer, prompt=chosen, max_length=limit)
        if not isinstance(output_value, str) or output_value not in get_args(OutputValue):
            raise ValueError(
                f"`output_value` is {output_value!r}; expected 'sentence_embedding' or 'token_embeddings'."
            )
        if device is not None:
            self.to(device)  # type: ignore[arg-type]
        budget = self._batch_tokens(batch_tokens, batch_size)
        hide = hides_bar(show_progress_bar, len(texts))
        states = self._text_states(
            texts, prompt=chosen, limit=limit, batch_tokens=budget, batch_size=batch_size, hide=hide
        )
        if output_value == "token_embeddings":
            tokens: list[torch.Tensor] = [torch.empty(0, dtype=torch.float32)] * len(texts)
            with self._evaluating():
                for indices, hidden_states, attention_mask in states:
                    for index, row, mask in zip(indices, hidden_states, attention_mask, strict=True):
                        tokens[index] = row[mask.bool()].float()
            return tokens[0] if single else tokens

        left_out = prompt_length(self.tokenizer, chosen) if pooling != "last" else 0
        table = _VectorTable(len(texts), width, device=self.device if convert_to_tensor else torch.device("cpu"))
        with self._evaluating():
            for indices, hidden_states, attention_mask in states:
                vectors = self._sentence_vectors(
                    hidden_states, attention_mask, pooling=pooling, prompt_length=left_out
                )
                vectors = vectors[:, :width]
                if normalize_embeddings:
                    vectors = torch.nn.functional.normalize(vectors, dim=-1)
                table.put(indices, vectors)
        embeddings = table.finish()
        if precision != "float32":
            embeddings = torch.from_numpy(quantize_embeddings(embeddings.cpu().numpy(), precision=precision))
        if convert_to_tensor:
            output: Any = embeddings.to(self.device)
        else:
            output = embeddings.numpy() if convert_to_numpy else list(embeddings)
        return output[0] if single else output

    def encode_query(self, inputs: str | Sequence[str], prompt_name: str | None = None, **kwargs: Any) -> Any:
        """`encode` with the stored prompt `query`, where there is one and no other is asked for.

        Args:
            inputs (`str` or `list[str]`): Queries.
            prompt_name, kwargs: As in `encode`.
        """
        return self._encode_as("query", inputs, prompt_name, **kwargs)

    def encode_document(self, inputs: str | Sequence[str], prompt_name: str | None = None, **kwargs: Any) -> Any:
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

    def _encode_as(self, role: str, inputs: str | Sequence[str], prompt_name: str | None, **kwargs: Any) -> Any:
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
        hide: bool,
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """States of texts, longest first: indices of a batch, states `(B, S, H)`, attention mask `(B, S)`."""
        self._probe_attention()
        longest_first = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        with tqdm(total=len(texts), desc="Encoding", unit="text", disable=hide) as bar:
            for start in range(0, len(texts), TEXTS_TOKENIZED_AT_ONCE):
                chosen = longest_first[start : start + TEXTS_TOKENIZED_AT_ONCE]
                rows = tokenize_texts(
                    self.tokenizer, [texts[index] for index in chosen], prompt=prompt, max_length=limit
                )
                for batch in self._row_states(rows, batch_tokens=batch_tokens, batch_size=batch_size):
                    yield [chosen[index] for index in batch.indices], batch.states, batch.attention_mask
                    bar.update(len(batch.indices))


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


class _VectorTable:
    """Vectors that come in any order, in their order. An accelerator is waited for once in thousands of rows."""

    def __init__(self, num_rows: int, width: int, *, device: torch.device) -> None:
        # Said aloud: while any thread loads a model, torch's default dtype is that model's, for all threads.
        self.vectors = torch.empty(num_rows, width, dtype=torch.float32, device=device)
        self._indices: list[int] = []
        self._parts: list[torch.Tensor] = []

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
            self.vectors[rows] = torch.cat(self._parts).to(self.vectors.device)
            self._indices, self._parts = [], []


__all__ = ["EncodingMixin", "OutputValue", "hides_bar"]
