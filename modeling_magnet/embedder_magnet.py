"""What users of sentence-transformers read and set on an embedder, under that library's names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .batching_magnet import pad_token_rows
from .configuration_magnet import MagnetSettings
from .similarity_magnet import Similarity
from .states_magnet import StatesMixin, check_whole_number
from .texts_magnet import check_texts, context_length, tokenize_texts

# BOS, a token of text and EOS.
SHORTEST_ROW = 3


class EmbedderMixin(StatesMixin):
    """Prompts, similarity, longest row, width and token rows of the embedder. Settings are saved with the model."""

    @property
    def prompts(self) -> dict[str, str]:
        """The stored prompts by name. Change them in place, or set a new `dict`."""
        prompts: dict[str, str] = self.config.magnet["prompts"]
        return prompts

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        self._set_magnet(prompts=dict(prompts))

    @property
    def default_prompt_name(self) -> str | None:
        """Name of the prompt that `encode` uses unless another is asked for; `None` for no prompt."""
        name: str | None = self.config.magnet["default_prompt_name"]
        return name

    @default_prompt_name.setter
    def default_prompt_name(self, name: str | None) -> None:
        self._set_magnet(default_prompt_name=name)

    @property
    def similarity_fn_name(self) -> Similarity:
        """How `similarity` compares: `"cosine"`, `"dot"`, `"euclidean"` or `"manhattan"`."""
        name: Similarity = self.config.magnet["similarity_fn_name"]
        return name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: Any) -> None:
        # sentence-transformers also takes a member of its enumeration, whose value is the name.
        self._set_magnet(similarity_fn_name=getattr(name, "value", name))

    @property
    def max_seq_length(self) -> int:
        """Longest row of `encode` in tokens, BOS, prompt and EOS included; longer texts are cut.

        Setting it writes to the tokenizer's `model_max_length`, as sentence-transformers does.
        """
        return context_length(self.config, self.tokenizer)

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        check_whole_number(length, name="max_seq_length", least=SHORTEST_ROW)
        context = self.config.max_position_embeddings
        if length > context:
            raise ValueError(f"`max_seq_length` is {length}; the model has a context of {context} tokens.")
        self.tokenizer.model_max_length = int(length)

    def get_embedding_dimension(self) -> int:
        """Return the number of dimensions of an embedding."""
        width: int = self.config.hidden_size
        return width

    def get_sentence_embedding_dimension(self) -> int:
        """Return what `get_embedding_dimension` returns; its older name."""
        return self.get_embedding_dimension()

    def preprocess(
        self, inputs: Sequence[str], prompt: str | None = None, *, split_special_tokens: bool = True
    ) -> dict[str, torch.Tensor]:
        """Tokenise texts as `encode` does, for `model(**features, mode="bidirectional")`.

        Args:
            inputs (`list[str]`): Texts.
            prompt (`str`, *optional*): Put in front of each; none by default, the model's default prompt included.
            split_special_tokens (`bool`, defaults to `True`): As in `encode`.

        Returns:
            `dict`: `input_ids` and `attention_mask` of shape `(len(inputs), longest)`, padded on the right, on the
            CPU; empty for no texts.

        Raises:
            ValueError: no list of texts.
        """
        if isinstance(inputs, str):
            raise ValueError(f"`inputs` is a string ({inputs!r:.60}); expected a list of texts. Put it into a list.")
        texts = check_texts(inputs, name="inputs")
        if not texts:
            return {}
        rows = tokenize_texts(
            self.tokenizer,
            texts,
            prompt=prompt,
            max_length=self.max_seq_length,
            split_special_tokens=split_special_tokens,
        )
        return pad_token_rows(rows, pad_token_id=self._pad_token_id())

    def tokenize(self, texts: Sequence[str], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Call `preprocess`; its older name.

        Args:
            texts (`list[str]`): Texts.
            kwargs: As in `preprocess`.
        """
        return self.preprocess(texts, **kwargs)

    def _set_magnet(self, **values: Any) -> None:
        """Change settings of the model, or none of them where one cannot be."""
        MagnetSettings.from_dict({**self.config.magnet, **values})
        self.config.magnet.update(values)


__all__ = ["EmbedderMixin"]
