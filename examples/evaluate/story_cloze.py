"""Which sentence belongs into a story? Choice by `score_infill`, against reading from left to right.

    python examples/evaluate/story_cloze.py --magnet DIR --base DIR --stories storycloze.csv.gz --output cloze.json

Two tasks on the same stories: the fifth sentence, right ending against wrong ending; and the third sentence, removed,
against the third sentence of another story. The second has a suffix, which only infilling and a causal reading of the
whole text use. The control gives infilling the suffix of another story. Accuracy in percent with its 95 % interval
(Wilson); systems are compared story by story (McNemar's exact test).
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from examples.command_line import OneLineParser, add_device, at_least, choose_device, need, start
from examples.evaluate.stories import ClozeStory, derange, read_story_cloze
from examples.files import write_results
from examples.models import open_magnet
from trainer.prompted_infilling import PromptedInfiller

TASKS = ("fifth sentence", "third sentence")
# The sum of a sentence's log-probabilities prefers short ones; the mean does not.
RULES = ("in all", "per token")


class Choice:
    """One story with a gap and two candidates, the right one first."""

    def __init__(self, prefix: Sequence[str], right: str, wrong: str, suffix: Sequence[str]) -> None:
        self.prefix = " ".join(prefix)
        self.candidates = [f" {right}", f" {wrong}"]
        self.suffix = "".join(f" {sentence}" for sentence in suffix)


def make_choices(stories: Sequence[ClozeStory], *, seed: int) -> dict[str, list[Choice]]:
    """Make both tasks; the wrong third sentence is that of a random story."""
    others = derange(len(stories), seed=seed)
    fifth = [Choice(first, right, wrong, []) for first, right, wrong in stories]
    third = [
        Choice(first[:2], first[2], stories[other][0][2], [first[3], right])
        for (first, right, _), other in zip(stories, others, strict=True)
    ]
    return dict(zip(TASKS, (fifth, third), strict=True))


def hits_by_rule(
    score: Callable[..., Any], choices: Sequence[Choice], *, suffixes: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return whether the right candidate has the higher log-probability, in all and per token."""
    scored = score([c.prefix for c in choices], [c.candidates for c in choices], list(suffixes))
    values = np.array([[(fill.logprob, fill.mean_logprob) for fill in fills] for fills in scored])
    return {rule: values[:, 0, index] > values[:, 1, index] for index, rule in enumerate(RULES)}


def mcnemar(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Run McNemar's exact test of two systems on the same stories."""
    from scipy.stats import binomtest  # of the extra `eval`

    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    discordant = only_one + only_other
    p = binomtest(only_one, discordant).pvalue if discordant else 1.0
    return {"only_first": only_one, "only_second": only_other, "p": float(p)}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Choose, compare, print, write."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--magnet", required=True, help="the adapted model")
    parser.add_argument("--base", required=True, help="the model it was adapted from")
    parser.add_argument("--stories", type=Path, required=True, help="Story Cloze, .csv or .csv.gz")
    parser.add_argument("--limit", type=at_least(), help="stories, from the first on; all if left out")
    parser.add_argument("--seed", type=at_least(0), default=0, help="draws the wrong third sentences")
    add_device(parser)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    need("eval", "scipy")
    from scipy.stats import binomtest

    device = choose_device(args.device)
    stories = read_story_cloze(args.stories)[: args.limit]
    if len(stories) < 2:  # each takes a wrong sentence from another
        raise ValueError(f"`--stories` {str(args.stories)!r} has {len(stories)} stories; expected 2 at least.")
    tasks = make_choices(stories, seed=args.seed)
    magnet, base = (open_magnet(path, device=device) for path in (args.magnet, args.base))
    reads, adapted_reads = (PromptedInfiller(model, model.tokenizer).score_infill for model in (base, magnet))
    systems: dict[str, tuple[Callable[..., Any], bool]] = {
        "magnet, infilling": (magnet.score_infill, False),
        "magnet, infilling, another story's suffix": (magnet.score_infill, True),
        "base, infilling": (base.score_infill, False),
        "base, left to right": (reads, False),
        "magnet, left to right": (adapted_reads, False),
        "base, left to right, with the suffix": (lambda *a: reads(*a, with_suffix=True), False),
        "magnet, left to right, with the suffix": (lambda *a: adapted_reads(*a, with_suffix=True), False),
    }
    report: dict[str, Any] = {"stories": len(stories), "tasks": {}}
    for task, choices in tasks.items():
        suffixes = [choice.suffix for choice in choices]
        foreign = [suffixes[other] for other in derange(len(choices), seed=args.seed + 1)]
        has_suffix = any(suffixes)
        report["tasks"][task] = {rule: {"accuracy": {}, "mcnemar": {}} for rule in RULES}
        scores: dict[str, dict[str, np.ndarray]] = {}
        for name, (score, uses_foreign) in systems.items():
            if has_suffix or "suffix" not in name:
                scores[name] = hits_by_rule(score, choices, suffixes=foreign if uses_foreign else suffixes)
        for rule in RULES:
            part = report["tasks"][task][rule]
            print(f"\n{task}, {len(choices)} stories, {rule:16s}{'accuracy':>12s}{'95 %':>15s}")
            for name, by_rule in scores.items():
                hits = by_rule[rule]
                low, high = binomtest(int(hits.sum()), len(choices)).proportion_ci(method="wilson")
                part["accuracy"][name] = {"share": float(hits.mean()), "interval": [float(low), float(high)]}
                print(f"  {name:46s}{100 * hits.mean():9.2f}{f'{100 * low:.1f} .. {100 * high:.1f}':>16s}")
            first = next(iter(scores))
            for name in list(scores)[1:]:
                test = part["mcnemar"][f"{first} / {name}"] = mcnemar(scores[first][rule], scores[name][rule])
                print(f"  only {first} {test['only_first']}, only {name} {test['only_second']}: p = {test['p']:.2g}")
    report["seed"] = args.seed
    write_results(args.output, report, models={"magnet": args.magnet, "base": args.base})
    print(f"\nstory_cloze: OK ({len(stories)} stories)")
    return report


if __name__ == "__main__":
    start(main)
