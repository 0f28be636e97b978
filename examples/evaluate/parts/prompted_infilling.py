"""Infill in causal mode as a baseline, by continuing the left context or by the paper's prompts.

`PromptedInfiller` has the methods `infill` and `score_infill` of MAGNET models.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_magnet.batching_magnet import PROGRESS_FROM_BATCHES, plan_batches
from modeling_magnet.infilling_magnet import check_pairs
from modeling_magnet.losses_magnet import IGNORE_INDEX
from modeling_magnet.spans_magnet import Fill, decode_fill, fill_ids
from modeling_magnet.tokenization_magnet import bos_ids, check_texts, pad_token_rows, special_ids, text_ids
from trainer.metrics import split_sentences

PromptFamily = Literal["left_to_right", "blank", "contextual", "prefix_suffix", "line_by_line"]
PROMPT_FAMILIES: tuple[PromptFamily, ...] = get_args(PromptFamily)
# Families with few-shot examples in the paper.
FEW_SHOT_FAMILIES = ("blank", "prefix_suffix", "line_by_line")
SCORED_TOKENS = 2048  # limit of a scoring forward


class SolvedBlank(NamedTuple):
    """A text with its fill, as a few-shot example."""

    prefix: str
    fill: str
    suffix: str


def _blank(prefix: str, suffix: str) -> str:
    return (
        f"Generate the missing line represented by _ in the given text: {_ended(_join(prefix, '_', suffix))}\n"
        "Generate a single sentence.\nThe missing line is:"
    )


def _contextual(prefix: str, suffix: str) -> str:
    return (
        f'Fill in the missing sentence between "{prefix.strip()}" and "{suffix.strip()}". Generate only one sentence. '
        "The missing sentence is:"
    )


def _prefix_suffix(prefix: str, suffix: str) -> str:
    return (
        "Given the prefix and the suffix, generate the middle sentence.\n"
        f"Prefix: {_ended(prefix)}\nSuffix: {_ended(suffix)}\nGenerate only one sentence.\nMiddle:"
    )


def _line_by_line(prefix: str, suffix: str) -> str:
    before, after = split_sentences(prefix), split_sentences(suffix)
    missing = len(before) + 1
    lines = [*before, "[Missing Line]", *after]
    count = {5: "five"}.get(len(lines), str(len(lines)))
    numbered = "\n".join(f"Line {number}: {line}" for number, line in enumerate(lines, start=1))
    return (
        f"You have a {count}-sentence story with some missing text.\n"
        f"Here is the context for each line, with the missing line indicated:\n{numbered}\n"
        "Please generate the missing line of the story. Please generate only the missing line and nothing else.\n"
        f"The missing line is: Line {missing}:"
    )


def _join(prefix: str, middle: str, suffix: str) -> str:
    return " ".join(part for part in (prefix.strip(), middle, suffix.strip()) if part)


def _ended(text: str) -> str:
    """Add the full stop of the paper's prompts, unless the text already ends a sentence."""
    text = text.strip()
    return text if not text or text.rstrip("\"'”’)]").endswith((".", "!", "?")) else f"{text}."


# The paper's prompts for one blank, as functions of the texts before and after it.
PROMPTS: dict[str, Callable[[str, str], str]] = {
    "blank": _blank,
    "contextual": _contextual,
    "prefix_suffix": _prefix_suffix,
    "line_by_line": _line_by_line,
}


