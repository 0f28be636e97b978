"""Collate batches: corrupted rows for the token objectives, and pairs of sentences for the contrastive objective.

Shapes: B rows, P pairs, S tokens in the longest row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from modeling_magnet.configuration_magnet import MagnetSettings
from modeling_magnet.losses_magnet import IGNORE_INDEX
from modeling_magnet.tokenization_magnet import pad_token_rows, prompt_length, special_ids, tokenize_texts

from .corruption import CorruptionSettings, corrupt_row
from .objectives import token_labels
from .samplers import row_generator


@dataclass
class DataCollatorForMagnet:
    """Corrupt each row with its own generator, and pad the rows on the right.

    The result for a row depends only on `seed`, its `row_id` and its `epoch`, not on the other rows, the batch size,
    the worker or the process.

    Args:
        settings (`CorruptionSettings`): How much to mask and which spans to draw.
        mask_token_id (`int`): Token that replaces a masked one, in 0..`vocab_size` - 1.
        pad_token_id (`int`): Token at padded positions, in 0..`vocab_size` - 1.
        special_token_ids (`list[int]`): Tokens that are never masked and never a random replacement.
        vocab_size (`int`): Random replacements are drawn from 0..`vocab_size` - 1.
        seed (`int`): Seed of all draws.
        end_of_span_id (`int`, *optional*): Token that ends a span, if the settings' `end_of_span` is on.

    Source: MAGNET (Khosla et al. 2025), section 3: x -> x_m.

    Example:
        The first row has exactly one possible span of two tokens. The second is too short for a span, so its tokens
        can be masked.

        >>> collate = DataCollatorForMagnet(
        ...     settings=CorruptionSettings(mask_ratio=1, mask_token_share=1, random_token_share=0, min_span_tokens=2),
        ...     mask_token_id=9,
        ...     pad_token_id=0,
        ...     special_token_ids=[0, 1, 2],
        ...     vocab_size=30,
        ...     seed=0,
        ... )
        >>> rows = [[1, 10, 11, 12], [1, 20, 21]]  # 1 is BOS
        >>> batch = collate([{"input_ids": ids, "row_id": row, "epoch": 0} for row, ids in enumerate(rows)])
        >>> batch.pop("num_labels"), batch.pop("row_ids"), batch.pop("epochs")
        (4, [0, 1], [0, 0])
        >>> for name, tensor in batch.items():
        ...     print(f"{name:14}", tensor.tolist())
        input_ids      [[1, 10, 11, 12], [1, 9, 9, 0]]
        segment_ids    [[0, 1, 1, 0], [0, 0, 0, 0]]
        position_ids   [[0, 1, 2, 3], [0, 1, 2, 0]]
        mntp_labels    [[-100, -100, -100, -100], [20, 21, -100, -100]]
        msg_labels     [[10, 11, -100, -100], [-100, -100, -100, -100]]
        attention_mask [[1, 1, 1, 1], [1, 1, 1, 0]]
    """

    settings: CorruptionSettings
    mask_token_id: int
    pad_token_id: int
    special_token_ids: list[int]
    vocab_size: int
    seed: int
    end_of_span_id: int | None = None
    _special_ids: Tensor = field(init=False, repr=False, compare=False)  # (num_special_tokens,)
    _replacement_ids: Tensor = field(init=False, repr=False, compare=False)  # (num_replacements,)

    def __post_init__(self) -> None:
        if self.settings.end_of_span and self.end_of_span_id is None:
            raise ValueError("`end_of_span` needs a token that ends a span. Set `end_of_span_id` to that of EOS.")
        vocabulary = torch.arange(self.vocab_size)
        self._special_ids = torch.tensor(self.special_token_ids, dtype=torch.long)
        self._replacement_ids = vocabulary[~torch.isin(vocabulary, self._special_ids)]

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_config: PreTrainedConfig,
        settings: CorruptionSettings,
        seed: int,
    ) -> Self:
        """Make a collator with the vocabulary, special tokens and padding of a tokenizer and a model's config.

        The collator pads with the tokenizer's pad token if the model embeds it, else with EOS, else with token 0.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
            model_config (`PreTrainedConfig`): Of the mask token and the size of the vocabulary.
            settings, seed: As in the class.
        """
        mask_token_id = MagnetSettings.from_config(model_config).mask_token_id
        if mask_token_id is None:
            raise ValueError(
                "`model_config` has no mask token. Load the model with `AutoMagnetForCausalLM.from_pretrained` from "
                "a folder with its tokenizer, or set `model.tokenizer`."
            )
        vocab_size = min(len(tokenizer), model_config.vocab_size)
        padding = [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]
        return cls(
            settings=settings,
            mask_token_id=mask_token_id,
            pad_token_id=next(token for token in padding if token is not None and token < vocab_size),
            special_token_ids=sorted(special_ids(tokenizer)),
            vocab_size=vocab_size,
            seed=seed,
            end_of_span_id=tokenizer.eos_token_id,
        )

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make one batch of rows with `input_ids` (at least one token), `row_id` and `epoch`.

        Returns:
            `dict`: `input_ids`, `segment_ids`, `position_ids`, `mntp_labels`, `msg_labels`, `attention_mask`, each a
            `torch.LongTensor` of shape `(B, S)`; padding has segment 0, labels -100 and attention 0. Also `num_labels`
            (`int`), the number of labels of all token objectives, and the lists `row_ids` and `epochs`.
        """
        if empty := [row["row_id"] for row in rows if not len(row["input_ids"])]:
            raise ValueError(f"Rows {empty} have no tokens; drop empty rows from the data set.")
        corrupted = [
            corrupt_row(
                torch.as_tensor(row["input_ids"], dtype=torch.long),
                settings=self.settings,
                mask_token_id=self.mask_token_id,
                special_token_ids=self._special_ids,
                replacement_ids=self._replacement_ids,
                generator=row_generator(self.seed, epoch=row["epoch"], row_id=row["row_id"]),
                end_of_span_id=self.end_of_span_id,
            )
            for row in rows
        ]
        padding_values = {"input_ids": self.pad_token_id, "segment_ids": 0, "position_ids": 0}
        padding_values |= dict.fromkeys(("mntp_labels", "msg_labels"), IGNORE_INDEX)
        batch: dict[str, Any] = {
            name: pad_sequence([getattr(row, name) for row in corrupted], batch_first=True, padding_value=value)
            for name, value in padding_values.items()
        }
        lengths = torch.tensor([len(row.input_ids) for row in corrupted])  # (B,)
        batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()  # (B, S)
        batch["num_labels"] = sum(int((labels != IGNORE_INDEX).sum()) for labels in token_labels(batch).values())
        return batch | {"row_ids": [row["row_id"] for row in rows], "epochs": [row["epoch"] for row in rows]}


