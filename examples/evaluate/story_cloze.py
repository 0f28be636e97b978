"""Choose the sentence that belongs to a story: the fifth one, or the third one, which has text on both sides.

    python examples/evaluate/story_cloze.py --model MAGNET=DIR base=DIR --data FOLDER

Fifth sentence: the right ending against the wrong one, as in Story Cloze. Third sentence: the one that was removed
against that of another story, by infilling and from left to right, without the suffix and with it. The control gives
infilling another story's suffix. `accuracy` compares sums of log-probabilities, which prefer short sentences,
`accuracy_per_token` their means; both in percent, with the 95 % interval (Wilson) of the first. Every cell is also
compared story by story with the infilling of the first model (McNemar's exact test).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from examples.command_line import raise_complaints, require_extra, start
from examples.evaluate.parts.driver import Measurement, Unit, run
from examples.evaluate.parts.human_scores import mcnemar
from examples.evaluate.parts.options import add_limit, complaints_of, make_parser, model_complaints, parse
from examples.evaluate.parts.prompted_infilling import PromptedInfiller
from examples.evaluate.parts.records import Record, digest_files
from examples.evaluate.parts.stories import FILE_NAMES, ClozeStory, derange, read_story_cloze
from examples.evaluate.parts.wikitext import find_file
from modeling_magnet.families_magnet import open_without_weights

FIFTH, THIRD = "fifth sentence", "third sentence"
INFILLING, LEFT = "infilling", "left to right"
OTHER_SUFFIX, LEFT_WITH_SUFFIX = "infilling, other suffix", "left to right, with the suffix"
READINGS = {FIFTH: (INFILLING, LEFT), THIRD: (INFILLING, LEFT, OTHER_SUFFIX, LEFT_WITH_SUFFIX)}


class Choice(NamedTuple):
    """A story with a blank and two candidates, the right one first."""

    prefix: str
    candidates: list[str]
    suffix: str


def make_choices(stories: Sequence[ClozeStory], *, task: str, seed: int) -> list[Choice]:
    """Return the choices of a task; the wrong third sentence comes from a random other story."""
    if task == FIFTH:
        return [Choice(" ".join(first), [f" {right}", f" {wrong}"], "") for first, right, wrong in stories]
    others = [stories[index].first[2] for index in derange(len(stories), seed=seed)]
    return [
        Choice(" ".join(first[:2]), [f" {first[2]}", f" {other}"], f" {first[3]} {right}")
        for (first, right, _), other in zip(stories, others, strict=True)
    ]


def score_choices(model: Any, choices: Sequence[Choice], *, reading: str, seed: int) -> np.ndarray:
    """Return sums and means of the log-probabilities of both candidates of each story, of shape `(stories, 2, 2)`."""
    suffixes = [choice.suffix for choice in choices]
    score: Callable[..., Any] = model.score_infill
    if reading in (LEFT, LEFT_WITH_SUFFIX):
        reader = PromptedInfiller(model, model.tokenizer)
        score = partial(reader.score_infill, with_suffix=reading == LEFT_WITH_SUFFIX)
    elif reading == OTHER_SUFFIX:
        # Drawn separately from the wrong sentences; otherwise the suffix would favor the wrong candidate.
        suffixes = [suffixes[other] for other in derange(len(choices), seed=seed + 1)]
    scored = score([choice.prefix for choice in choices], [choice.candidates for choice in choices], suffixes)
    return np.array([[(fill.logprob, fill.mean_logprob) for fill in fills] for fills in scored])


def measure(model: Any, *, read: Callable[[], list[ClozeStory]], task: str, reading: str, seed: int) -> Measurement:
    """Return how often the right sentence is preferred; the sample has a digit per story, 1 for a right choice."""
    from scipy.stats import binomtest  # needs the extra `eval`

    values = score_choices(model, make_choices(read(), task=task, seed=seed), reading=reading, seed=seed)
    in_all, per_token = (values[:, 0] > values[:, 1]).T
    low, high = binomtest(int(in_all.sum()), len(in_all)).proportion_ci(method="wilson")
    shares = {"accuracy": in_all.mean(), "interval_low": low, "interval_high": high}
    shares["accuracy_per_token"] = per_token.mean()
    return Measurement(
        metrics={name: 100 * float(share) for name, share in shares.items()},
        counts={"stories": len(in_all)},
        samples=[{"hits": "".join(str(int(hit)) for hit in in_all)}],
    )


def make_units(args: argparse.Namespace) -> list[Unit]:
    """Return a column for each task and reading."""
    file = find_file(args.data, FILE_NAMES["story_cloze"])
    read = cache(lambda: read_story_cloze(file)[: args.limit])
    settings = {"source": file.name, "files": digest_files([file]), "limit": args.limit}
    return [
        Unit(f"{task}, {reading}", settings, partial(measure, read=read, task=task, reading=reading, seed=args.seed))
        for task in args.tasks
        for reading in READINGS[task]
    ]


def print_tests(records: Sequence[Record]) -> None:
    """Print McNemar's test of the first model's infilling against every other cell of its task."""
    hits = {
        (record.unit, record.system): np.array([digit == "1" for digit in record.samples[0]["hits"]])
        for record in records
    }
    for task in READINGS:
        first = next((cell for cell in hits if cell[0] == f"{task}, {INFILLING}"), None)
        for cell in hits:
            if first is not None and cell[0].startswith(f"{task}, ") and cell != first:
                test = mcnemar(hits[first], hits[cell])
                print(
                    f"{first[1]}, {first[0]}, against {cell[1]}, {cell[0]}: only the first {test['only_first']}, only "
                    f"the second {test['only_second']}, p = {test['p']:.2g}"
                )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse invalid arguments before weights are read."""
    complaints = model_complaints(args.model, open_without_weights)
    if args.data is None:
        complaints.append("`--data` is left out, but Story Cloze is not on the Hub. Name the folder that has it.")
    else:
        complaints += complaints_of({"`--data`": lambda: find_file(args.data, FILE_NAMES["story_cloze"])})
    raise_complaints(complaints)


def main(arguments: list[str] | None = None) -> list[Record]:
    """Measure the named models."""
    parser = make_parser(__doc__, smoke={"limit": 32}, paper={"limit": None})
    parser.add_argument("--tasks", nargs="+", default=list(READINGS), choices=list(READINGS), help="what is removed")
    add_limit(parser, "stories, from the first on; all if left out", minimum=2)
    args = parse(parser, arguments)
    require_extra("eval", "scipy")
    check_arguments(args)
    records = run("story_cloze", args, make_units(args))
    print_tests(records)
    return records


if __name__ == "__main__":
    start(main)
