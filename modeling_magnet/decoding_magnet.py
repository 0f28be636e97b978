"""The decoding loop: prefill the context once, then all spans of all rows advance together, one token a step.

Exact, because context states never depend on a span and spans never see each other. Shapes: B rows, C context tokens
in the longest row, K spans in the row that has most, T steps, N spans in all, H hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import CompileConfig

from .cache_magnet import ReservedCache
from .encoding_magnet import EncodingMixin
from .sampling_magnet import Choice, TokenChooser
from .spans_magnet import Span, SpanRow
from .steps_magnet import STATIC_MULTIPLE, GrowingSteps, StaticSteps, StepMask
from .stopping_magnet import StopRules


class _Prefill(NamedTuple):
    """What is known once the context has been read."""

    states: torch.Tensor  # (B, C, H)
    visible: torch.Tensor  # (B, C): context that spans may attend to
    positions: torch.Tensor  # (B, C)
    cache: ReservedCache
    embeddings: torch.Tensor | None  # (B, H)


class DecodingMixin(EncodingMixin):
    """Run rows of spans through the model in infill mode."""

    def _decode(
        self,
        rows: Sequence[SpanRow],
        *,
        chooser: TokenChooser,
        rules: StopRules,
        max_steps: int,
        embed: bool = False,
        static: bool = False,
        compile_config: CompileConfig | None = None,
    ) -> torch.Tensor | None:
        """Write up to `max_steps` tokens into each span; every row has a span that is not full.

        Args:
            rows (`Sequence[SpanRow]`): Rows with their spans, which grow in place.
            chooser (`TokenChooser`): Picks tokens.
            rules (`StopRules`): End spans early.
            max_steps (`int`): Tokens to add to a span at most.
            embed (`bool`): Whether to return embeddings of the gapped texts as well.
            static, compile_config: See `StaticSteps`.

        Returns:
            `torch.FloatTensor` of shape `(B, H)` in the order of the rows, or `None`.

        Raises:
            ValueError: logits that are no numbers.
        """
        # Rows that go on longest come first: those that still go on are then always the first ones of the batch.
        steps = [max(min(max_steps, s.gap_length - len(s.token_ids)) for s in row.spans) for row in rows]
        order = sorted(range(len(rows)), key=lambda index: -steps[index])
        place_of = dict(sorted((index, place) for place, index in enumerate(order)))
        spans = [span for row in rows for span in row.spans]
        places = [(place_of[index], slot) for index, row in enumerate(rows) for slot in range(len(row.spans))]
        firsts = [len(span.token_ids) for span in spans]
        limits = [min(max_steps, span.gap_length - first) for span, first in zip(spans, firsts, strict=True)]
        num_slots, num_steps = max(len(row.spans) for row in rows), max(steps)

        prefill = self._read_context(
            [rows[index] for index in order],
            room=num_slots * num_steps,
            embed=embed,
            multiple=STATIC_MULTIPLE if static else 1,
        )
        shape = (len(rows), num_slots)
        positions = torch.zeros(shape, dtype=torch.long)
        predictors = torch.zeros(shape, dtype=torch.long)
        for row, place in zip(rows, place_of.values(), strict=True):
            for slot, span in enumerate(row.spans):
                positions[place, slot] = row.text.gap_starts[span.gap]
                predictors[place, slot] = row.text.predictors[span.gap]
        positions, predictors = self._to_device({"positions": positions, "predictors": predictors}).values()
        mask = StepMask(
            self,
            prefill.visible,
            context_positions=prefill.positions,
            starts=positions,
            num_steps=num_steps,
            capacity=prefill.cache.capacity,
        )
        feed: GrowingSteps | StaticSteps
        if static:
            feed = StaticSteps(self, prefill.cache, mask, compile_config=compile_config)
        else:
            feed = GrowingSteps(self, prefill.cache, mask)
        tokens = torch.zeros(*shape, num_steps, dtype=torch.long, device=self.device)
        # Said aloud: while any thread loads a model, torch's default dtype is that model's, for all threads.
        logprobs = torch.zeros(*shape, num_steps, dtype=torch.float32, device=self.device)
        is_possible = torch.ones(shape, dtype=torch.bool, device=self.device)
        is_nan = torch.zeros((), dtype=torch.bool, device=self.device)

        reads_tokens = rules.reads_tokens or chooser.reads_tokens
        keeps_rows = bool(chooser.processors or rules.criteria)  # they may remember rows by their number
        active = list(range(len(spans)))
        everywhere = where = self._index(places)  # two of (N,): row and slot of each span, and of each active one
        states = prefill.states[where[0], predictors[where]]  # (N, H)
        for step in range(num_steps):
            choice = self._choose(
                states,
                [spans[i] for i in active],
                indices=[firsts[i] + step for i in active],
                chooser=chooser,
                with_scores=bool(rules.criteria),
            )
            tokens[:, :, step].index_put_(where, choice.tokens)
            logprobs[:, :, step].index_put_(where, choice.logprobs)
            possible = choice.is_possible
            if keeps_rows:  # what is said of a span that is full no longer counts
                full = torch.tensor([spans[i].is_full for i in active], device=possible.device)
                possible = possible | full
            is_possible.index_put_(where, is_possible[where] & possible)
            is_nan |= choice.is_nan
            if reads_tokens:
                if bool(is_nan):
                    break  # before a token of it is handed to anyone
                rules.after_step([spans[i] for i in active], choice, chooser=chooser)
            going_on = [i for i in active if limits[i] > step + 1 and not spans[i].has_ended]
            if not going_on:
                break
            if len(going_on) < len(active) and not keeps_rows:
                active = going_on
                where = self._index([places[i] for i in active])
            num_rows = 1 + max(places[i][0] for i in active)
            states = feed(tokens[:, :, step], step, num_rows=num_rows)[where]
        if bool(is_nan):
            raise ValueError("The model gave NaN logits for a token of a gap. Check its weights and dtype.")
        for span, possible in zip(spans, is_possible[everywhere].tolist(), strict=True):
            span.is_possible = span.is_possible and possible
        if not reads_tokens:
            grown = (spans, limits, tokens[everywhere].tolist(), logprobs[everywhere].tolist())
            for span, limit, ids, scores in zip(*grown, strict=True):
                span.token_ids += ids[:limit]
                span.logprobs += scores[:limit]
        embeddings = prefill.embeddings
        return None if embeddings is None else embeddings[[place_of[index] for index in range(len(rows))]]

    def _choose(
        self,
        states: torch.Tensor,
        spans: Sequence[Span],
        *,
        indices: Sequence[int],
        chooser: TokenChooser,
        with_scores: bool,
    ) -> Choice:
        """A token for each span from the states `(N, H)` that predict them, with logits of a few spans at a time."""
        vocab_size = self.config.vocab_size
        size = chooser.spans_at_once(len(spans), vocab_size=vocab_size, device=states.device)
        if with_scores:
            size = len(spans)  # stopping criteria get all of them
        return Choice.join(
            [
                chooser.choose(
                    self._project(states[start : start + size]),
                    spans[start : start + size],
                    indices=indices[start : start + size],
                    with_scores=with_scores,
                )
                for start in range(0, len(spans), size)
            ]
        )

    def _read_context(self, rows: Sequence[SpanRow], *, room: int, embed: bool, multiple: int) -> _Prefill:
        """Read the context of a batch, and leave room in its cache, which is a multiple of some number of tokens.

        An embedding needs an EOS behind the text. It is read as a span of its own: it sees the whole context, and no
        context token sees it, so that fills do not depend on whether an embedding is wanted.
        """
        ids = [row.text.token_ids for row in rows]
        positions = [row.text.positions for row in rows]
        segments = [[0] * len(row) for row in ids]
        if embed:
            ids = [[*row, self.tokenizer.eos_token_id] for row in ids]
            positions = [[*row, text.text.length] for row, text in zip(positions, rows, strict=True)]
            segments = [[*row, 1] for row in segments]
        batch = self._infill_batch(ids, positions, segments)
        context = batch["input_ids"].shape[1]
        capacity = -(-(context + room) // multiple) * multiple
        cache = ReservedCache(num_layers=self.config.num_hidden_layers, capacity=capacity)
        outputs = self(
            **batch, mode="infill", past_key_values=cache, logits_to_keep=torch.arange(0, device=self.device)
        )
        states, attention_mask = outputs.last_hidden_state, batch["attention_mask"]
        embeddings = None
        if embed:
            settings = self.magnet_settings
            embeddings = self._sentence_vectors(states, attention_mask, pooling=settings.pooling, prompt_length=0)
        visible = attention_mask.bool() & (batch["segment_ids"] == 0)
        return _Prefill(states, visible, batch["position_ids"], cache, embeddings)

    def _index(self, places: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Places `(row, slot)` as two index tensors `(N,)`."""
        rows, slots = self._to_device({"both": torch.tensor(places).T.contiguous()})["both"]
        return rows, slots


__all__ = ["DecodingMixin"]
