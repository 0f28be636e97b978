"""Decode spans: read the context once, then extend all spans of all rows together, one token per step.

The result is exact, because hidden states of the context never depend on a span and spans never see each other. After
each step, rules may end spans early, and a streamer receives the new tokens.

Shapes: B rows, C context tokens of the longest row, K spans of the row with the most spans, T steps, N spans in total,
H hidden size.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer, TextStreamer

from .attention_magnet import ReservedCache, call_decoder
from .batching_magnet import to_device
from .configuration_magnet import MagnetSettings
from .masking_magnet import StepMasks, attention_pattern, layer_masks
from .pooling_magnet import sentence_vectors
from .sampling_magnet import Choice, TokenChooser, left_contexts
from .spans_magnet import Span, SpanRow, decode_fill, fill_text
from .spelling_magnet import ByteTokens
from .tokenization_magnet import pad_token_rows

# Closing quotes and brackets belong to the sentence. The white space after it distinguishes an end from a decimal
# point. Scripts without spaces have their own full stops.
SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+[”’」』）]*""")


# --- Streaming, and rules that end spans early.


@dataclass
class SpanStream:
    """Streams the spans of one text one after another, although all of them are decoded together.

    Each span is streamed like an output of `generate`: first the text since the previous span as its prompt, then its
    tokens, then the end. A `TextStreamer` receives the text of the fill, character for character, instead of tokens.
    """

    streamer: BaseStreamer
    tokenizer: PreTrainedTokenizerBase
    byte_tokens: ByteTokens  # a token that ends inside a character is held back
    prompts: Sequence[list[int]]  # tokens before each blank
    texts: Sequence[str]  # text before each blank
    spans: Sequence[Span]  # one for each blank, in order
    blank: int = 0
    sent: int | None = None  # streamed tokens or characters of the current span; `None` before its prompt

    def update(self, *, holds_last: bool) -> None:
        """Stream what was added since the last call; `holds_last` keeps back a token that a rule may still drop."""
        while self.blank < len(self.spans):
            span = self.spans[self.blank]
            whole = self.byte_tokens.count_whole(span.token_ids)
            if isinstance(self.streamer, TextStreamer):
                self._send_text(span, fill_text(self.tokenizer, span) if whole == len(span.token_ids) else "")
            else:
                self._send_tokens(span, whole - (1 if holds_last and not span.is_full else 0))
            if not span.is_full:
                return
            self.streamer.end()
            self.blank, self.sent = self.blank + 1, None

    def _send_tokens(self, span: Span, ready: int) -> None:
        if self.sent is None:
            self.streamer.put(torch.tensor([self.prompts[self.blank]]))
            self.sent = 0
        for token in span.token_ids[self.sent : ready]:
            self.streamer.put(torch.tensor([token]))
        self.sent = max(ready, self.sent)

    def _send_text(self, span: Span, text: str) -> None:
        assert isinstance(self.streamer, TextStreamer)
        if self.sent is None:
            self.sent = 0
            if not self.streamer.skip_prompt:
                self.streamer.on_finalized_text(self.texts[self.blank])
        if new := text[self.sent :]:
            self.streamer.on_finalized_text(new)
            self.sent = len(text)