@dataclass
class DataCollatorForPairs:
    """Tokenize both sides of pairs for one forward: all anchors, then all positives.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Needs an EOS token, which ends each row.
        prompt (`str` or `None`): Prefix of both sides.
        max_length (`int`): Limit of a side in tokens, with prompt and special tokens, >= 3; EOS is always kept.
        pad_token_id (`int`): Token at padded positions, on the right.
        mini_batch_tokens (`int`, *optional*): Limit of the tokens of a mini-batch with padding, >= `max_length`.
        split_special_tokens (`bool`, defaults to `True`): Read `</s>` and the like in a text as text.

    Source: MAGNET (Khosla et al. 2025), section 3, objective SSCL.
    """

    tokenizer: PreTrainedTokenizerBase
    prompt: str | None
    max_length: int
    pad_token_id: int
    mini_batch_tokens: int | None = None
    split_special_tokens: bool = True

    @cached_property
    def _prompt_length(self) -> int:
        return prompt_length(self.tokenizer, self.prompt, split_special_tokens=self.split_special_tokens)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make one batch of rows with the strings `anchor` and `positive`.

        Returns:
            `dict`: `input_ids` and `attention_mask`, `torch.LongTensor` of shape `(2P, S)`, right padded; row i is the
            anchor of pair i, row P + i its positive. `prompt_length`: the tokens of BOS and prompt. With
            `mini_batch_tokens` also `order`, a `torch.LongTensor` of shape `(2P,)` with the rows from the longest to
            the shortest, and `mini_batches`, a list of the numbers of rows and columns of each mini-batch. Its length
            depends only on P, so that all processes run the same number of forwards, in each of which sharded weights
            are gathered.
        """
        texts = [row["anchor"] for row in rows] + [row["positive"] for row in rows]
        text_rows = tokenize_texts(
            self.tokenizer,
            texts,
            prompt=self.prompt,
            max_length=self.max_length,
            split_special_tokens=self.split_special_tokens,
        )
        batch: dict[str, Any] = pad_token_rows(text_rows.input_ids, pad_token_id=self.pad_token_id)
        batch["prompt_length"] = self._prompt_length
        if self.mini_batch_tokens is not None:
            lengths = batch["attention_mask"].sum(1)  # (2P,)
            batch["order"] = lengths.argsort(descending=True, stable=True)
            number = -(-len(texts) // (self.mini_batch_tokens // self.max_length))
            parts = lengths[batch["order"]].tensor_split(number)
            batch["mini_batches"] = [(len(part), int(part[0])) for part in parts]
        return batch
