"""The table of the quickstart: a row for each question, a column for each model, and a few fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from examples.toy.exam import Exam, fact_accuracy
from examples.toy.language import MISSING, THINGS

BASE, CONTROL, NOT_ADAPTED = "base", "trained on", "not adapted"
MAGNET, OTHER_SUFFIX, CHANCE, LIMIT = "MAGNET", "other suffix", "chance", "best possible"
COLUMNS = (BASE, CONTROL, NOT_ADAPTED, MAGNET, OTHER_SUFFIX, CHANCE, LIMIT)

LEGEND = """\
trained on: the base, left to right, for as many steps more as MAGNET took; not adapted: the base's weights in MAGNET's
masks; other suffix: MAGNET shown the end of another story; best possible: what the drawing of the stories allows."""

Table = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Models:
    """Who is asked, all in evaluation mode."""

    base: Any
    control: Any
    not_adapted: Any
    magnet: Any


Questions = dict[str, dict[str, Callable[[], float]]]


def _about_fills(exam: Exam, models: Models) -> Questions:
    """Return the questions about the missing sentences, by row and column."""
    others = exam.other_suffixes
    # Nothing to the left tells the thing, and nothing anywhere the wording of the missing sentence.
    wordings, things = len(MISSING), len(THINGS)

    def facts(fills: list[str]) -> float:
        return fact_accuracy(fills, exam.stories)

    return {
        "hidden fact, from the left": {
            BASE: lambda: facts(exam.left_to_right_fills(models.base)),
            CONTROL: lambda: facts(exam.left_to_right_fills(models.control)),
            MAGNET: lambda: facts(exam.left_to_right_fills(models.magnet)),
            CHANCE: lambda: 1 / things,
            LIMIT: lambda: 1 / things,
        },
        "hidden fact, from both sides": {
            NOT_ADAPTED: lambda: facts(exam.infills(models.not_adapted)),
            MAGNET: lambda: facts(exam.infills(models.magnet)),
            OTHER_SUFFIX: lambda: facts(exam.infills(models.magnet, suffixes=others)),
            CHANCE: lambda: 1 / things,
            LIMIT: lambda: 1.0,
        },
        "hidden fact, every thing tried": {
            BASE: lambda: exam.scored_facts(models.base),
            CONTROL: lambda: exam.scored_facts(models.control),
            MAGNET: lambda: exam.scored_facts(models.magnet),
            CHANCE: lambda: 1 / things,
            LIMIT: lambda: 1.0,
        },
        "perplexity of the gap, from the left": {
            BASE: lambda: exam.missing_perplexity(models.base),
            CONTROL: lambda: exam.missing_perplexity(models.control),
            MAGNET: lambda: exam.missing_perplexity(models.magnet),
            LIMIT: lambda: (wordings * things) ** (1 / exam.gap_tokens),
        },
        "perplexity of the gap, from both sides": {
            NOT_ADAPTED: lambda: exam.missing_perplexity(models.not_adapted, mode="infill"),
            MAGNET: lambda: exam.missing_perplexity(models.magnet, mode="infill"),
            OTHER_SUFFIX: lambda: exam.missing_perplexity(models.magnet, mode="infill", suffixes=others),
            LIMIT: lambda: wordings ** (1 / exam.gap_tokens),
        },
    }


def _about_texts(exam: Exam, models: Models) -> Questions:
    """Return the questions about masked tokens, paraphrases and whole stories, by row and column."""
    mask_id = models.magnet.magnet_settings.mask_token_id

    def masked(model: Any, mode: str | None = None) -> float:
        return exam.masked_accuracy(model, mask_token_id=mask_id, mode=mode)

    return {
        "masked tokens named, from the left": {
            BASE: lambda: masked(models.base),
            CONTROL: lambda: masked(models.control),
            MAGNET: lambda: masked(models.magnet),
        },
        "masked tokens named, from both sides": {
            NOT_ADAPTED: lambda: masked(models.not_adapted, "bidirectional"),
            MAGNET: lambda: masked(models.magnet, "bidirectional"),
        },
        "paraphrase found, last token": {
            BASE: lambda: exam.plain_retrieval(models.base, pooling="last"),
            CONTROL: lambda: exam.plain_retrieval(models.control, pooling="last"),
            NOT_ADAPTED: lambda: exam.encode_retrieval(models.not_adapted),
            MAGNET: lambda: exam.encode_retrieval(models.magnet),
            CHANCE: lambda: 1 / len(exam.pairs),
        },
        "paraphrase found, mean over tokens": {
            BASE: lambda: exam.plain_retrieval(models.base, pooling="mean"),
            CONTROL: lambda: exam.plain_retrieval(models.control, pooling="mean"),
            NOT_ADAPTED: lambda: exam.plain_retrieval(models.not_adapted, pooling="mean", mode="bidirectional"),
            MAGNET: lambda: exam.plain_retrieval(models.magnet, pooling="mean", mode="bidirectional"),
            CHANCE: lambda: 1 / len(exam.pairs),
        },
        "perplexity of whole stories, causal": {
            BASE: lambda: exam.causal_perplexity(models.base),
            CONTROL: lambda: exam.causal_perplexity(models.control),
            MAGNET: lambda: exam.causal_perplexity(models.magnet),
        },
        "repetition (Rep-4), greedy, causal": {
            BASE: lambda: exam.repetition(models.base),
            CONTROL: lambda: exam.repetition(models.control),
            MAGNET: lambda: exam.repetition(models.magnet),
        },
    }


def fill_table(exam: Exam, models: Models) -> Table:
    """Ask everything; a share is a number from 0 to 1."""
    questions = {**_about_fills(exam, models), **_about_texts(exam, models)}
    with tqdm(total=sum(map(len, questions.values())), desc="questions", leave=False) as bar:
        table: Table = {}
        for row, cells in questions.items():
            table[row] = {}
            for column, ask in cells.items():
                table[row][column] = ask()
                bar.update()
    return table


def render_table(table: Table) -> str:
    """Return the table as Markdown, aligned to be read as it is.

    Example:
        >>> print(render_table({"perplexity": {"base": 3.0}}))
        |            | base | trained on | not adapted | MAGNET | other suffix | chance | best possible |
        |------------|-----:|-----------:|------------:|-------:|-------------:|-------:|--------------:|
        | perplexity | 3.00 |            |             |        |              |        |               |
    """
    lines = [["", *COLUMNS]]
    lines += [[row, *(_format(row, cells.get(column)) for column in COLUMNS)] for row, cells in table.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def align(line: list[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        return f"| {' | '.join([line[0].ljust(widths[0]), *cells[1:]])} |"

    rule = f"|-{'-' * widths[0]}-|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    return "\n".join([align(lines[0]), rule, *map(align, lines[1:])])


def _format(row: str, value: float | None) -> str:
    """Return a perplexity or a repetition as a number, anything else in percent."""
    if value is None:
        return ""
    if row.startswith("perplexity"):
        return f"{value:.2f}"
    return f"{value:.3f}" if row.startswith("repetition") else f"{100 * value:.1f} %"


def show_infills(exam: Exam, models: Models, *, count: int = 4) -> str:
    """Return a few stories, and what the base and MAGNET put into their gaps."""
    few = Exam(tokenizer=exam.tokenizer, stories=exam.stories[:count], pairs=[], max_length=exam.max_length)
    guesses, fills = few.left_to_right_fills(models.base), few.infills(models.magnet)
    paragraphs = []
    for story, guess, fill in zip(few.stories, guesses, fills, strict=True):
        paragraphs.append(
            f"{story.prefix} [...]{story.suffix}\n    missing:{story.missing}\n    base:   {guess}\n    MAGNET: {fill}"
        )
    return "\n".join(paragraphs)


__all__ = ["COLUMNS", "LEGEND", "Models", "fill_table", "render_table", "show_infills"]