@dataclass
class StopRules:
    """Rules of one call that end spans early."""

    tokenizer: PreTrainedTokenizerBase
    byte_tokens: ByteTokens  # a criterion must not end a span inside a character
    stop_strings: Sequence[str]  # a span ends after the first of these, like an output of `generate`
    sentence_end: bool  # a span ends after its first sentence; an abbreviation counts as a sentence
    criteria: StoppingCriteriaList | None  # their rows are the spans of a batch, see `left_contexts`
    stream: SpanStream | None = None

    @property
    def reads_text(self) -> bool:
        """Whether a rule reads the text of the spans."""
        return bool(self.stop_strings) or self.sentence_end

    def after_step(self, spans: Sequence[Span], grown: Sequence[Span], choice: Choice, *, pad_token_id: int) -> None:
        """End spans of a batch and stream new tokens; `grown` are the spans that received a token in this step."""
        if self.reads_text:
            for span in grown:
                self._end_in_text(span)
        if self.criteria:
            contexts = left_contexts(spans, pad_token_id=pad_token_id).to(choice.tokens.device)
            is_done = self.criteria(contexts, choice.scores)
            for span, is_ended in zip(spans, torch.as_tensor(is_done).expand(len(spans)).tolist(), strict=True):
                if is_ended and not span.is_full:
                    span.is_full = True
                    whole = self.byte_tokens.count_whole(span.token_ids)
                    del span.token_ids[whole:], span.logprobs[whole:]
        if self.stream is not None:
            self.stream.update(holds_last=self.reads_text)

    def _end_in_text(self, span: Span) -> None:
        """End a span at the first match of a rule in its text, and drop the tokens after it."""
        text = decode_fill(self.tokenizer, span.before, span.token_ids)
        first = len(span.healed.start)  # healed characters belong to the context and end nothing
        ends = [text.index(stop, first) + len(stop) for stop in self.stop_strings if stop in text[first:]]
        if self.sentence_end and (match := SENTENCE_END.search(text, first)):
            ends.append(match.end())
        if not ends:
            return
        span.is_full, span.text_length = True, min(ends)
        kept = len(span.token_ids)
        # Keep the fewest tokens whose text reaches the end, which may lie inside the last of them.
        while kept > 1:
            shorter = decode_fill(self.tokenizer, span.before, span.token_ids[: kept - 1])
            if shorter[: min(ends)] != text[: min(ends)]:
                break
            kept -= 1
        del span.token_ids[kept:], span.logprobs[kept:]


# --- The loop.


def decode(
    model: Any,
    rows: Sequence[SpanRow],
    *,
    chooser: TokenChooser,
    rules: StopRules | None,
    max_steps: int,
    embed: bool = False,
) -> torch.Tensor | None:
    """Append up to `max_steps` tokens to each span, in place. Every row needs a span that is not full.

    Args:
        model (`PreTrainedModel`): The model.
        rows (`Sequence[SpanRow]`): Rows with their spans.
        chooser (`TokenChooser`): Chooses tokens.
        rules (`StopRules`, *optional*): End spans early.
        max_steps (`int`): Maximum number of tokens to append to a span.
        embed (`bool`, defaults to `False`): Whether to return embeddings of the texts around the spans.

    Returns:
        `torch.FloatTensor` of shape `(B, H)` in the order of the rows, or `None`.

    Raises:
        ValueError: If the model returns NaN logits.
    """
    # Sort rows by descending number of steps, so that the active rows are always the first rows of the batch.
    steps = [max(min(max_steps, span.length - len(span.token_ids)) for span in row.spans) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: -steps[index])
    new_row = {index: row for row, index in enumerate(order)}
    # Spans stay in the order of the call, because processors and criteria may identify them by their row.
    spans = [span for row in rows for span in row.spans]
    cells = [(new_row[index], slot) for index, row in enumerate(rows) for slot in range(len(row.spans))]
    loop = _Loop(model, spans, cells, num_steps=max(steps), chooser=chooser, rules=rules)
    states, embeddings = loop.read_context([rows[index] for index in order], embed=embed)
    loop.run(states)
    loop.finish()
    return None if embeddings is None else embeddings[[new_row[index] for index in range(len(rows))]]


