"""Table 3 of the paper: do embeddings of texts on one topic lie together? V-measure x 100.

    python examples/evaluate/clustering.py --model "base, causal=LLAMA" magnet=outputs/mine
    python examples/evaluate/clustering.py --model magnet=outputs/mine --data FOLDER --preset smoke

MTEB's legacy tasks by MTEB's own evaluator: mini-batch k-means (batches of 500, seed 42) with as many clusters as
there are topics, in each subset by itself; `v_measure` is the mean over the subsets, `v_measure_std` their standard
deviation. With `--data`, other texts stand in for MTEB's, and the record says which. How a model reads is chosen as
for `sts.py`.
"""

import argparse
import functools
import sys
from pathlib import Path

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import need
from examples.evaluate.clustering_data import CLUSTERING_SETS, Subset, described, read_file, subsets_of
from examples.evaluate.command_line import make_parser, parse, start
from examples.evaluate.driver import Measurement, Unit
from examples.evaluate.reading_options import (
    add_reading_options,
    by_reading,
    data_complaints,
    prompt_of,
    reading_settings,
    run_readings,
)
from examples.evaluate.records import Record
from examples.evaluate.sentence_readers import SentenceReader


def v_measure_by_mteb(reader: SentenceReader, name: str, subsets: list[Subset], *, prompt: str) -> tuple[float, float]:
    """V-measure x 100 of a legacy task of MTEB's, on the texts given.

    Args:
        reader (`SentenceReader`): The model.
        name (`str`): The task.
        subsets (`list[Subset]`): Each is clustered by itself.
        prompt (`str`): The instruction.

    Returns:
        `tuple[float, float]`: mean and standard deviation over the subsets.

    Source: Rosenberg and Hirschberg 2007 for the measure; Muennighoff et al. 2022 (MTEB) for the k-means.
    """
    from examples.evaluate.mteb_reader import scores_by_mteb

    columns = {
        "sentences": [subset.texts for subset in subsets],
        "labels": [subset.labels for subset in subsets],
    }
    scores = scores_by_mteb(reader, name, columns, prompt=prompt)
    return 100 * float(scores["v_measure"]), 100 * float(scores["v_measure_std"])


def measure(reader: SentenceReader, task: str, args: argparse.Namespace) -> Measurement:
    """One set on one model."""
    subsets = subsets_of(task, folder=args.data, subsets=args.subsets, size=args.subset_size, seed=args.seed)
    mean, spread = v_measure_by_mteb(reader, task, subsets, prompt=prompt_of(args, task))
    return Measurement(
        metrics={"v_measure": mean, "v_measure_std": spread},
        counts={
            "subsets": len(subsets),
            "texts": sum(len(subset.texts) for subset in subsets),
            "topics": len({label for subset in subsets for label in subset.labels}),
        },
    )


def units(args: argparse.Namespace) -> list[Unit]:
    """One cell per set."""
    return [
        Unit(
            task,
            {
                **reading_settings(args, prompt_of(args, task)),
                **described(task, folder=args.data, subsets=args.subsets, size=args.subset_size),
            },
            functools.partial(measure, task=task, args=args),
        )
        for task in args.tasks
    ]


def parse_arguments(arguments: list[str] | None) -> list[argparse.Namespace]:
    """Read and check the command line: the arguments of each reading that the models need.

    Raises:
        ValueError: listing what cannot be used.
    """
    parser = make_parser(
        __doc__,
        smoke={"subsets": 2, "subset_size": 500},
        paper={"subsets": None, "subset_size": None},
    )
    tasks = list(CLUSTERING_SETS)
    parser.add_argument("--tasks", nargs="+", default=tasks, choices=tasks, help="sets to run")
    parser.add_argument("--subsets", type=int, help="subsets of a set; all of MTEB's, or 10 drawn from a file")
    parser.add_argument("--subset_size", type=int, help="texts of a subset, drawn with the seed; all by default")
    add_reading_options(parser)
    args = parse(parser, arguments)
    need("eval", "mteb")
    complaints = [
        f"`--{name}` is {value}; expected at least {least}."
        for name, value, least in (("subsets", args.subsets, 1), ("subset_size", args.subset_size, 2))
        if value is not None and value < least
    ]
    if args.data is not None:
        complaints += data_complaints(args.tasks, lambda task: read_file(task, args.data))
    return by_reading(args, tasks=args.tasks, complaints=complaints)


def main(arguments: list[str] | None = None) -> list[Record]:
    """Measure the models that were named.

    Raises:
        ValueError: arguments or files that cannot be used.
    """
    return run_readings("clustering", parse_arguments(arguments), units)


if __name__ == "__main__":
    start(main)
