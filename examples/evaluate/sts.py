"""Reproduce Table 2 of the paper: Spearman correlation x 100 of semantic textual similarity without task training.

    python examples/evaluate/sts.py --model "base, causal=LLAMA" magnet=outputs/mine
    python examples/evaluate/sts.py --model Echo=LLAMA --reading echo --data FOLDER --tasks STS12 STSBenchmark
    python examples/evaluate/sts.py --model SimCSE=princeton-nlp/unsup-simcse-bert-base-uncased --pooling cls

A MAGNET checkpoint or an adapter is read in both directions, a plain decoder from left to right, anything else by
sentence-transformers; `--reading` says otherwise. With `--mteb`, `mteb.evaluate` runs on the same pairs as well.
"""

import argparse
import csv
import functools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from datasets import load_dataset

from examples.command_line import require_extra, start
from examples.evaluate.parts.driver import Measurement, NotAvailableError, Unit
from examples.evaluate.parts.options import add_limit, make_parser, parse
from examples.evaluate.parts.reading_options import (
    add_reading_options,
    by_reading,
    data_complaints,
    prompt_of,
    reading_settings,
    run_readings,
)
from examples.evaluate.parts.records import Record, digest_files
from examples.evaluate.parts.sentence_readers import SentenceReader
from examples.files import data_file, open_text
from modeling_magnet.pooling_magnet import similarity_pairs

_USUAL = ("sentence1", "sentence2", "score")


class StsSet(NamedTuple):
    """Locate a set and its columns."""

    hub_id: str
    file_name: str  # in a local folder
    columns: tuple[str, str, str]  # sentence, sentence, score in the file; by index if it has no header


class StsPair(NamedTuple):
    """Two sentences and their similarity as judged by people."""

    sentence1: str
    sentence2: str
    score: float


STS_SETS = {
    **{f"STS{n}": StsSet(f"mteb/sts{n}-sts", f"sts{n}.test.tsv.gz", _USUAL) for n in range(12, 17)},
    "STSBenchmark": StsSet("mteb/stsbenchmark-sts", "stsb.test.csv.gz", _USUAL),
    "SICK-R": StsSet("mteb/sickr-sts", "sick.test.tsv.gz", ("sentence_A", "sentence_B", "relatedness_score")),
}


def read_sts(name: str, *, folder: Path | None = None) -> list[StsPair]:
    """Read the test pairs of a set.

    Raises:
        NotAvailableError: If there is no such file, or the Hub cannot be reached.
    """
    if name not in STS_SETS:
        raise ValueError(f"No set is named {name!r}; expected one of {sorted(STS_SETS)}.")
    source = STS_SETS[name]
    if folder is None:
        try:
            rows = load_dataset(source.hub_id, split="test")
        except OSError as error:
            raise NotAvailableError(f"{source.hub_id} of the Hub: {str(error).splitlines()[0]}") from error
        return [StsPair(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows]
    file = data_file(folder, source.file_name)
    if not file.is_file():
        raise NotAvailableError(f"the folder of the data has no {source.file_name}")
    try:
        return list(_read_file(file, source.columns))
    except csv.Error as error:
        raise ValueError(f"{str(file)!r} cannot be read to its end ({error}). Fetch it again.") from error


def _read_file(file: Path, columns: tuple[str, str, str]) -> Iterator[StsPair]:
    """Yield the pairs of a `.csv` or `.tsv`, plain or `.gz`, with or without a header."""
    is_tsv = ".tsv" in file.suffixes
    with open_text(file, newline="") as stream:
        # A quotation mark in a tab-separated file belongs to the sentence.
        lines = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE) if is_tsv else csv.reader(stream)
        indices = (0, 1, 2)
        for number, cells in enumerate(lines, start=1):
            if number == 1 and set(columns) <= set(cells):
                indices = tuple(cells.index(column) for column in columns)  # type: ignore[assignment]
                continue
            try:
                sentence1, sentence2, score = (cells[index] for index in indices)
                yield StsPair(sentence1, sentence2, float(score))
            except (IndexError, ValueError) as error:
                raise ValueError(
                    f"Line {number} of {str(file)!r} has no {', '.join(columns)} ({cells!r:.80}). Correct it."
                ) from error


def sts_correlation(reader: SentenceReader, pairs: list[StsPair], *, prompt: str) -> float:
    """Compute Spearman's rank correlation of cosine and human score, x 100."""
    from scipy.stats import spearmanr  # needs the extra `eval`

    # A sentence stands in several pairs, in SICK in two on average.
    sides = [pair.sentence1 for pair in pairs], [pair.sentence2 for pair in pairs]
    texts = list(dict.fromkeys(sides[0] + sides[1]))
    vectors = dict(zip(texts, reader.encode(texts, prompt=prompt), strict=True))
    left, right = (np.stack([vectors[text] for text in side]) for side in sides)
    cosines = similarity_pairs(left, right, name="cosine")
    return 100 * float(spearmanr(cosines.numpy(), [pair.score for pair in pairs]).statistic)


def sts_correlation_by_mteb(reader: SentenceReader, name: str, pairs: list[StsPair], *, prompt: str) -> float:
    """Compute the same figure with `mteb.evaluate` on the same pairs, so that no network is needed."""
    from examples.evaluate.parts.mteb_reader import scores_by_mteb

    columns = {field: [getattr(pair, field) for pair in pairs] for field in StsPair._fields}
    return 100 * scores_by_mteb(reader, name, columns, prompt=prompt)["main_score"]


@functools.cache
def sts_pairs(task: str, folder: Path | None, limit: int | None, seed: int) -> list[StsPair]:
    """Return the test pairs of a set, or a sample drawn with the seed; they are read once for all models.

    Raises:
        NotAvailableError: If there is none, here or on the Hub.
    """
    pairs = read_sts(task, folder=folder)
    return pairs if limit is None or limit >= len(pairs) else random.Random(seed).sample(pairs, limit)


def measure(reader: SentenceReader, task: str, args: argparse.Namespace) -> Measurement:
    """Measure one set on one model."""
    pairs = sts_pairs(task, args.data, args.limit, args.seed)
    prompt = prompt_of(args, "STS")
    metrics = {"spearman": sts_correlation(reader, pairs, prompt=prompt)}
    if args.mteb:
        metrics["spearman_mteb"] = sts_correlation_by_mteb(reader, task, pairs, prompt=prompt)
    return Measurement(metrics=metrics, counts={"pairs": len(pairs)})


def make_units(args: argparse.Namespace) -> list[Unit]:
    """Return one cell per set."""
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
    """Parse and check the command line once per reading that the models need."""
    parser = make_parser(__doc__, smoke={"limit": 200}, paper={"limit": None})
    parser.add_argument("--tasks", nargs="+", default=list(STS_SETS), choices=list(STS_SETS), help="sets to run")
    add_limit(parser, "pairs of a set, drawn with the seed; all if left out", minimum=2)
    parser.add_argument("--mteb", action="store_true", help="run mteb on the same pairs, too")
    add_reading_options(parser)
    args = parse(parser, arguments)
    require_extra("eval", "scipy", *(["mteb"] if args.mteb else []))
    complaints = (
        [] if args.data is None else data_complaints(args.tasks, lambda task: read_sts(task, folder=args.data))
    )
    return by_reading(args, tasks=["STS"], complaints=complaints)


def main(arguments: list[str] | None = None) -> list[Record]:
    """Measure the named models."""
    return run_readings("sts", parse_arguments(arguments), make_units)


if __name__ == "__main__":
    start(main)
