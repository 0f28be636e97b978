"""Define the systems of Table 5, each of which fills the blank of a story with one sentence.

The systems are a base model that continues the prefix (unidirectional), the same model with the paper's prompts,
without and with solved examples, and models that infill. All write greedily up to the same number of tokens, and all
fills are cut after their first sentence by the same rule. The paper does not state the length of MAGNET's fills. Here
they end with their first sentence (`stop_at_sentence_end`), not at the best of several lengths (`num_tokens="auto"`),
because such fills can stop in the middle of a sentence.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from examples.command_line import raise_complaints
from examples.evaluate.parts.prompted_infilling import (
    FEW_SHOT_FAMILIES,
    PROMPT_FAMILIES,
    PromptedInfiller,
    PromptFamily,
    SolvedBlank,
)
from modeling_magnet.tokenization_magnet import bos_ids, read_texts
from trainer.files import append_rows, resume_rows
from trainer.metrics import split_sentences

BASE, MAGNET = "base", "MAGNET"
UNIDIRECTIONAL = "unidirectional"
PROMPTS: tuple[PromptFamily, ...] = tuple(family for family in PROMPT_FAMILIES if family != "left_to_right")
PROMPTS_WITH_SHOTS: tuple[PromptFamily, ...] = tuple(family for family in PROMPTS if family in FEW_SHOT_FAMILIES)
# Solved examples in the paper's prompts.
SHOTS = 5
_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


class StoryBlank(NamedTuple):
    """A story without one of its sentences; `prefix`, a space, `truth` and `suffix` join to the story."""

    prefix: str
    truth: str
    suffix: str


@dataclass(frozen=True)
class FillSystem:
    """Define one row of Table 5."""

    name: str
    model: str
    family: PromptFamily | None = None
    shots: int = 0

    def settings(self, *, max_new_tokens: int) -> dict[str, Any]:
        """Return all settings that affect the fills, except weights, stories and examples."""
        how = {"stop_at_sentence_end": True} if self.family is None else {"family": self.family, "shots": self.shots}
        return {**how, "max_new_tokens": max_new_tokens, "do_sample": False}

    def overflow(
        self, model: Any, blanks: Sequence[StoryBlank], examples: Sequence[SolvedBlank], *, new_tokens: int
    ) -> int:
        """Return by how many tokens the longest prompt and its answer exceed the context; 0 if all fit."""
        if self.family is None:
            return 0  # `infill` itself refuses texts that are too long
        infiller = self._infiller(model, examples)
        texts = [infiller.prompt(blank.prefix, blank.suffix) for blank in blanks]
        rows = read_texts(model.tokenizer, texts).input_ids
        longest = len(bos_ids(model.tokenizer)) + max(map(len, rows), default=0) + new_tokens
        return max(longest - int(model.config.max_position_embeddings), 0)

    def fill(
        self,
        model: Any,
        blanks: Sequence[StoryBlank],
        *,
        examples: Sequence[SolvedBlank],
        max_new_tokens: int,
        batch_size: int,
    ) -> list[str]:
        """Write one sentence for each blank."""
        prefixes, suffixes = [blank.prefix for blank in blanks], [blank.suffix for blank in blanks]
        options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "do_sample": False}
        if self.family is None:
            written = model.infill(prefixes, suffixes, stop_at_sentence_end=True, **options)
        else:
            written = self._infiller(model, examples).infill(prefixes, suffixes, **options)
        return [first_sentence(text) for text in written]

    def _infiller(self, model: Any, examples: Sequence[SolvedBlank]) -> PromptedInfiller:
        """Wrap the causal model that this system prompts."""
        assert self.family is not None
        return PromptedInfiller(model, model.tokenizer, family=self.family, examples=examples[: self.shots])


def fill_systems(*, shots: int = SHOTS, more: Iterable[str] = ()) -> list[FillSystem]:
    """Return the rows of Table 5 in order.

    Source: Khosla et al. 2025, Table 5.
    """
    count = _NUMBERS.get(shots, str(shots))
    return [
        FillSystem(UNIDIRECTIONAL, BASE, "left_to_right"),
        *[FillSystem(f"zero-shot, {family}", BASE, family) for family in PROMPTS],
        *[FillSystem(f"{count}-shot, {family}", BASE, family, shots) for family in PROMPTS_WITH_SHOTS if shots],
        *[FillSystem(name, name) for name in (MAGNET, *more)],
    ]


def draw_blanks(
    stories: Sequence[Sequence[str]], *, number: int, shots: int, seed: int
) -> tuple[list[StoryBlank], list[SolvedBlank]]:
    """Remove a random middle sentence from drawn stories; draw solved examples from other stories."""
    distinct = list(dict.fromkeys(tuple(story) for story in stories if len(story) > 2))
    if len(distinct) < number + shots:
        raise ValueError(
            f"There are {len(distinct)} different stories; {number} to fill and {shots} solved examples were asked "
            "for. Ask for fewer, or name more stories."
        )
    draw = np.random.default_rng(seed)
    drawn = [distinct[int(index)] for index in draw.permutation(len(distinct))[: number + shots]]
    blanks = []
    for story in drawn:
        place = int(draw.integers(1, len(story) - 1))
        blanks.append(StoryBlank(" ".join(story[:place]), story[place], " " + " ".join(story[place + 1 :])))
    return blanks[:number], [SolvedBlank(*blank) for blank in blanks[number:]]


def first_sentence(text: str) -> str:
    """Return the first sentence of a text on one line; the whole text if no sentence ends.

    Example:
        >>> first_sentence(' He fell.  "Why?" she')
        'He fell.'
    """
    return " ".join(next(iter(split_sentences(text)), "").split())


def fill_all(
    systems: Sequence[FillSystem],
    blanks: Sequence[StoryBlank],
    examples: Sequence[SolvedBlank],
    *,
    folder: Path,
    identities: Mapping[str, Mapping[str, Any]],
    open_model: Callable[[str], Any],
    options: Mapping[str, Any],
) -> dict[str, list[str]]:
    """Write the fills that are not on disk yet."""
    digest = hashlib.sha256(json.dumps([blanks, examples]).encode()).hexdigest()[:16]
    files = {system.name: folder / f"{quote(system.name, safe=' ,')}.jsonl" for system in systems}
    fills: dict[str, list[str]] = {}
    for system in systems:
        own = system.settings(max_new_tokens=options["max_new_tokens"])
        settings = {**options, **own, "model": identities[system.model], "texts": digest}
        fills[system.name] = [row["fill"] for row in resume_rows(files[system.name], settings=settings)]
    size = options["batch_size"]
    with tqdm(total=len(systems) * len(blanks), desc="Filling", unit="fill", file=sys.stderr) as bar:
        bar.update(sum(map(len, fills.values())))
        for role in identities:
            waiting = [system for system in systems if system.model == role and len(fills[system.name]) < len(blanks)]
            model = open_model(role) if waiting else None
            _check_lengths(model, waiting, blanks, examples, new_tokens=options["max_new_tokens"])
            for system in waiting:
                bar.set_postfix_str(system.name)
                written = fills[system.name]
                while len(written) < len(blanks):
                    # Batches begin at multiples of their size, so that a resumed run writes the same fills.
                    first = len(written) // size * size
                    batch = blanks[first : first + size]
                    new = system.fill(
                        model, batch, examples=examples, max_new_tokens=options["max_new_tokens"], batch_size=size
                    )[len(written) - first :]
                    append_rows(files[system.name], [{"fill": fill} for fill in new])
                    written += new
                    bar.update(len(new))
    return fills


def _check_lengths(
    model: Any,
    systems: Sequence[FillSystem],
    blanks: Sequence[StoryBlank],
    examples: Sequence[SolvedBlank],
    *,
    new_tokens: int,
) -> None:
    """Refuse prompts that the model cannot read, before anything is written."""
    over = {system.name: system.overflow(model, blanks, examples, new_tokens=new_tokens) for system in systems}
    raise_complaints(
        [
            f"The longest prompt of {name!r} exceeds the model's context by {tokens} tokens. Lower `--shots`, or name "
            "the others in `--systems`."
            for name, tokens in over.items()
            if tokens
        ]
    )
