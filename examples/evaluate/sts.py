"""Table 2 of the paper: semantic textual similarity without task training, Spearman's rank correlation x 100.

    python examples/evaluate/sts.py --model "base, causal=LLAMA" magnet=outputs/mine
    python examples/evaluate/sts.py --model Echo=LLAMA --reading echo --data FOLDER --tasks STS12 STSBenchmark
    python examples/evaluate/sts.py --model SimCSE=princeton-nlp/unsup-simcse-bert-base-uncased --pooling cls

A MAGNET checkpoint or an adapter is read in both directions, a plain decoder from left to right, anything else by
sentence-transformers; `--reading` says otherwise. With `--mteb`, `mteb.evaluate` runs on the same pairs as well.
"""

import argparse
import functools
import random
import sys
from pathlib import Path

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import need
from examples.evaluate.command_line import make_parser, parse, start
from examples.evaluate.data_files import data_file
from examples.evaluate.driver import Measurement, Unit
from examples.evaluate.reading_options import (
    add_reading_options,
    by_reading,
    data_complaints,
    prompt_of,
    reading_settings,
    run_readings,
)
from examples.evaluate.records import Record, digest_files
from examples.evaluate.sentence_readers import SentenceReader
from examples.evaluate.sts_data import STS_SETS, StsPair, read_sts
from modeling_magnet.pooling_magnet import similarity_pairs


def sts_correlation(reader: SentenceReader, pairs: list[StsPair], *, prompt: str) -> float:
    """Spearman's rank correlation of cosine and human score, x 100.

    Args:
        reader (`SentenceReader`): The model.
        pairs (`list[StsPair]`): Sentences and scores.
        prompt (`str`): The instruction.
    """
    from scipy.stats import spearmanr  # of the extra `eval`

    left = reader.encode([pair.sentence1 for pair in pairs], prompt=prompt)
    right = reader.encode([pair.sentence2 for pair in pairs], prompt=prompt)
    cosines = similarity_pairs(left, right, name="cosine")
    return 100 * float(spearmanr(cosines.numpy(), [pair.score for pair in pairs]).statistic)


def sts_correlation_by_mteb(reader: SentenceReader, name: str, pairs: list[StsPair], *, prompt: str) -> float:
    """The same figure by `mteb.evaluate`, on the same pairs, so that no network is needed."""
    from examples.evaluate.mteb_reader import scores_by_mteb

    columns = {field: [getattr(pair, field) for pair in pairs] for field in StsPair._fields}
    return 100 * scores_by_mteb(reader, name, columns, prompt=prompt)["main_score"]


@functools.cache
def sts_pairs(task: str, folder: Path | None, limit: int | None, seed: int) -> list[StsPair]:
    """The test pairs of a set, or so many of them, drawn with the seed; read once for all models.

    Raises:
        ValueError: a file that cannot be read.
        NotAvailableError: there is none, here or on the Hub.
    """
    pairs = read_sts(task, folder=folder)
    return pairs if limit is None or limit >= len(pairs) else random.Random(seed).sample(pairs, limit)


def measure(reader: SentenceReader, task: str, args: argparse.Namespace) -> Measurement:
    """One set on one model."""
    pairs = sts_pairs(task, args.data, args.limit, args.seed)
    prompt = prompt_of(args, "STS")
    metrics = {"spearman": sts_correlation(reader, pairs, prompt=prompt)}
    if args.mteb:
        metrics["spearman_mteb"] = sts_correlation_by_mteb(reader, task, pairs, prompt=prompt)
    return Measurement(metrics=metrics, counts={"pairs": len(pairs)})


def units(args: argparse.Namespace) -> list[Unit]:
    """One cell per set."""
    return [
        Unit(
            task,
            {
                **reading_settings(args, prompt_of(args, "STS")),
                "data": STS_SETS[task].hub_id if args.data is None else STS_SETS[task].file_name,
                "files": None if args.data is None else digest_files([data_file(args.data, STS_SETS[task].file_name)]),
                "limit": args.limit,
                "mteb": args.mteb,
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
    parser = make_parser(__doc__, smoke={"limit": 200}, paper={"limit": None})
    parser.add_argument("--tasks", nargs="+", default=list(STS_SETS), choices=list(STS_SETS), help="sets to run")
    parser.add_argument("--limit", type=int, help="pairs of a set, drawn with the seed; all of them by default")
    parser.add_argument("--mteb", action="store_true", help="run mteb on the same pairs, too")
    add_reading_options(parser)
    args = parse(parser, arguments)
    need("eval", "scipy", *(["mteb"] if args.mteb else []))
    complaints = []
    if args.limit is not None and args.limit < 2:
        complaints.append(f"`--limit` is {args.limit}; a correlation needs at least 2 pairs.")
    if args.data is not None:
        complaints += data_complaints(args.tasks, lambda task: read_sts(task, folder=args.data))
    return by_reading(args, tasks=["STS"], complaints=complaints)


def main(arguments: list[str] | None = None) -> list[Record]:
    """Measure the models that were named.

    Raises:
        ValueError: arguments or files that cannot be used.
    """
    return run_readings("sts", parse_arguments(arguments), units)


if __name__ == "__main__":
    start(main)
