"""Texts -> batches -> sentence embeddings.

The joining, truncation and pooling rules here are the ones that the sidecar files of `checkpoint_magnet` describe to
sentence-transformers, so that both give the same vectors.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from .checkpoint_magnet import CheckpointMixin
from .configuration_magnet import join_prompt

# A progress bar shorter than this many batches only flickers.
PROGRESS_FROM_BATCHES = 16


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, prompt: str | None, max_length: int
) -> list[list[int]]:
    """Token ids of `BOS prompt text EOS`; what is too long loses the text's end, never the EOS.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Needs an EOS token; BOS is put in front where there is one.
        texts (`Sequence[str]`): Any texts; an empty one is embedded as its prompt alone.
        prompt (`str`, *optional*): Put in front by `join_prompt`.
        max_length (`int`): Longest row in tokens, special tokens included, >= 3.

    Returns:
        `list[list[int]]`: one row per text, unpadded.

    Raises:
        ValueError: no EOS token, or no room for text.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no EOS token, whose output is the embedding. Set `tokenizer.eos_token`.")
    if max_length < 3:
        raise ValueError(f"`max_length` is {max_length}; expected at least 3 (BOS, one token, EOS).")
    front = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = tokenizer(
        [join_prompt(prompt, text) for text in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    room = max_length - len(front) - 1
    return [front + row[:room] + [tokenizer.eos_token_id] for row in rows]


def pad_token_rows(
    rows: Sequence[Sequence[int]], *, pad_token_id: int, padding_side: str = "right"
) -> dict[str, torch.Tensor]:
    """Token rows as one batch.

    Returns:
        `dict`: `input_ids` and `attention_mask`, both `torch.LongTensor` of shape `(len(rows), longest)`.

    Example:

        >>> pad_token_rows([[1, 5, 2], [1, 2]], pad_token_id=0)["input_ids"].tolist()
        [[1, 5, 2], [1, 2, 0]]
    """
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        cells = slice(0, len(row)) if padding_side == "right" else slice(width - len(row), width)
        input_ids[index, cells] = torch.tensor(row, dtype=torch.long)
        attention_mask[index, cells] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def last_token_states(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The state of each row's last real token, wherever the padding is.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(B, S, H)`): Output of the last layer.
        attention_mask (`torch.Tensor` of shape `(B, S)`): Nonzero for real tokens.

    Returns:
        `torch.FloatTensor` of shape `(B, H)`.
    """
    last = attention_mask.shape[1] - 1 - attention_mask.bool().flip(-1).long().argmax(-1)  # (B,)
    return hidden_states[torch.arange(len(hidden_states), device=hidden_states.device), last]


def check_texts(texts: Any, *, name: str) -> list[str]:
    """A list of strings, or an error that names the first thing that is none.

    Raises:
        ValueError: anything but a list or tuple of strings.
    """
    if not isinstance(texts, (list, tuple, np.ndarray)):
        raise ValueError(f"`{name}` is {type(texts).__name__}; expected a string or a list of strings.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"`{name}[{index}]` is {type(text).__name__} ({text!r:.60}); expected a string. "
                "Convert it, or leave the row out."
            )
    return list(texts)


class EncodingMixin(CheckpointMixin):
    """`encode`."""

    @torch.no_grad()
    def encode(
        self,
        inputs: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        max_length: int | None = None,
    ) -> np.ndarray | torch.Tensor:
        """Embed texts: bidirectional attention, the state of the EOS put behind each text.

        Args:
            inputs (`str` or `list[str]`): Texts. An empty text gives the vector of the prompt alone; a text beyond
                `max_length` is cut at its end, before the EOS.
            prompt_name (`str`, *optional*): Name of a prompt stored with the model.
            prompt (`str`, *optional*): The prompt itself, joined by `join_prompt`; `""` for none. Without either,
                the model's default prompt.
            batch_size (`int`, defaults to 32): Texts per forward; they are sorted by length first.
            show_progress_bar (`bool`, *optional*): Defaults to showing one on long lists.
            convert_to_numpy (`bool`, defaults to `True`): Return a float32 array.
            convert_to_tensor (`bool`, defaults to `False`): Return a float32 tensor on the model's device instead.
            normalize_embeddings (`bool`, defaults to `False`): Scale each vector to unit length.
            max_length (`int`, *optional*): Longest row in tokens; defaults to the context of model and tokenizer.

        Returns:
            `numpy.ndarray` or `torch.Tensor` in float32, of shape `(hidden_size,)` for a string and
            `(len(inputs), hidden_size)` for a list, in the order of `inputs`.

        Raises:
            ValueError: something that is no text, an unknown prompt, or two prompts.

        Source: Khosla et al. 2025, section 3.2, and section 5 of their appendix for the instructions.
        """
        single = isinstance(inputs, str)
        texts = [inputs] if isinstance(inputs, str) else check_texts(inputs, name="inputs")
        prompt = self._choose_prompt(prompt=prompt, prompt_name=prompt_name)
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; expected at least 1.")
        rows = (
            tokenize_texts(self.tokenizer, texts, prompt=prompt, max_length=self._longest_row(max_length))
            if texts
            else []
        )
        longest_first = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        starts = range(0, len(rows), batch_size)
        vectors = torch.empty(len(rows), self.config.hidden_size, device=self.device)
        hide = len(starts) < PROGRESS_FROM_BATCHES if show_progress_bar is None else not show_progress_bar
        for start in tqdm(starts, desc="Encoding", unit="batch", disable=hide):
            chosen = longest_first[start : start + batch_size]
            vectors[chosen] = self._embed_rows([rows[index] for index in chosen])
        if normalize_embeddings:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        output = vectors[0] if single else vectors
        return output if convert_to_tensor or not convert_to_numpy else output.cpu().numpy()

    def _choose_prompt(self, *, prompt: str | None, prompt_name: str | None) -> str | None:
        """The prompt of a call: given, named, or the model's default."""
        settings = self.magnet_settings
        if prompt is not None and prompt_name is not None:
            raise ValueError(f"Both prompt={prompt!r} and prompt_name={prompt_name!r} were given. Choose one.")
        if prompt is not None:
            return prompt
        name = settings.default_prompt_name if prompt_name is None else prompt_name
        if name is not None and name not in settings.prompts:
            raise ValueError(
                f"No prompt is named {name!r}; the model stores {sorted(settings.prompts)}. Pass `prompt=`."
            )
        return None if name is None else settings.prompts[name]

    def _longest_row(self, max_length: int | None) -> int:
        """The context in tokens, or a shorter wish."""
        context = min(self.config.max_position_embeddings, self.tokenizer.model_max_length)
        if max_length is not None and max_length > context:
            raise ValueError(f"`max_length` is {max_length}; model and tokenizer have a context of {context} tokens.")
        return context if max_length is None else max_length

    def _bidirectional_states(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """States `(B, S, H)` of token rows, and the attention mask `(B, S)`."""
        pad = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        batch = {name: tensor.to(self.device) for name, tensor in pad_token_rows(rows, pad_token_id=pad).items()}
        nowhere = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        states = self(**batch, mode="bidirectional", logits_to_keep=nowhere).last_hidden_state
        return states, batch["attention_mask"]

    def _embed_rows(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Sentence vectors `(B, H)` of token rows that end in EOS, in float32."""
        states, attention_mask = self._bidirectional_states(rows)
        vectors = last_token_states(states, attention_mask)
        if self.magnet_settings.contrastive_head is not None:
            vectors = self.sscl_head(vectors)
        return vectors.float()


__all__ = [
    "EncodingMixin",
    "check_texts",
    "last_token_states",
    "pad_token_rows",
    "tokenize_texts",
]
