"""How long is a gap? Candidate lengths are filled in one batch, and the best-scored one is taken.

The score of a length is the mean log-probability of the fill's tokens, plus the mean log-probability of the first
tokens behind the gap when the filled text is read from left to right: a fill has to be likely in its place, and what
follows has to be likely after it. Means, since sums would always prefer the shortest.
"""

import sys
from collections.abc import Sequence

import torch

from .filling_magnet import FilledText, FillingMixin, round_up
from .gaps_magnet import GappedText, lay_out
from .generation_fields_magnet import max_length
from .options_magnet import InfillOptions
from .tokenization_magnet import pad_token_rows

# Tokens behind a gap that its fill has to lead on to.
JOIN_TOKENS = 8


class LengthsMixin(FillingMixin):
    """Fill gaps of unknown length."""

    def _fill_best_length(
        self, pieces: Sequence[Sequence[str]], *, options: InfillOptions
    ) -> tuple[list[FilledText], list[list[dict[int, float]]]]:
        """Try every candidate length for all gaps of a text at once, then fill each gap at its best.

        The gaps of a text are scored apart, with all of them at the same candidate length. The trial is greedy.

        Returns:
            `tuple`: the filled texts, and the score of each candidate length per text and gap.

        Raises:
            ValueError: a text that does not fit the context with even the shortest gaps.
        """
        candidates = options.candidate_lengths(end_of_span=self.magnet_settings.end_of_span)
        fitting = [self._fitting(parts, candidates, options=options) for parts in pieces]
        trial_options = options.greedy()
        trials = self._fill(
            [parts for parts, lengths in zip(pieces, fitting, strict=True) for _ in lengths],
            gap_lengths=[
                [length] * (len(parts) - 1)
                for parts, lengths in zip(pieces, fitting, strict=True)
                for length in lengths
            ],
            options=trial_options,
        )
        scores = self._length_scores(trials, batch_size=options.batch_size)
        tables: list[list[dict[int, float]]] = []
        best: list[FilledText] = []
        first = 0
        for parts, lengths in zip(pieces, fitting, strict=True):
            of_text = range(first, first + len(lengths))
            gaps = range(len(parts) - 1)
            tables.append(
                [{length: scores[i][gap] for i, length in zip(of_text, lengths, strict=True)} for gap in gaps]
            )
            best.append(trials[max(of_text, key=lambda index: scores[index][0])])
            first += len(lengths)
        is_final = options.num_answers == 1 and not options.generation_config.do_sample
        if is_final and all(len(table) == 1 for table in tables):
            return best, tables
        chosen = [[max(table, key=table.__getitem__) for table in gaps] for gaps in tables]
        return self._fill(pieces, gap_lengths=chosen, options=options), tables

    def _fitting(self, pieces: Sequence[str], candidates: Sequence[int], *, options: InfillOptions) -> list[int]:
        """The candidates that leave a text within the context; the shortest in any case, to be refused by name."""
        gaps = len(pieces) - 1
        layout = lay_out(
            self.tokenizer,
            pieces,
            gap_lengths=[1] * gaps,
            context_length=sys.maxsize,
            heal=options.heal,
            split_special_tokens=options.split_special_tokens,
        )
        longest = max_length(options.generation_config) or sys.maxsize
        room = min(self.config.max_position_embeddings, longest) - len(layout.token_ids)
        multiple = self.magnet_settings.end_of_span if options.stop_at_end_of_span else 1
        return [length for length in candidates if gaps * round_up(length, multiple) <= room] or [min(candidates)]

    @torch.no_grad()
    def _length_scores(self, texts: Sequence[FilledText], *, batch_size: int) -> list[list[float]]:
        """The score of each gap of texts with one answer to each gap."""
        scores: list[list[float]] = [[] for _ in texts]
        by_length = sorted(range(len(texts)), key=lambda index: -texts[index].layout.length)
        for start in range(0, len(texts), batch_size):
            batch = by_length[start : start + batch_size]
            joins = self._join_logprobs(
                [texts[index].layout for index in batch],
                [[answers[0].token_ids for answers in texts[index].spans] for index in batch],
            )
            for index, of_text in zip(batch, joins, strict=True):
                for answers, join in zip(texts[index].spans, of_text, strict=True):
                    span = answers[0]
                    has_text = span.is_possible and len(span.logprobs) > 0
                    mean = sum(span.logprobs) / len(span.logprobs) if has_text else -torch.inf
                    scores[index].append(mean + join)
        return scores

    def _join_logprobs(
        self, layouts: Sequence[GappedText], fills: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """Mean log-probability, left to right, of the first tokens behind each gap; 0 where nothing stands there."""
        rows: list[list[int]] = []
        joins: list[list[tuple[int, int]]] = []
        for layout, of_text in zip(layouts, fills, strict=True):
            ids = list(layout.pieces[0])
            ranges = []
            for fill, piece in zip(of_text, layout.pieces[1:], strict=True):
                ids += fill
                ranges.append((len(ids), len(ids) + min(JOIN_TOKENS, len(piece))))
                ids += piece
            rows.append(ids)
            joins.append(ranges)
        batch = self._to_device(pad_token_rows(rows, pad_token_id=self._pad_token_id()))
        targets = [
            (0, row, place - 1, rows[row][place])
            for row, ranges in enumerate(joins)
            for start, end in ranges
            for place in range(start, end)
        ]
        remaining = iter(self._target_logprobs(batch, targets, mode="causal"))
        return [
            [sum(next(remaining) for _ in range(start, end)) / max(end - start, 1) for start, end in ranges]
            for ranges in joins
        ]


__all__ = ["JOIN_TOKENS", "LengthsMixin"]
