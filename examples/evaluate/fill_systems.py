"""The systems of Table 5, each of which puts one sentence into the gap of a story.

A base model that goes on from the prefix (unidirectional), the same model asked by the paper's prompts, without and
with solved examples, and models that infill. All write greedily up to the same number of tokens, and all fills are cut
behind their first sentence by the same rule. The paper does not say how long MAGNET's fills may be. Here they end with
their first sentence (`stop_at_sentence_end`) and not at the best of several lengths (`num_tokens="auto"`), whose fills
can stop amid a sentence.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from modeling_magnet.tokenization_magnet import front_tokens, read_texts
from trainer.metrics import split_sentences
from trainer.prompted_infilling import FAMILIES, FEW_SHOT_FAMILIES, Family, PromptedInfiller, SolvedGap

BASE, MAGNET = "base", "MAGNET"
UNIDIRECTIONAL = "unidirectional"
PROMPTS: tuple[Family, ...] = tuple(family for family in FAMILIES if family != "left_to_right")
PROMPTS_WITH_SHOTS: tuple[Family, ...] = tuple(family for family in PROMPTS if family in FEW_SHOT_FAMILIES)
# Solved examples of the paper's prompts.
SHOTS = 5
_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


class StoryGap(NamedTuple):
    """A story without one of its sentences; `prefix`, a space, `truth` and `suffix` are the story."""

    prefix: str
    truth: str
    suffix: str


@dataclass(frozen=True)
class FillSystem:
    """One row of Table 5.

    Args:
        name (`str`): Of the row.
        model (`str`): Which model writes: `"base"`, `"MAGNET"` or the name of a further one.
        family (`str`, *optional*): How a causal model is asked, see `PromptedInfiller`; `None` for `infill`.
        shots (`int`, defaults to 0): Solved examples in front of the prompt.
    """

    name: str
    model: str
    family: Family | None = None
    shots: int = 0

    def settings(self, *, max_new_tokens: int) -> dict[str, Any]:
        """All that changes what it writes, but for weights, stories and examples."""
        how = {"stop_at_sentence_end": True} if self.family is None else {"family": self.family, "shots": self.shots}
        return {**how, "max_new_tokens": max_new_tokens, "do_sample": False}

    def overflow(self, model: Any, gaps: Sequence[StoryGap], examples: Sequence[SolvedGap], *, room: int) -> int:
        """Tokens by which the longest prompt and its answer exceed the model's context; 0 where all of them fit.

        Args:
            model (`PreTrainedModel`): With its `tokenizer`.
            gaps (`Sequence[StoryGap]`): The stories.
            examples (`Sequence[SolvedGap]`): Solved ones; as many as its shots are used.
            room (`int`): Tokens of an answer.
        """
        if self.family is None:
            return 0  # `infill` refuses by itself what is too long
        asked = self._asked(model, examples)
        texts = [asked.prompt(gap.prefix, gap.suffix) for gap in gaps]
        rows = read_texts(model.tokenizer, texts).input_ids
        longest = len(front_tokens(model.tokenizer)) + max(map(len, rows), default=0) + room
        return max(longest - int(model.config.max_position_embeddings), 0)

    def fill(
        self,
        model: Any,
        gaps: Sequence[StoryGap],
        *,
        examples: Sequence[SolvedGap],
        max_new_tokens: int,
        batch_size: int,
    ) -> list[str]:
        """One sentence for each gap.

        Args:
            model (`PreTrainedModel`): With its `tokenizer`; of our class where `family` is `None`.
            gaps (`Sequence[StoryGap]`): The stories.
            examples (`Sequence[SolvedGap]`): Solved ones; as many as its shots are used.
            max_new_tokens (`int`): Tokens at most.
            batch_size (`int`): Stories filled together.

        Returns:
            `list[str]`: Without white space around them; empty where nothing was written.
        """
        prefixes, suffixes = [gap.prefix for gap in gaps], [gap.suffix for gap in gaps]
        options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "do_sample": False}
        if self.family is None:
            written = model.infill(prefixes, suffixes, stop_at_sentence_end=True, **options)
        else:
            written = self._asked(model, examples).infill(prefixes, suffixes, **options)
        return [first_sentence(text) for text in written]

    def _asked(self, model: Any, examples: Sequence[SolvedGap]) -> PromptedInfiller:
        """A causal model that is asked as this system asks."""
        assert self.family is not None
        return PromptedInfiller(model, model.tokenizer, family=self.family, examples=examples[: self.shots])


def fill_systems(*, shots: int = SHOTS, more: Iterable[str] = ()) -> list[FillSystem]:
    """The rows of Table 5 in its order.

    Args:
        shots (`int`, defaults to 5): Solved examples in front of the prompts that take some.
        more (`Iterable[str]`): Names of further models that infill.

    Returns:
        `list[FillSystem]`: Unidirectional, four prompts without examples, three with, MAGNET, and the further ones.

    Source: Khosla et al. 2025, Table 5.
    """
    count = _NUMBERS.get(shots, str(shots))
    return [
        FillSystem(UNIDIRECTIONAL, BASE, "left_to_right"),
        *[FillSystem(f"zero-shot, {family}", BASE, family) for family in PROMPTS],
        *[FillSystem(f"{count}-shot, {family}", BASE, family, shots) for family in PROMPTS_WITH_SHOTS if shots],
        *[FillSystem(name, name) for name in (MAGNET, *more)],
    ]


def draw_gaps(
    stories: Sequence[Sequence[str]], *, number: int, shots: int, seed: int
) -> tuple[list[StoryGap], list[SolvedGap]]:
    """Stories without a random middle sentence, and solved ones of other stories for the prompts.

    Args:
        stories (`Sequence[Sequence[str]]`): Sentences of each.
        number (`int`): Stories to fill.
        shots (`int`): Solved ones.
        seed (`int`): Draws stories and places.

    Returns:
        `tuple[list[StoryGap], list[SolvedGap]]`: A story that has the same text as another is drawn once.

    Raises:
        ValueError: too few stories.
    """
    distinct = list(dict.fromkeys(tuple(story) for story in stories if len(story) > 2))
    if len(distinct) < number + shots:
        raise ValueError(
            f"There are {len(distinct)} different stories; {number} to fill and {shots} solved examples were asked "
            "for. Ask for fewer, or name more stories."
        )
    draw = np.random.default_rng(seed)
    drawn = [distinct[int(index)] for index in draw.permutation(len(distinct))[: number + shots]]
    gaps = []
    for story in drawn:
        place = int(draw.integers(1, len(story) - 1))
        gaps.append(StoryGap(" ".join(story[:place]), story[place], " " + " ".join(story[place + 1 :])))
    return gaps[:number], [SolvedGap(*gap) for gap in gaps[number:]]


def first_sentence(text: str) -> str:
    """The first sentence of a text on one line; all of it where no sentence ends.

    Example:
        >>> first_sentence(' He fell.  "Why?" she')
        'He fell.'
    """
    return " ".join(next(iter(split_sentences(text)), "").split())


__all__ = [
    "BASE",
    "MAGNET",
    "PROMPTS",
    "SHOTS",
    "UNIDIRECTIONAL",
    "FillSystem",
    "StoryGap",
    "draw_gaps",
    "fill_systems",
    "first_sentence",
]