class _Loop:
    """The state of one call of `decode`: the N spans, their cells (row and slot) in the batch, and their tokens.

    `read_context` runs first, and sets the cache, the masks and the start positions.
    """

    def __init__(
        self,
        model: Any,
        spans: Sequence[Span],
        cells: Sequence[tuple[int, int]],
        *,
        num_steps: int,
        chooser: TokenChooser,
        rules: StopRules | None,
    ) -> None:
        self.model, self.spans, self.cells = model, spans, cells
        self.chooser, self.rules, self.num_steps = chooser, rules, num_steps
        self.firsts = [len(span.token_ids) for span in spans]
        self.limits = [min(num_steps, span.length - first) for span, first in zip(spans, self.firsts, strict=True)]
        self.num_slots = 1 + max(slot for _, slot in cells)
        shape = (1 + max(row for row, _ in cells), self.num_slots)  # (B, K)
        self.tokens = torch.zeros(*shape, num_steps, dtype=torch.long, device=model.device)
        # Set the dtype explicitly: while a thread loads a model, torch's default dtype is that model's in all threads.
        self.logprobs = torch.zeros(*shape, num_steps, dtype=torch.float32, device=model.device)
        self.is_possible = torch.ones(shape, dtype=torch.bool, device=model.device)
        self.is_nan = torch.zeros((), dtype=torch.bool, device=model.device)
        self.with_scores = rules is not None and bool(rules.criteria)
        self.reads_tokens = rules is not None or chooser.reads_tokens
        max_spans = chooser.max_spans(model.config.vocab_size, device=model.device)
        self.max_spans = len(spans) if self.with_scores else max_spans  # criteria need the scores of all spans
        self.keeps_rows = bool(chooser.processors) or self.with_scores  # these may index their state by row

    def read_context(self, rows: Sequence[SpanRow], *, embed: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the context through the model, with a cache that has capacity for all steps.

        An embedding needs an EOS after the text. The EOS is a segment like a span: it sees the whole context but no
        context token sees it, so fills do not depend on whether an embedding is requested.

        Returns:
            The states `(N, H)` that predict the first token of each span, and the embeddings `(B, H)` or `None`.
        """
        model = self.model
        batch = self._context_batch(rows, end=[model.tokenizer.eos_token_id] if embed else [])
        positions, segments, self.starts = batch["positions"], batch["segments"], batch["starts"]
        length = positions.shape[1]
        allowed = attention_pattern(segments, query_length=length, attention_mask=batch["attention_mask"])
        shared = {"config": model.config, "dtype": model.dtype}
        masks = layer_masks(allowed=allowed, query_positions=positions, key_positions=positions, **shared)
        if self.num_steps > 1:
            visible = batch["attention_mask"].bool() & (segments == 0)
            self.masks = StepMasks(
                visible=visible, context_positions=positions, starts=self.starts, num_steps=self.num_steps, **shared
            )
        capacity = length + self.num_slots * self.num_steps
        self.cache = ReservedCache(num_layers=model.config.num_hidden_layers, capacity=capacity)
        self.run_tokens = partial(call_decoder, model, "infill", past_key_values=self.cache, use_cache=True)
        outputs = self.run_tokens(input_ids=batch["input_ids"], attention_mask=masks, position_ids=positions)
        states = outputs.last_hidden_state  # (B, C, H)
        row_of, slot_of, predictor_of = batch["cells"]  # (N,) each
        self.all_cells = (row_of, slot_of)
        first = states[row_of, predictor_of]
        if not embed:
            return first, None
        pooling = MagnetSettings.from_config(model.config).pooling
        return first, sentence_vectors(model, states, batch["attention_mask"], pooling=pooling, prompt_length=0)

    def _context_batch(self, rows: Sequence[SpanRow], *, end: list[int]) -> dict[str, torch.Tensor]:
        """Return the context tokens of rows and the cells and start positions of their spans, on the device."""
        ids = [[*row.layout.token_ids, *end] for row in rows]
        positions = [[*row.layout.positions, *[row.layout.length] * len(end)] for row in rows]
        segments = [[0] * len(row.layout.token_ids) + [1] * len(end) for row in rows]
        starts = [[row.layout.span_starts[span.blank] for span in row.spans] for row in rows]
        # For each span: its row, its slot, and the index of the context token that predicts its first token.
        cells = [[row, slot, rows[row].layout.predictors[rows[row].spans[slot].blank]] for row, slot in self.cells]
        batch = pad_token_rows(ids, pad_token_id=self.chooser.pad_token_id)
        for name, table in (("positions", positions), ("segments", segments), ("starts", starts)):
            batch[name] = pad_token_rows(table, pad_token_id=0)["input_ids"]
        batch["cells"] = torch.tensor(cells).T.contiguous()
        return to_device(self.model, batch)

    def run(self, states: torch.Tensor) -> None:
        """Choose tokens from states `(N, H)` and feed them to the model until no span continues."""
        active, active_cells = list(range(len(self.spans))), self.all_cells
        num_rows = len(self.starts)
        for step in range(self.num_steps):
            choice = self._choose(states, active, step)
            self._write(choice, active, active_cells, step)
            if self.reads_tokens:
                if bool(self.is_nan):
                    break  # before a token is streamed; `finish` raises
                self._append(choice, [self.spans[i] for i in active])
            unfinished = [i for i in active if self.limits[i] > step + 1 and not self.spans[i].is_full]
            if not unfinished:
                break
            if len(unfinished) < len(active) and not self.keeps_rows:
                active = unfinished
                cells = torch.tensor([self.cells[i] for i in active]).T.contiguous()
                row_of, slot_of = to_device(self.model, {"cells": cells})["cells"]
                active_cells = (row_of, slot_of)
            rows_left = 1 + max(self.cells[i][0] for i in active)
            if rows_left < num_rows:
                num_rows = rows_left
                self.cache.keep_first_rows(num_rows)
            outputs = self.run_tokens(
                input_ids=self.tokens[:num_rows, :, step],
                attention_mask=self.masks.at(step, num_rows=num_rows),
                position_ids=self.starts[:num_rows] + step,
            )
            states = outputs.last_hidden_state[active_cells]

    def finish(self) -> None:
        """Write the chosen tokens into the spans; if the steps did not, read all of them from the device at once."""
        if bool(self.is_nan):
            raise ValueError("The model gave NaN logits for a token of a fill. Check its weights and dtype.")
        for span, possible in zip(self.spans, self.is_possible[self.all_cells].tolist(), strict=True):
            span.is_possible = span.is_possible and possible
        if not self.reads_tokens:
            tokens, logprobs = self.tokens[self.all_cells].tolist(), self.logprobs[self.all_cells].tolist()
            for span, limit, ids, scores in zip(self.spans, self.limits, tokens, logprobs, strict=True):
                span.token_ids += ids[:limit]
                span.logprobs += scores[:limit]
                span.is_full = len(span.token_ids) == span.length

    def _choose(self, states: torch.Tensor, active: list[int], step: int) -> Choice:
        """Choose a token for each active span from states `(N, H)`, in groups that bound the memory for logits."""
        num_groups = -(-len(active) // self.max_spans)
        size = -(-len(active) // num_groups)
        groups = []
        for start in range(0, len(active), size):
            group = active[start : start + size]
            logits = self.model._project(states[start : start + size])
            spans, indices = [self.spans[i] for i in group], [self.firsts[i] + step for i in group]
            groups.append(self.chooser.choose(logits, spans, indices=indices, with_scores=self.with_scores))
        return Choice.join(groups)

    def _write(self, choice: Choice, active: list[int], active_cells: tuple[torch.Tensor, ...], step: int) -> None:
        """Store the tokens of a step on the device."""
        self.tokens[:, :, step].index_put_(active_cells, choice.tokens)
        self.logprobs[:, :, step].index_put_(active_cells, choice.logprobs)
        possible = choice.is_possible
        if self.keeps_rows:  # the batch includes full spans, whose new tokens do not count
            possible = possible | torch.tensor([self.spans[i].is_full for i in active], device=possible.device)
        self.is_possible.index_put_(active_cells, self.is_possible[active_cells] & possible)
        self.is_nan |= choice.is_nan

    def _append(self, choice: Choice, spans: Sequence[Span]) -> None:
        """Append the chosen token to each span that is not full, then apply the rules."""
        grown = []
        for span, token, logprob in zip(spans, choice.tokens.tolist(), choice.logprobs.tolist(), strict=True):
            if span.is_full:
                continue
            if token == self.chooser.end_of_span_id:
                span.is_full = True
            else:
                span.token_ids.append(token)
                span.logprobs.append(logprob)
                span.is_full = len(span.token_ids) == span.length
                grown.append(span)
        if self.rules is not None:
            self.rules.after_step(spans, grown, choice, pad_token_id=self.chooser.pad_token_id)
