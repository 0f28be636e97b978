"""Fill gaps: prefill the context once, then let all gaps of all texts advance together, one token a step.

Exact, because context states never depend on a span and spans never see each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from transformers import GenerationConfig

from .batching_magnet import pad_token_rows
from .checkpoint_magnet import CheckpointMixin
from .gaps_magnet import GappedText, decode_fill, lay_out
from .sampling_magnet import TokenChooser, merge_generation_config
from .texts_magnet import check_texts


@dataclass
class InfillOutput:
    """What `infill` and `infill_blanks` return with `return_dict_in_generate=True`.

    Args:
        fills (`list[list[str]]`): Per text, the fill of each gap.
        token_ids (`list[list[list[int]]]`): Per text and gap, its tokens.
        logprobs (`list[list[list[float]]]`): Per text and gap, each token's log-probability in nats under the
            model's own distribution (before temperature and truncation).
    """

    fills: list[list[str]]
    token_ids: list[list[list[int]]]
    logprobs: list[list[list[float]]]


class InfillingMixin(CheckpointMixin):
    """`infill` and `infill_blanks`."""

    def infill(
        self,
        prefix: str | Sequence[str],
        suffix: str | Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int = 32,
        generation_config: GenerationConfig | None = None,
        return_dict_in_generate: bool = False,
        **generation_arguments: Any,
    ) -> str | list[str] | InfillOutput:
        """Write what stands between a prefix and a suffix.

        Args:
            prefix (`str` or `list[str]`): Text in front of the gap; may be empty.
            suffix (`str` or `list[str]`): Text behind it, joined without an added space; may be empty.
            max_new_tokens (`int`): Tokens of the fill, exactly: the gap keeps that many positions free.
            batch_size (`int`, defaults to 32): Texts decoded together.
            generation_config (`GenerationConfig`, *optional*): Defaults to the model's own.
            return_dict_in_generate (`bool`, defaults to `False`): Return an [`InfillOutput`] instead of text.
            generation_arguments: `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, as `generate` takes them.

        Returns:
            `str` for strings, `list[str]` for lists: the fill alone, so that `prefix + fill + suffix` is the text.

        Raises:
            ValueError: no text around the gap, lists of different lengths, a text beyond the context, or an argument
                that filling does not have.

        Source: Khosla et al. 2025, section 3.3.
        """
        single = isinstance(prefix, str) and isinstance(suffix, str)
        if not single and (isinstance(prefix, str) or isinstance(suffix, str)):
            raise ValueError(
                f"`prefix` is {type(prefix).__name__} and `suffix` {type(suffix).__name__}. "
                "Pass two strings, or two lists of the same length."
            )
        prefixes = check_texts([prefix] if single else prefix, name="prefix")
        suffixes = check_texts([suffix] if single else suffix, name="suffix")
        if len(prefixes) != len(suffixes):
            raise ValueError(f"{len(prefixes)} prefixes and {len(suffixes)} suffixes were given; expected as many.")
        output = self._fill(
            [list(pair) for pair in zip(prefixes, suffixes, strict=True)],
            gap_lengths=[[max_new_tokens]] * len(prefixes),
            batch_size=batch_size,
            config=merge_generation_config(generation_config or self.generation_config, generation_arguments),
        )
        if return_dict_in_generate:
            return output
        fills = [fill for (fill,) in output.fills]
        return fills[0] if single else fills

    def infill_blanks(
        self,
        text: str | Sequence[str],
        *,
        max_new_tokens: int | Sequence[int],
        blank: str = "[blank]",
        batch_size: int = 32,
        generation_config: GenerationConfig | None = None,
        return_dict_in_generate: bool = False,
        **generation_arguments: Any,
    ) -> list[str] | list[list[str]] | InfillOutput:
        """Fill every blank of a text, all of them in one decoding loop.

        Args:
            text (`str` or `list[str]`): Texts in which `blank` marks the gaps.
            max_new_tokens (`int` or `list[int]`): Tokens of each fill, one number for all or one for each blank.
            blank (`str`, defaults to `"[blank]"`): The mark.
            batch_size (`int`, defaults to 32): Texts decoded together.
            generation_config (`GenerationConfig`, *optional*): Defaults to the model's own.
            return_dict_in_generate (`bool`, defaults to `False`): Return an [`InfillOutput`] instead of text.
            generation_arguments: As in `infill`.

        Returns:
            `list[str]` for a string, `list[list[str]]` for a list: the fills in the order of the blanks.

        Raises:
            ValueError: a text without a blank, neighbouring blanks, or as in `infill`.
        """
        single = isinstance(text, str)
        texts = check_texts([text] if single else text, name="text")
        if not blank:
            raise ValueError("`blank` is empty; expected the mark of a gap, such as '[blank]'.")
        pieces = [one.split(blank) for one in texts]
        gap_lengths: list[list[int]] = []
        for index, parts in enumerate(pieces):
            blanks = len(parts) - 1
            if blanks == 0:
                raise ValueError(f"Text {index} has no blank {blank!r}. Mark the gap, or pass `blank=`.")
            lengths = list(max_new_tokens) if isinstance(max_new_tokens, Sequence) else [max_new_tokens] * blanks
            if len(lengths) != blanks:
                raise ValueError(f"`max_new_tokens` has {len(lengths)} numbers; text {index} has {blanks} blanks.")
            gap_lengths.append(lengths)
        output = self._fill(
            pieces,
            gap_lengths=gap_lengths,
            batch_size=batch_size,
            config=merge_generation_config(generation_config or self.generation_config, generation_arguments),
        )
        if return_dict_in_generate:
            return output
        return output.fills[0] if single else output.fills

    @torch.no_grad()
    def _fill(
        self,
        pieces: Sequence[Sequence[str]],
        *,
        gap_lengths: Sequence[Sequence[int]],
        batch_size: int,
        config: GenerationConfig,
    ) -> InfillOutput:
        """Lay out all texts, decode them in batches of similar length, and write the fills as text."""
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; expected at least 1.")
        tokenizer = self.tokenizer
        texts = [
            lay_out(tokenizer, parts, gap_lengths=lengths, context_length=self.config.max_position_embeddings)
            for parts, lengths in zip(pieces, gap_lengths, strict=True)
        ]
        first_gap = list(accumulate(map(len, gap_lengths), initial=0))  # each text's first among all gaps
        chooser = TokenChooser(
            config,
            gap_lengths=[length for text in texts for length in text.gap_lengths],
            barred_ids=self._ids_outside_text(),
        )
        output = InfillOutput(fills=[[] for _ in texts], token_ids=[[] for _ in texts], logprobs=[[] for _ in texts])
        longest_first = sorted(range(len(texts)), key=lambda index: -texts[index].length)
        for start in range(0, len(texts), batch_size):
            chosen = longest_first[start : start + batch_size]
            tokens, logprobs = self._decode_gaps(
                [texts[index] for index in chosen], chooser, [first_gap[index] for index in chosen]
            )
            for row, index in enumerate(chosen):
                for gap, length in enumerate(texts[index].gap_lengths):
                    fill = tokens[row, gap, :length].tolist()
                    before = texts[index].token_ids[: texts[index].predictors[gap] + 1]
                    special = tokenizer.bos_token_id
                    output.fills[index].append(decode_fill(tokenizer, [t for t in before if t != special], fill))
                    output.token_ids[index].append(fill)
                    output.logprobs[index].append(logprobs[row, gap, :length].tolist())
        return output

    def _decode_gaps(
        self, texts: Sequence[GappedText], chooser: TokenChooser, first_gap: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and log-probabilities `(B, K, T)` of the gaps of a batch; K gaps at most, T tokens at most.

        The context is prefilled once. Then step t feeds token t of every gap that goes on: K queries a row, whose
        keys are the context and their own gap's past.
        """
        device = self.device
        batch = pad_token_rows([text.token_ids for text in texts], pad_token_id=0)
        positions = pad_token_rows([text.positions for text in texts], pad_token_id=0)["input_ids"]
        lengths = pad_token_rows([text.gap_lengths for text in texts], pad_token_id=0)["input_ids"].to(
            device
        )  # (B, K)
        starts = pad_token_rows([text.gap_starts for text in texts], pad_token_id=0)["input_ids"].to(device)
        (num_rows, context), (num_slots, num_steps) = batch["input_ids"].shape, (lengths.shape[1], int(lengths.max()))
        predicts = torch.zeros(num_rows, context, dtype=torch.bool)
        for row, text in enumerate(texts):
            predicts[row, text.predictors] = True
        outputs = self(
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            position_ids=positions.to(device),
            mode="bidirectional",
            use_cache=True,
            logits_to_keep=predicts.to(device),
        )
        # Ids and padding of everything the cache will hold: the context, then one column per slot and step.
        slots = torch.arange(1, num_slots + 1, device=device)
        steps = torch.arange(num_steps, device=device)
        fed = (steps[:, None] + 1 < lengths[:, None, :]).flatten(1)  # (B, T * K): the last token is never fed
        segment_ids = torch.cat(
            [torch.zeros_like(batch["input_ids"]).to(device), slots.repeat(num_rows, num_steps)], 1
        )
        attention_mask = torch.cat([batch["attention_mask"].to(device), fed.long()], 1)
        tokens = torch.zeros(num_rows, num_slots, num_steps, dtype=torch.long, device=device)
        logprobs = torch.zeros(num_rows, num_slots, num_steps, device=device)
        for step in range(num_steps):
            active = lengths > step  # (B, K), row-major like the logits
            gaps = [first_gap[row] + slot for row, slot in active.nonzero().tolist()]
            tokens[:, :, step][active], logprobs[:, :, step][active] = chooser.choose(
                outputs.logits, gaps=gaps, step=step
            )
            if step + 1 == num_steps:
                break
            seen = context + (step + 1) * num_slots
            outputs = self(
                input_ids=tokens[:, :, step],
                attention_mask=attention_mask[:, :seen],
                position_ids=starts + step,
                past_key_values=outputs.past_key_values,
                use_cache=True,
                mode="infill",
                segment_ids=segment_ids[:, :seen],
                logits_to_keep=lengths > step + 1,
            )
        return tokens, logprobs

    def _ids_outside_text(self) -> list[int]:
        """EOS and every other special token: a fill has none of them, whatever the model says."""
        ids = set(self.tokenizer.all_special_ids)
        for value in (self.generation_config.eos_token_id, self.config.eos_token_id):
            ids.update(value if isinstance(value, list) else [] if value is None else [value])
        return sorted(token_id for token_id in ids if token_id < self.config.vocab_size)


__all__ = ["InfillOutput", "InfillingMixin"]