class PromptedInfiller:
    """Infill and score fills with a causal model.

    Args:
        model (`PreTrainedModel`): A MAGNET model or a plain decoder opened as one; it is only used in causal mode.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        family (`str`): `"left_to_right"` continues the prefix and ignores the suffix; the others are prompts.
        examples (`Sequence[SolvedBlank]`): Few-shot examples before the prompt; five in the paper.

    Source: Khosla et al. 2025, Table 5 and its prompts.

    Example:
        >>> print(PROMPTS["prefix_suffix"]("Tom fell.", "He cried."))
        Given the prefix and the suffix, generate the middle sentence.
        Prefix: Tom fell.
        Suffix: He cried.
        Generate only one sentence.
        Middle:
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        family: PromptFamily = "left_to_right",
        examples: Sequence[SolvedBlank] = (),
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.family = family
        self.examples = list(examples)

    @torch.no_grad()
    def infill(
        self,
        prefix: str | Sequence[str],
        suffix: str | Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int = 16,
        **generation_arguments: Any,
    ) -> Any:
        """Fill blanks with exactly `max_new_tokens` for `left_to_right`, or with one line of at most that for prompts.

        Args:
            prefix (`str` or `list[str]`): Text before the blank.
            suffix (`str` or `list[str]`): Text after it.
            max_new_tokens (`int`): Limit of the tokens of a fill.
            batch_size (`int`, defaults to 16): Texts decoded together.
            generation_arguments: Passed to `generate`.

        Returns:
            `str` for strings, `list[str]` for lists.
        """
        single, prefixes, suffixes = check_pairs(prefix, suffix)
        prompts = [self.prompt(*pair) for pair in zip(prefixes, suffixes, strict=True)]
        # A space at the end would be a token of its own; in texts, a word's token contains the space before it.
        rows = [bos_ids(self.tokenizer) + text_ids(self.tokenizer, prompt.rstrip(" ")) for prompt in prompts]
        pad = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        minimum = {"min_new_tokens": max_new_tokens} if self.family == "left_to_right" else {}
        special = special_ids(self.tokenizer)
        fills: list[str] = []
        starts = range(0, len(rows), batch_size)
        for start in tqdm(starts, desc="Filling", unit="batch", disable=len(starts) < PROGRESS_FROM_BATCHES):
            batch = pad_token_rows(rows[start : start + batch_size], pad_token_id=pad, padding_side="left")
            output = self.model.generate(
                **{name: tensor.to(self.model.device) for name, tensor in batch.items()},
                **{"do_sample": False, **generation_arguments},
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                **minimum,
            )
            new = output[:, batch["input_ids"].shape[1] :].tolist()
            for front, ids in zip(rows[start : start + batch_size], new, strict=True):
                before, fill = ([token for token in part if token not in special] for part in (front, ids))
                fills.append(decode_fill(self.tokenizer, before, fill))
        if self.family == "left_to_right":
            pairs = zip(fills, prefixes, strict=True)  # the prefix has the space that its prompt lacks
            fills = [fill.removeprefix(" ") if text.endswith(" ") else fill for fill, text in pairs]
        else:
            lines = [next(iter(fill.strip().splitlines()), "").strip() for fill in fills]
            joined = zip(lines, prefixes, strict=True)
            fills = [f" {line}" if text and not text[-1].isspace() else line for line, text in joined]
        return fills[0] if single else fills

    @torch.no_grad()
    def score_infill(
        self,
        prefix: str | Sequence[str],
        fills: Sequence[str] | Sequence[Sequence[str]],
        suffix: str | Sequence[str],
        *,
        with_suffix: bool = False,
    ) -> Any:
        """Score fills by their log-probabilities after the prompt.

        Args:
            prefix (`str` or `list[str]`): Text before the blank.
            fills (`list[str]`, or a list of such lists): The candidates.
            suffix (`str` or `list[str]`): Text after it.
            with_suffix (`bool`, defaults to `False`): Also score the suffix after each fill, the best use that a
                causal model can make of it. For `left_to_right` only.

        Returns:
            `list[Fill]`, or a list of them for lists.
        """
        single, prefixes, suffixes = check_pairs(prefix, suffix)
        candidates: Any = [fills] if single else fills
        if with_suffix and self.family != "left_to_right":
            raise ValueError(
                f"`with_suffix` is true, but the prompt of {self.family!r} contains the suffix. Omit it, or use the "
                "family 'left_to_right'."
            )
        rows: list[tuple[list[int], list[int]]] = []
        for before, fills_of_text, after in zip(prefixes, candidates, suffixes, strict=True):
            prompt = self.prompt(before, after)
            front = bos_ids(self.tokenizer) + text_ids(self.tokenizer, prompt.rstrip(" "))
            for fill in check_texts(fills_of_text, name="fills"):
                text = f" {fill.strip()}" if prompt.endswith(" ") or self.family != "left_to_right" else fill
                rows.append((front, fill_ids(self.tokenizer, text + after if with_suffix else text, prefix=prompt)))
        logprobs: list[list[float]] = [[] for _ in rows]
        batches = plan_batches([len(front) + len(target) for front, target in rows], max_tokens=SCORED_TOKENS)
        for batch in tqdm(batches, desc="Scoring", unit="batch", disable=len(batches) < PROGRESS_FROM_BATCHES):
            for index, values in zip(batch, self._score([rows[index] for index in batch]), strict=True):
                logprobs[index] = values
        scored = iter(zip((target for _, target in rows), logprobs, strict=True))
        output = [[Fill(fill, *next(scored)) for fill in fills_of_text] for fills_of_text in candidates]
        return output[0] if single else output

    def prompt(self, prefix: str, suffix: str) -> str:
        """Return the text that the model continues for one blank, with the examples before it."""
        if self.family == "left_to_right":
            return prefix
        prompt = PROMPTS[self.family]
        solved = [f"{prompt(example.prefix, example.suffix)} {example.fill.strip()}" for example in self.examples]
        return "\n\n".join([*solved, prompt(prefix, suffix)])

    def _score(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Return the log-probabilities of the second part of each row given the first, from one forward."""
        batch = pad_token_rows([front + target for front, target in rows], pad_token_id=0)
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        target_ids = batch["input_ids"].roll(-1, dims=1)
        for row, (front, target) in enumerate(rows):
            target_ids[row, : len(front) - 1] = IGNORE_INDEX
            target_ids[row, len(front) + len(target) - 1 :] = IGNORE_INDEX
        logprobs = -self.model(**batch, mode="causal", target_ids=target_ids, use_cache=False).token_losses
        return [
            logprobs[row, len(front) - 1 : len(front) + len(target) - 1].tolist()
            for row, (front, target) in enumerate(rows)
        ]
