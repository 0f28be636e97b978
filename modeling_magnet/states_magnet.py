"""Token rows -> hidden states, bidirectionally or causally, in batches of a bounded number of tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Integral
from typing import Any, Literal, NamedTuple, get_args

import torch

from .attention_magnet import takes_float_masks
from .batching_magnet import pack_token_rows, pad_token_rows, plan_batches
from .configuration_magnet import check_tokenizer_fits
from .masking_magnet import PACKED_BACKENDS, AttentionMode, layer_windows, render_for_layers
from .probe_magnet import check_attention
from .publishing_magnet import PublishingMixin
from .texts_magnet import context_length
from .token_losses_magnet import IGNORE_INDEX, soft_cap

# Tokens of a forward. On a CPU they should stay in its caches; an accelerator wants to be filled.
CPU_BATCH_TOKENS = 2048
ACCELERATOR_BATCH_TOKENS = 16_384
# In bfloat16 on a CPU the kernels of matrix products change with the shape, and sum in another order. 18 layers turn
# that into cosines of 0.994 between a text alone and in a batch. These shapes get kernels with the same sums (torch
# 2.13, AMX): so many positions in all, in rows of 16 or of a multiple of 32.
LEAST_BFLOAT16_POSITIONS = 1024
BFLOAT16_ROWS = (16, 32)
# Packed rows end at a multiple of this: the blocks of a block mask, and few lengths to compile for.
PACKED_MULTIPLE = 1024

ReadingMode = Literal["bidirectional", "causal"]


def check_whole_number(value: Any, *, name: str, least: int | None = None) -> None:
    """Refuse what is no whole number, such as `True`, or is less than so many.

    Raises:
        ValueError: naming the argument and its value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and int(value) < least):
        limit = "" if least is None else f" of at least {least}"
        raise ValueError(f"`{name}` is {value!r}; expected a whole number{limit}.")


def check_reading_mode(mode: str) -> None:
    """Refuse a mode in which no plain text is read.

    Raises:
        ValueError: naming the two modes.
    """
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


class RowStates(NamedTuple):
    """States of some rows of a call."""

    indices: list[int]  # which rows these are
    states: torch.Tensor  # (B, S, H)
    attention_mask: torch.Tensor  # (B, S), right padded


