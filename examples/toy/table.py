"""Build the table of the quickstart: a row per question, a column per model, and a few fills."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
    """The models to ask, all in evaluation mode."""

    base: Any
    control: Any
    not_adapted: Any
    magnet: Any


Questions = dict[str, dict[str, Callable[[], float]]]


def _questions(exam: Exam, models: Models) -> Questions:
    """Return all questions by row and column."""
    others = exam.other_suffixes
    # Nothing before the blank determines the thing, and nothing determines the wording of the missing sentence.
    wordings, things, chance = len(MISSING), len(THINGS), 1 / len(THINGS)
    causal = {BASE: models.base, CONTROL: models.control, MAGNET: models.magnet}

    def facts(fills: list[str]) -> float:
        return fact_accuracy(fills, exam.stories)

    def left_facts(model: Any) -> float:
        return facts(exam.left_to_right_fills(model))

    return {
        "hidden fact, from the left": {
            **{name: partial(left_facts, model) for name, model in causal.items()},
            CHANCE: lambda: chance,
            LIMIT: lambda: chance,
        },
        "hidden fact, from both sides": {
            NOT_ADAPTED: lambda: facts(exam.infills(models.not_adapted)),
            MAGNET: lambda: facts(exam.infills(models.magnet)),
            OTHER_SUFFIX: lambda: facts(exam.infills(models.magnet, suffixes=others)),
            CHANCE: lambda: chance,
            LIMIT: lambda: 1.0,
        },
        "hidden fact, every thing tried": {
            **{name: partial(exam.scored_facts, model) for name, model in causal.items()},
            CHANCE: lambda: chance,
            LIMIT: lambda: 1.0,
        },
        "perplexity of the span, from the left": {
            **{name: partial(exam.missing_perplexity, model) for name, model in causal.items()},
            LIMIT: lambda: (wordings * things) ** (1 / exam.span_tokens),
        },
        "perplexity of the span, from both sides": {
            NOT_ADAPTED: lambda: exam.missing_perplexity(models.not_adapted, mode="infill"),
            MAGNET: lambda: exam.missing_perplexity(models.magnet, mode="infill"),
            OTHER_SUFFIX: lambda: exam.missing_perplexity(models.magnet, mode="infill", suffixes=others),
            LIMIT: lambda: wordings ** (1 / exam.span_tokens),
        },
        "paraphrase found, last token": {
            BASE: lambda: exam.plain_retrieval(models.base),
            CONTROL: lambda: exam.plain_retrieval(models.control),
            NOT_ADAPTED: lambda: exam.encode_retrieval(models.not_adapted),
            MAGNET: lambda: exam.encode_retrieval(models.magnet),
            CHANCE: lambda: 1 / len(exam.pairs),
        },
        "perplexity of whole stories, causal": {
            name: partial(exam.causal_perplexity, model) for name, model in causal.items()
        },
        "repetition (Rep-4), greedy, causal": {
            name: partial(exam.repetition, model) for name, model in causal.items()
        },
    }


def fill_table(exam: Exam, models: Models) -> Table:
    """Ask all questions; shares are numbers from 0 to 1."""
    questions = _questions(exam, models)
    with tqdm(total=sum(map(len, questions.values())), desc="questions", leave=False) as bar:
        table: Table = {}
        for row, cells in questions.items():
            table[row] = {}
            for column, ask in cells.items():
                table[row][column] = ask()
                bar.update()
    return table


def render_table(table: Table) -> str:
    """Render the table as aligned Markdown.

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
    """Format a perplexity or repetition as a number, anything else in percent."""
    if value is None:
        return ""
    if row.startswith("perplexity"):
        return f"{value:.2f}"
    return f"{value:.3f}" if row.startswith("repetition") else f"{100 * value:.1f} %"


def show_infills(exam: Exam, models: Models, *, count: int = 4) -> str:
    """Show a few stories with the fills of the base and of MAGNET."""
    few = Exam(tokenizer=exam.tokenizer, stories=exam.stories[:count], pairs=[], max_length=exam.max_length)
    guesses, fills = few.left_to_right_fills(models.base), few.infills(models.magnet)
    paragraphs = []
    for story, guess, fill in zip(few.stories, guesses, fills, strict=True):
        paragraphs.append(
            f"{story.prefix} [...]{story.suffix}\n    missing:{story.missing}\n    base:   {guess}\n    MAGNET: {fill}"
        )
    return "\n".join(paragraphs)
