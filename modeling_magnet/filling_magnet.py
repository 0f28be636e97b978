"""Texts with gaps -> filled spans: rounds of decoding, in batches, and the choice among lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from numbers import Integral

import torch
from transformers.utils.logging import tqdm

from .characters_magnet import CharacterRule, character_parts
from .decoding_magnet import DecodingMixin
from .encoding_magnet import PROGRESS_FROM_BATCHES, hides_bar
from .gaps_magnet import GappedText, lay_out
from .generation_fields_magnet import eos_ids, max_length
from .masking_magnet import PACKED_BACKENDS
from .options_magnet import InfillOptions
from .sampling_magnet import TokenChooser
from .seams_magnet import SeamHealer
from .spans_magnet import Span, SpanRow
from .stopping_magnet import GapStream, StopRules
from .tokenization_magnet import special_ids


@dataclass
class FilledText:
    """A text whose gaps were filled.

    Args:
        layout (`GappedText`): Its tokens before anything was filled.
        spans (`list[list[Span]]`): For each gap, its answers.
        embedding (`torch.FloatTensor` of shape `(hidden_size,)`, *optional*): Of the text with its gaps.
    """

    layout: GappedText
    spans: list[list[Span]]
    embedding: torch.Tensor | None = None


class FillingMixin(DecodingMixin):
    """Fill gaps of known lengths."""

    @torch.no_grad()
    def _fill(
        self,
        pieces: Sequence[Sequence[str]],
        *,
        gap_lengths: Sequence[Sequence[int]],
        options: InfillOptions,
    ) -> list[FilledText]:
        """Fill the gaps of all texts.

        Args:
            pieces (`Sequence[Sequence[str]]`): Of each text, what stands around its gaps.
            gap_lengths (`Sequence[Sequence[int]]`): Of each text, the tokens of each gap.
            options (`InfillOptions`): How.

        Raises:
            ValueError: a text that cannot be laid out.
        """
        if options.num_answers > self.config.vocab_size:
            raise ValueError(
                f"`num_return_sequences` is {options.num_answers}; a vocabulary of {self.config.vocab_size} tokens "
                "begins no more than as many different answers."
            )
        if options.is_static:
            self._check_static()
        self._probe_attention()
        multiple = self.magnet_settings.end_of_span if options.stop_at_end_of_span else 1
        layouts = [
            lay_out(
                self.tokenizer,
                parts,
                gap_lengths=[round_up(length, multiple) for length in lengths],
                context_length=self.config.max_position_embeddings,
                heal=options.heal,
                split_special_tokens=options.split_special_tokens,
            )
            for parts, lengths in zip(pieces, gap_lengths, strict=True)
        ]
        longest = max_length(options.generation_config)
        for layout in layouts:
            if longest is not None and layout.length > longest:
                raise ValueError(
                    f"Text and gaps need {layout.length} positions; `max_length` of the generation config is "
                    f"{longest}. Shorten the text or the gaps, or pass a config with another `max_length`."
                )
        texts = self._new_spans(layouts, gap_lengths, num_answers=options.num_answers)
        chooser = self._chooser(texts, options)
        rules = self._stop_rules(texts, options, pieces=pieces)
        # First all answers of a text side by side in one row; later each sees what it was filled with before.
        rows = [(text, SpanRow(text.layout, [s for spans in text.spans for s in spans])) for text in texts]
        is_first = True
        embeds = bool(options.return_dict_in_generate) and self.tokenizer.eos_token_id is not None
        spans = [span for text in texts for of_gap in text.spans for span in of_gap]
        hide = hides_bar(options.show_progress_bar, -(-len(rows) // options.batch_size), least=PROGRESS_FROM_BATCHES)
        settled = 0  # counted here: a bar that `disable_progress_bar` took away keeps no count
        with tqdm(total=sum(span.gap_length for span in spans), desc="Filling", unit="token", disable=hide) as bar:
            while rows:
                by_length = sorted(range(len(rows)), key=lambda index: -rows[index][1].text.length)
                for start in range(0, len(rows), options.batch_size):
                    batch = [rows[index] for index in sorted(by_length[start : start + options.batch_size])]
                    with self._adapters_for("infill"):
                        embeddings = self._decode(
                            [row for _, row in batch],
                            chooser=chooser,
                            rules=rules,
                            max_steps=options.chunk_size,
                            embed=is_first and embeds,
                            static=options.is_static,
                            compile_config=options.compile_config,
                        )
                    if embeddings is not None:
                        for (text, _), embedding in zip(batch, embeddings, strict=True):
                            text.embedding = embedding
                    before, settled = settled, sum(map(_settled, spans))
                    bar.update(settled - before)
                rows, is_first = [(text, row) for text in texts for row in _next_rows(text)], False
        return texts

    def _check_static(self) -> None:
        """Refuse a model whose decoding steps cannot have one shape, or need a value read back.

        Raises:
            ValueError: saying why.
        """
        backend = self.config._attn_implementation
        rope = getattr(self.config, "rope_parameters", None) or {}
        kinds = {rope.get("rope_type")} | {one.get("rope_type") for one in rope.values() if isinstance(one, dict)}
        devices = set((getattr(self, "hf_device_map", None) or {}).values())
        for is_so, reason in (
            (backend in PACKED_BACKENDS, f"{backend!r} needs a new mask object for each step"),
            ("dynamic" in kinds, "rotations of rope_type 'dynamic' depend on a position that is read back"),
            (len(devices) > 1, f"the model is on several devices, {sorted(map(str, devices))}"),
        ):
            if is_so:
                raise ValueError(f"`cache_implementation` is 'static', but {reason}. Pass 'dynamic'.")

    def _new_spans(
        self, layouts: Sequence[GappedText], gap_lengths: Sequence[Sequence[int]], *, num_answers: int
    ) -> list[FilledText]:
        """Empty spans, numbered in the order of texts, gaps and answers."""
        special = special_ids(self.tokenizer)
        streams = count()
        texts = []
        for layout, lengths in zip(layouts, gap_lengths, strict=True):
            ends = [predictor + 1 for predictor in layout.predictors]
            befores = [[token for token in layout.token_ids[:end] if token not in special] for end in ends]
            spans = [
                [
                    Span(
                        gap=gap,
                        before=before,
                        gap_length=int(length),
                        stream=next(streams),
                        rank=rank,
                        seam=layout.seams[gap],
                    )
                    for rank in range(num_answers)
                ]
                for gap, (before, length) in enumerate(zip(befores, lengths, strict=True))
            ]
            texts.append(FilledText(layout, spans))
        return texts

    def _chooser(self, texts: Sequence[FilledText], options: InfillOptions) -> TokenChooser:
        """The choice of tokens for all spans of a call."""
        spans = [span for text in texts for gap in text.spans for span in gap]
        barred = self._ids_outside_text(options)
        parts = character_parts(self.tokenizer, self.config.vocab_size)
        return TokenChooser(
            options.generation_config,
            spans=spans,
            barred_ids=barred,
            pad_token_id=self._pad_token_id(),
            end_of_span_id=self.tokenizer.eos_token_id if options.stop_at_end_of_span else None,
            processors=options.logits_processor,
            healer=SeamHealer(self.tokenizer, vocab_size=self.config.vocab_size),
            characters=CharacterRule(parts, spans=spans, barred_ids=barred) if parts.token_ids else None,
        )

    def _stop_rules(
        self, texts: Sequence[FilledText], options: InfillOptions, *, pieces: Sequence[Sequence[str]]
    ) -> StopRules:
        """The rules that end spans, and who is told of tokens."""
        parts = character_parts(self.tokenizer, self.config.vocab_size)
        rules = StopRules(
            self.tokenizer,
            parts,
            end_of_span_id=self.tokenizer.eos_token_id if options.stop_at_end_of_span else None,
            stop_strings=options.stop_strings,
            sentence_end=options.stop_at_sentence_end,
            criteria=options.all_criteria(),
        )
        if options.streamer is not None:
            if len(texts) != 1:
                raise ValueError(f"`streamer` takes one text; {len(texts)} were given. Call once for each.")
            spans = [answers[0] for answers in texts[0].spans]
            rules.stream = GapStream(
                options.streamer,
                texts[0].layout,
                pieces=pieces[0],
                spans=spans,
                tokenizer=self.tokenizer,
                parts=parts,
                hold_back=rules.reads_text,
                trim=options.trim_overlap,
            )
        return rules

    def _ids_outside_text(self, options: InfillOptions) -> list[int]:
        """What no fill has, whatever the model or a processor says: EOS, other special tokens, ids without a token."""
        ids = {*special_ids(self.tokenizer), *(options.generation_config.suppress_tokens or ())}
        for config in (options.generation_config, self.generation_config, self.config):
            ids.update(eos_ids(config))
        size = self.config.vocab_size
        beyond = range(min(len(self.tokenizer), size), size)
        tokens = self.tokenizer.convert_ids_to_tokens(list(beyond))
        ids.update(token_id for token_id, token in zip(beyond, tokens, strict=True) if token is None)
        return sorted(token_id for token_id in ids if 0 <= token_id < size)


def _next_rows(text: FilledText) -> list[SpanRow]:
    """Of each answer to a text's gaps, the row that goes on where gaps are not full: what was filled is context."""
    rows = []
    for spans in zip(*text.spans, strict=True):  # one span of each gap
        growing = [span for span in spans if not span.is_full and span.is_possible]
        if growing:
            # What is no answer is no context either: beside it stands the first answer to its gap.
            seen = [
                span if span.is_possible else next((one for one in text.spans[span.gap] if one.is_possible), span)
                for span in spans
            ]
            layout = replace(text.layout, filled=[span.token_ids for span in seen])
            rows.append(SpanRow(layout, growing))
    return rows


def _settled(span: Span) -> int:
    """How much of its gap a span has decided: all of it where nothing more comes."""
    return len(span.token_ids) if span.is_possible and not span.is_full else span.gap_length


def round_up(length: int, multiple: int) -> int:
    """The next multiple; what is no length is left for `lay_out` to refuse."""
    is_length = isinstance(length, Integral) and not isinstance(length, bool) and length >= 1
    return -(-length // multiple) * multiple if is_length else length


__all__ = ["FilledText", "FillingMixin", "round_up"]