class StatesMixin(PublishingMixin):
    """Run token rows through the model in bidirectional or causal mode."""

    _probed: set[tuple[str, ...]]

    def _longest_row(self, max_length: int | None) -> int:
        """The context in tokens, or a shorter wish."""
        context = context_length(self.config, self.tokenizer)
        if max_length is not None:
            check_whole_number(max_length, name="max_length")
        if max_length is not None and max_length > context:
            raise ValueError(f"`max_length` is {max_length}; model and tokenizer have a context of {context} tokens.")
        return context if max_length is None else max_length

    def _batch_tokens(self, batch_tokens: int | None, batch_size: int | None) -> int:
        """The budget of a forward, checked."""
        for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
            if value is not None:
                check_whole_number(value, name=name, least=1)
        if batch_tokens is not None:
            return batch_tokens
        return CPU_BATCH_TOKENS if self.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout, as `eval()` does; what was in training mode is so again afterwards, and nothing else.

        A model that is not in training mode is not written to, so that threads can share it.
        """
        training = [module for module in self.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _probe_attention(self) -> None:
        """Check the modes once for each back-end, device and dtype that this model is used with."""
        used_with = (str(self.config._attn_implementation), self.device.type, str(self.dtype))
        if used_with not in self._probed:
            check_attention(self)
            self._probed.add(used_with)

    def _row_states(
        self,
        rows: Sequence[Sequence[int]],
        *,
        batch_tokens: int,
        batch_size: int | None,
        mode: ReadingMode = "bidirectional",
    ) -> Iterator[RowStates]:
        """States of all rows, in batches; nothing waits for the device.

        Packed end to end where the back-end skips what a block mask leaves out, else, and in causal mode, padded to
        the longest of the batch.
        """
        packed = mode == "bidirectional" and self.config._attn_implementation in PACKED_BACKENDS
        lengths = [len(row) for row in rows]
        run = self._packed_states if packed else partial(self._padded_states, mode=mode)
        for indices in plan_batches(lengths, max_tokens=batch_tokens, max_rows=batch_size, padded=not packed):
            states, attention_mask = run([rows[index] for index in indices])
            yield RowStates(indices, states, attention_mask)

    def _pad_token_id(self) -> int:
        """What fills up a batch; it is never attended to.

        Raises:
            ValueError: tokens were added to the tokenizer, and the model has no embeddings for them.
        """
        tokenizer = self.tokenizer
        check_tokenizer_fits(tokenizer, self.config.vocab_size)
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return next(token_id for token_id in known if token_id is not None)

    def _padded_states(self, rows: Sequence[Sequence[int]], *, mode: ReadingMode) -> tuple[torch.Tensor, torch.Tensor]:
        """States `(B, S, H)` and attention mask `(B, S)` of a padded batch."""
        pad_token_id, longest = self._pad_token_id(), max(map(len, rows))
        width, num_rows = longest, len(rows)
        if mode == "bidirectional" and takes_float_masks(self.dtype, self.device):
            width, num_rows = even_shape(longest, len(rows))
        fillers = [[pad_token_id]] * (num_rows - len(rows))
        batch = self._to_device(pad_token_rows([*rows, *fillers], pad_token_id=pad_token_id, width=width))
        attention_mask = batch["attention_mask"]
        # Read off the lists: the device is not waited for.
        is_padded = min(map(len, rows)) < width or len(fillers) > 0
        outputs = self(
            batch["input_ids"],
            attention_mask=attention_mask if is_padded else None,
            mode=mode,
            use_cache=False,
            logits_to_keep=torch.arange(0, device=self.device),
        )
        return outputs.last_hidden_state[: len(rows), :longest], attention_mask[: len(rows), :longest]

    def _packed_states(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of rows that the model read end to end."""
        packed = pack_token_rows(rows, pad_token_id=self._pad_token_id(), multiple=PACKED_MULTIPLE)
        ids = self._to_device(packed._asdict())
        same_row = ids["row_ids"][:, None, :, None] == ids["row_ids"][:, None, None, :]  # (1, 1, L, L)
        masks = render_for_layers(
            same_row,
            windows=layer_windows(self.config),
            query_positions=ids["position_ids"],
            key_positions=ids["position_ids"],
            # Blocks read their mask from a table: a kernel that compares ids does not compile on a CPU (torch 2.13).
            implementation=str(self.config._attn_implementation),
            dtype=self.dtype,
        )
        with self._adapters_for("bidirectional"):
            states = self.base_model(
                ids["input_ids"],
                attention_mask=masks,
                position_ids=ids["position_ids"],
                use_cache=False,
            ).last_hidden_state[0]  # (L, H)
        lengths = torch.tensor([len(row) for row in rows])
        place = torch.arange(int(lengths.max()))
        inside = place < lengths[:, None]  # (B, S)
        source = (lengths.cumsum(0) - lengths)[:, None] + place.where(inside, 0)
        unpacked = self._to_device({"source": source, "inside": inside.long()})
        return states[unpacked["source"]], unpacked["inside"]

    def _project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """States `(..., H)` to logits `(..., V)`; a family that does more than head and soft cap overrides this."""
        return soft_cap(self.get_output_embeddings()(hidden_states), self._softcap())

    def _softcap(self) -> float | None:
        """The soft limit of the logits' size; a family whose config may have one overrides this."""
        return None

    def _infill_batch(
        self, ids: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], segments: Sequence[Sequence[int]]
    ) -> dict[str, torch.Tensor]:
        """Rows with their positions and segments as arguments of an infill forward, on the model's device."""
        batch = pad_token_rows(ids, pad_token_id=self._pad_token_id())
        batch["position_ids"] = pad_token_rows(positions, pad_token_id=0)["input_ids"]
        batch["segment_ids"] = pad_token_rows(segments, pad_token_id=0)["input_ids"]
        return self._to_device(batch)

    def _target_logprobs(
        self, batch: dict[str, torch.Tensor], targets: Sequence[tuple[int, int, int, int]], *, mode: AttentionMode
    ) -> list[float]:
        """Log-probabilities of tokens in one forward, with memory for the logits of a few of them.

        Args:
            batch (`dict`): Arguments of the forward, on the model's device.
            targets (`Sequence[tuple[int, int, int, int]]`): Layer, row, place and token: the output at the place
                predicts the token. Tokens of one place are in different layers, numbered from 0.
            mode (`str`): Of the forward.
        """
        if not targets:
            return []
        layers, rows, places, tokens = self._to_device({"all": torch.tensor(targets).T.contiguous()})["all"]
        shape = (1 + max(target[0] for target in targets), *batch["input_ids"].shape)
        target_ids = torch.full(shape, IGNORE_INDEX, device=self.device)
        target_ids[layers, rows, places] = tokens
        outputs = self(**batch, mode=mode, target_ids=target_ids, num_targets=len(targets), use_cache=False)
        found: list[float] = (-outputs.token_losses[layers, rows, places]).tolist()
        return found

    def _to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move a batch; from pinned memory a GPU fetches it by itself."""
        if self.device.type == "cuda":
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}


__all__ = ["ReadingMode", "StatesMixin", "check_reading_mode", "check_whole_number", "even_shape"]
