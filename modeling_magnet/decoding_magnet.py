"""The decoding loop: read the context once, then all spans of all rows advance together, one token a step.

This is exact: hidden states of the context never depend on a span, and spans never see each other.

Shapes: B rows, C context tokens in the longest row, K spans in the row with most, T steps, N spans in all, H hidden
size.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache, DynamicLayer

from .attention_magnet import MASK_IS_OURS
from .masking_magnet import PACKED_BACKENDS, layer_windows, render_for_layers
from .sampling_magnet import Choice, TokenChooser
from .spans_magnet import Span, SpanRow
from .stopping_magnet import StopRules


class ReservedLayer(DynamicLayer):
    """Keys and values of one layer, written in place.

    The number of tokens to come is known. `DynamicCache` copies all it holds at every step: for 32 rows of 256 tokens
    more bytes than the weights of a small model.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0
        self.buffers: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states `(B, heads, new, D)`; returns views `(B, heads, seen, D)` of all keys and values."""
        if not self.buffers:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.buffers = tuple(
                states.new_empty(*states.shape[:2], self.capacity, states.shape[3])
                for states in (key_states, value_states)
            )
            self.is_initialized = True
        start, self.length = self.length, self.length + key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.length] = states
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return self.keys, self.values


class ReservedCache(Cache):
    """A cache that can hold `capacity` tokens a row in each of `num_layers` layers."""

    def __init__(self, *, num_layers: int, capacity: int) -> None:
        self.reserved = [ReservedLayer(capacity) for _ in range(num_layers)]
        super().__init__(layers=list(self.reserved))

    def keep_first_rows(self, rows: int) -> None:
        """Drop all rows but the first ones, without a copy."""
        for layer in self.reserved:
            layer.buffers = tuple(buffer[:rows] for buffer in layer.buffers)


class StepMask:
    """The mask of every step: a span sees the context, and its own token of each step so far."""

    def __init__(self, model: Any, context: "_Context", *, starts: torch.Tensor, num_steps: int) -> None:
        self.windows = layer_windows(model.config)
        self.backend = str(model.config._attn_implementation)
        self.dtype = model.dtype
        visible = context.visible
        self.context, self.num_slots = visible.shape[1], starts.shape[1]
        self.starts = starts  # (B, K): position of the first token of each span
        own = torch.eye(self.num_slots, dtype=torch.bool, device=visible.device).repeat(1, num_steps)  # (K, T * K)
        rows = visible[:, None].expand(-1, self.num_slots, -1)  # (B, K, C)
        self.allowed = torch.cat([rows, own.expand(len(rows), -1, -1)], dim=-1)[:, None]  # (B, 1, K, C + T * K)
        steps = torch.arange(num_steps, device=visible.device)
        fed = (starts[:, None, :] + steps[:, None]).flatten(1)  # (B, T * K)
        self.key_positions = torch.cat([context.positions, fed], dim=1)  # (B, C + T * K)
        if any(self.windows.values()):
            farthest = int(self.key_positions.max())  # from position 0; read once for all steps
            reach = {kind: window for kind, window in self.windows.items() if window is not None and window < farthest}
            self.windows = {kind: reach.get(kind) for kind in self.windows}

    @cached_property
    def rendered(self) -> Any:
        """The masks of all steps, to be cut; `None` for block masks, which cannot be, and for windows, which move."""
        renders_once = self.backend not in PACKED_BACKENDS and not any(self.windows.values())
        return self._render(self.allowed, self.starts, self.key_positions) if renders_once else None

    def at(self, step: int, *, num_rows: int) -> Any:
        """Return the masks for token `step` of the spans in the first rows, over the keys seen by then."""
        seen = self.context + (step + 1) * self.num_slots
        if isinstance(self.rendered, dict):
            return {kind: mask[:num_rows, :, :, :seen] for kind, mask in self.rendered.items()}
        if self.rendered is not None:
            return self.rendered[:num_rows, :, :, :seen]
        return self._render(
            self.allowed[:num_rows, :, :, :seen], self.starts[:num_rows] + step, self.key_positions[:num_rows, :seen]
        )

    def _render(self, allowed: torch.Tensor, query_positions: torch.Tensor, key_positions: torch.Tensor) -> Any:
        return render_for_layers(
            allowed,
            windows=self.windows,
            query_positions=query_positions,
            key_positions=key_positions,
            implementation=self.backend,
            dtype=self.dtype,
        )


class _Context(NamedTuple):
    """A batch whose context has been read."""

    states: torch.Tensor  # (B, C, H)
    visible: torch.Tensor  # (B, C): context that spans may attend to
    positions: torch.Tensor  # (B, C)
    cache: ReservedCache
    embeddings: torch.Tensor | None  # (B, H)


def decode(
    model: Any,
    rows: Sequence[SpanRow],
    *,
    chooser: TokenChooser,
    rules: StopRules | None,
    max_steps: int,
    embed: bool = False,
) -> torch.Tensor | None:
    """Append up to `max_steps` tokens to each span, in place; every row has a span that is not full.

    Args:
        model (`PreTrainedModel`): The model.
        rows (`Sequence[SpanRow]`): Rows with their spans.
        chooser (`TokenChooser`): Chooses tokens.
        rules (`StopRules`, *optional*): End spans early.
        max_steps (`int`): Most tokens to append to a span.
        embed (`bool`, defaults to `False`): Whether to return embeddings of the texts around the spans.

    Returns:
        `torch.FloatTensor` of shape `(B, H)` in the order of the rows, or `None`.

    Raises:
        ValueError: NaN logits.
    """
    # Rows with most steps come first, so that the rows still active are always the first ones of the batch.
    steps = [max(min(max_steps, s.length - len(s.token_ids)) for s in row.spans) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: -steps[index])
    place_of = {index: place for place, index in enumerate(order)}
    num_slots, num_steps = max(len(row.spans) for row in rows), max(steps)
    context = _read_context(model, [rows[index] for index in order], more=num_slots * num_steps, embed=embed)
    starts, predictors = torch.zeros(2, len(rows), num_slots, dtype=torch.long)
    for index, row in enumerate(rows):
        for slot, span in enumerate(row.spans):
            starts[place_of[index], slot] = row.layout.span_starts[span.blank]
            predictors[place_of[index], slot] = row.layout.predictors[span.blank]
    starts, predictors = model._to_device({"starts": starts, "predictors": predictors}).values()
    mask = StepMask(model, context, starts=starts, num_steps=num_steps)
    spans = [span for row in rows for span in row.spans]
    places = [(place_of[index], slot) for index, row in enumerate(rows) for slot in range(len(row.spans))]
    loop = _Loop(model, spans, places, mask, num_steps, chooser, rules)
    loop.run(context, predictors)
    loop.finish()
    return None if context.embeddings is None else context.embeddings[[place_of[index] for index in range(len(rows))]]


def _read_context(model: Any, rows: Sequence[SpanRow], *, more: int, embed: bool) -> _Context:
    """Run the context of a batch through the model, with a cache that can hold so many more tokens.

    An embedding needs an EOS after the text. It is read as a span: it sees the whole context and no context token sees
    it, so that fills do not depend on whether an embedding is requested.
    """
    ids = [row.layout.token_ids for row in rows]
    positions = [row.layout.positions for row in rows]
    segments = [[0] * len(row) for row in ids]
    if embed:
        ids = [[*row, model.tokenizer.eos_token_id] for row in ids]
        positions = [[*own, row.layout.length] for own, row in zip(positions, rows, strict=True)]
        segments = [[*row, 1] for row in segments]
    batch = model._infill_batch(ids, positions, segments)
    cache = ReservedCache(num_layers=model.config.num_hidden_layers, capacity=batch["input_ids"].shape[1] + more)
    no_logits = torch.arange(0, device=model.device)
    outputs = model(**batch, mode="infill", past_key_values=cache, logits_to_keep=no_logits)
    states, attention_mask = outputs.last_hidden_state, batch["attention_mask"]
    embeddings = None
    if embed:
        pooling = model.magnet_settings.pooling
        embeddings = model._sentence_vectors(states, attention_mask, pooling=pooling, prompt_length=0)
    visible = attention_mask.bool() & (batch["segment_ids"] == 0)
    return _Context(states, visible, batch["position_ids"], cache, embeddings)


class _Loop:
    """The N spans of a batch, their places (row, slot), and what was chosen for them."""

    def __init__(
        self,
        model: Any,
        spans: Sequence[Span],
        places: Sequence[tuple[int, int]],
        mask: StepMask,
        num_steps: int,
        chooser: TokenChooser,
        rules: StopRules | None,
    ) -> None:
        self.model, self.spans, self.places = model, spans, places
        self.chooser, self.rules, self.mask, self.num_steps = chooser, rules, mask, num_steps
        self.firsts = [len(span.token_ids) for span in spans]
        self.limits = [min(num_steps, span.length - first) for span, first in zip(spans, self.firsts, strict=True)]
        shape, device = mask.starts.shape, model.device
        self.tokens = torch.zeros(*shape, num_steps, dtype=torch.long, device=device)
        # An explicit dtype: while any thread loads a model, torch's default dtype is that model's, for all threads.
        self.logprobs = torch.zeros(*shape, num_steps, dtype=torch.float32, device=device)
        self.is_possible = torch.ones(shape, dtype=torch.bool, device=device)
        self.is_nan = torch.zeros((), dtype=torch.bool, device=device)
        self.with_scores = rules is not None and bool(rules.criteria)
        self.reads_tokens = rules is not None or chooser.reads_tokens
        self.keeps_rows = bool(chooser.processors) or self.with_scores  # these may remember rows by their number
        self.everywhere = self._index(range(len(spans)))

    def run(self, context: _Context, predictors: torch.Tensor) -> None:
        """Choose tokens and feed them back until no span goes on; context tokens `(B, K)` predict the first ones."""
        active, where = list(range(len(self.spans))), self.everywhere
        states = context.states[where[0], predictors[where]]  # (N, H)
        for step in range(self.num_steps):
            choice = self._choose(states, active, step)
            self._write(choice, active, where, step)
            if self.reads_tokens:
                if bool(self.is_nan):
                    break  # before a token of it is streamed
                self._append(choice, [self.spans[i] for i in active])
            going_on = [i for i in active if self.limits[i] > step + 1 and not self.spans[i].has_ended]
            if not going_on:
                break
            if len(going_on) < len(active) and not self.keeps_rows:
                active, where = going_on, self._index(going_on)
            num_rows = 1 + max(self.places[i][0] for i in active)
            states = self._feed(context.cache, step, num_rows=num_rows)[where]

    def finish(self) -> None:
        """Write what was chosen into the spans, in one read from the device unless each step was read."""
        if bool(self.is_nan):
            raise ValueError("The model gave NaN logits for a token of a fill. Check its weights and dtype.")
        for span, possible in zip(self.spans, self.is_possible[self.everywhere].tolist(), strict=True):
            span.is_possible = span.is_possible and possible
        if not self.reads_tokens:
            tokens, logprobs = self.tokens[self.everywhere].tolist(), self.logprobs[self.everywhere].tolist()
            for span, limit, ids, scores in zip(self.spans, self.limits, tokens, logprobs, strict=True):
                span.token_ids += ids[:limit]
                span.logprobs += scores[:limit]

    def _choose(self, states: torch.Tensor, active: list[int], step: int) -> Choice:
        """Choose a token for each active span from states `(N, H)`, with logits of a few spans at a time."""
        vocab_size = self.model.config.vocab_size
        size = self.chooser.spans_at_once(len(active), vocab_size=vocab_size, device=states.device)
        if self.with_scores:
            size = len(active)  # stopping criteria get all of them
        groups = []
        for start in range(0, len(active), size):
            group = active[start : start + size]
            logits = self.model._project(states[start : start + size])
            spans, indices = [self.spans[i] for i in group], [self.firsts[i] + step for i in group]
            groups.append(self.chooser.choose(logits, spans, indices=indices, with_scores=self.with_scores))
        return Choice.join(groups)

    def _write(self, choice: Choice, active: list[int], where: tuple[torch.Tensor, ...], step: int) -> None:
        """Keep the tokens of a step on the device."""
        self.tokens[:, :, step].index_put_(where, choice.tokens)
        self.logprobs[:, :, step].index_put_(where, choice.logprobs)
        possible = choice.is_possible
        if self.keeps_rows:  # full spans are among them, whose tokens no longer count
            possible = possible | torch.tensor([self.spans[i].is_full for i in active], device=possible.device)
        self.is_possible.index_put_(where, self.is_possible[where] & possible)
        self.is_nan |= choice.is_nan

    def _append(self, choice: Choice, spans: Sequence[Span]) -> None:
        """Append its token to each span that is not full, and let the rules end spans."""
        growing = [not span.is_full for span in spans]
        chosen = zip(spans, growing, choice.tokens.tolist(), choice.logprobs.tolist(), strict=True)
        for span, grows, token, logprob in chosen:
            if grows and token == self.chooser.end_of_span_id:
                span.has_ended = True
            elif grows:
                span.token_ids.append(token)
                span.logprobs.append(logprob)
        if self.rules is not None:
            grown = [span for span, grows in zip(spans, growing, strict=True) if grows and not span.has_ended]
            self.rules.after_step(spans, grown, choice, chooser=self.chooser)

    def _feed(self, cache: ReservedCache, step: int, *, num_rows: int) -> torch.Tensor:
        """Run token `step` of the spans in the first rows through the model; returns states `(num_rows, K, H)`."""
        cache.keep_first_rows(num_rows)
        outputs = self.model.base_model(
            input_ids=self.tokens[:num_rows, :, step],
            attention_mask=self.mask.at(step, num_rows=num_rows),
            position_ids=self.mask.starts[:num_rows] + step,
            past_key_values=cache,
            use_cache=True,
            **{MASK_IS_OURS: True},
        )
        states: torch.Tensor = outputs.last_hidden_state
        return states

    def _index(self, chosen: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows and slots of some spans as index tensors `(N,)`."""
        places = torch.tensor([self.places[i] for i in chosen]).T.contiguous()
        rows, slots = self.model._to_device({"both": places})["both"]
        return rows, slots


__all__ = ["ReservedCache", "decode"]
