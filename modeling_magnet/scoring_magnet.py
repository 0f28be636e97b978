"""How probable are given fills? Those of equal length are read in one row, as spans that do not see each other.

Shapes: B rows, S tokens in the longest row, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.utils.logging import tqdm

from .answers_magnet import Fill
from .encoding_magnet import PROGRESS_FROM_BATCHES, EncodingMixin, hides_bar
from .filling_magnet import round_up
from .gaps_magnet import GappedText, Healing, fill_ids, lay_out
from .options_magnet import check_healing
from .tokenization_magnet import check_texts, plan_batches


@dataclass(frozen=True)
class _ScoredRow:
    """One text and all its fills of one length."""

    text: int
    layout: GappedText
    fills: dict[int, list[int]]  # number of the fill -> tokens

    @property
    def length(self) -> int:
        return len(self.layout.token_ids) + sum(map(len, self.fills.values()))


class ScoringMixin(EncodingMixin):
    """`score_infill`."""

    @torch.no_grad()
    def score_infill(
        self,
        prefix: str | Sequence[str],
        fills: Sequence[str] | Sequence[Sequence[str]],
        suffix: str | Sequence[str],
        *,
        heal: Healing | None = "space",
        split_special_tokens: bool = True,
        batch_tokens: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[Fill] | list[list[Fill]]:
        """Log-probabilities of given fills between a prefix and a suffix.

        Exact: what decoding would have scored. A fill is scored in a gap of its own length, with the space at the end
        of the prefix as part of its first token where `heal` says so. A model that was taught to end spans is asked in
        the next multiple of its gaps, as in decoding with no longer limit; the chance that the span ends there is not
        counted.

        Args:
            prefix (`str` or `list[str]`): Text in front of the gap; may be empty.
            fills (`list[str]`, or a list of such lists): The candidates for the gap; none may be empty.
            suffix (`str` or `list[str]`): Text behind it.
            heal (`str`, *optional*, defaults to `"space"`): As `infill` takes it; `None` leaves the tokens of the
                context alone.
            split_special_tokens (`bool`, defaults to `True`): As `infill` takes it.
            batch_tokens (`int`, *optional*): Tokens of a forward, padding included; defaults to what suits the device.
            show_progress_bar (`bool`, *optional*): Defaults to showing one over many batches.

        Returns:
            `list[Fill]`, or a list of them for lists, in the order given: with `logprob` to choose between fills of
            equal length, and `mean_logprob` where lengths differ.

        Raises:
            ValueError: lists of different lengths, no fill or an empty one, no text around the gap, or a text beyond
                the context.

        Source: Khosla et al. 2025, section 3.3; the shared row follows from the mask (Figure 2).
        """
        check_healing(heal)
        single = isinstance(prefix, str) and isinstance(suffix, str)
        prefixes = check_texts([prefix] if isinstance(prefix, str) else prefix, name="prefix")
        suffixes = check_texts([suffix] if isinstance(suffix, str) else suffix, name="suffix")
        candidates: Any = [fills] if single else fills
        if isinstance(candidates, str) or not isinstance(candidates, Sequence):
            raise ValueError(f"`fills` is {type(fills).__name__}; expected a list of fills for each prefix.")
        if not len(prefixes) == len(suffixes) == len(candidates):
            raise ValueError(
                f"{len(prefixes)} prefixes, {len(suffixes)} suffixes and {len(candidates)} lists of fills were given; "
                "expected as many of each."
            )
        rows = [
            row
            for text, (before, given, after) in enumerate(zip(prefixes, candidates, suffixes, strict=True))
            for row in self._scored_rows(
                text, before, given, after, heal=heal, split_special_tokens=split_special_tokens
            )
        ]
        self._probe_attention()
        scored: list[list[Fill]] = [[Fill(fill) for fill in given] for given in candidates]
        budget = self._batch_tokens(batch_tokens, None)
        batches = plan_batches([row.length for row in rows], max_tokens=budget)
        hide = hides_bar(show_progress_bar, len(batches), least=PROGRESS_FROM_BATCHES)
        with tqdm(total=len(rows), desc="Scoring", unit="row", disable=hide) as bar:
            for batch in batches:
                with self._evaluating():
                    with self._adapters_for("infill"):
                        by_row = self._score_rows([rows[index] for index in batch])
                for index, logprobs in zip(batch, by_row, strict=True):
                    row = rows[index]
                    for (number, ids), own in zip(row.fills.items(), logprobs, strict=True):
                        fill = scored[row.text][number]
                        fill.token_ids, fill.logprobs = ids, own
                bar.update(len(batch))
        return scored[0] if single else scored

    def _scored_rows(
        self,
        text: int,
        prefix: str,
        fills: Sequence[str],
        suffix: str,
        *,
        heal: Healing | None = "space",
        split_special_tokens: bool = True,
    ) -> list[_ScoredRow]:
        """The fills of one text, those of equal length in one row."""
        if isinstance(fills, str) or not isinstance(fills, Sequence):
            raise ValueError(f"The fills of text {text} are {fills!r:.40}; expected a list of strings.")
        if not len(fills):
            raise ValueError(f"Text {text} has no fill to score. Pass at least one.")
        read = partial(fill_ids, self.tokenizer, prefix=prefix, split_special_tokens=split_special_tokens)
        lay = partial(
            lay_out,
            self.tokenizer,
            [prefix, suffix],
            context_length=self.config.max_position_embeddings,
            heal=heal,
            split_special_tokens=split_special_tokens,
        )
        (seam,) = lay(gap_lengths=[1]).seams
        # A model that was taught to end spans knows gaps of multiples alone, and is asked in the next one; gaps whose
        # tokens are healed are of exact length, as in decoding.
        multiple = 1 if heal == "token" else self.magnet_settings.end_of_span or 1
        by_length: dict[int, dict[int, list[int]]] = {}
        for number, fill in enumerate(check_texts(fills, name="fills")):
            ids = read(seam.start + fill + seam.end)
            if not fill:
                raise ValueError(f"`fills[{number}]` of text {text} is empty; a fill has at least one token.")
            by_length.setdefault(round_up(len(ids), multiple), {})[number] = ids
        return [_ScoredRow(text, lay(gap_lengths=[length]), own) for length, own in by_length.items()]

    def _score_rows(self, rows: Sequence[_ScoredRow]) -> list[list[list[float]]]:
        """Per row and fill, each token's log-probability; one forward."""
        ids, positions, segments = [], [], []
        targets: list[tuple[int, int, int, int]] = []  # number of the fill, row, place, token
        for row_number, row in enumerate(rows):
            layout = row.layout
            row_ids, row_positions = list(layout.token_ids), list(layout.positions)
            row_segments = [0] * len(row_ids)
            for segment, fill in enumerate(row.fills.values(), start=1):
                # The output before a token predicts it; in front of a fill stands the context.
                places = [layout.predictors[0], *range(len(row_ids), len(row_ids) + len(fill) - 1)]
                targets += [(segment - 1, row_number, place, token) for place, token in zip(places, fill, strict=True)]
                row_ids += fill
                row_positions += range(layout.gap_starts[0], layout.gap_starts[0] + len(fill))
                row_segments += [segment] * len(fill)
            ids.append(row_ids)
            positions.append(row_positions)
            segments.append(row_segments)
        batch = self._infill_batch(ids, positions, segments)
        scores = self._target_logprobs(batch, targets, mode="infill")
        if any(map(math.isnan, scores)):
            raise ValueError("The model gave NaN logits for a token of a fill. Check its weights and dtype.")
        logprobs = iter(scores)
        return [[[next(logprobs) for _ in fill] for fill in row.fills.values()] for row in rows]


__all__ = ["ScoringMixin"]
