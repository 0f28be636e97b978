"""Reproduce Table 3 of the paper: V-measure x 100 of clustered text embeddings.

    python examples/evaluate/clustering.py --model "base, causal=LLAMA" magnet=outputs/mine
    python examples/evaluate/clustering.py --model magnet=outputs/mine --data FOLDER --preset smoke

MTEB's legacy tasks by MTEB's own evaluator: mini-batch k-means (batches of 500, seed 42) with as many clusters as
there are topics, in each subset by itself; `v_measure` is the mean over the subsets, `v_measure_std` their standard
deviation. With `--data`, other texts replace MTEB's, and the record says which. How a model reads is chosen as
for `sts.py`.
"""

import argparse
import csv
import functools
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datasets import load_dataset

from examples.command_line import at_least, require_extra, start
from examples.evaluate.parts.driver import Measurement, NotAvailableError, Unit
from examples.evaluate.parts.options import make_parser, parse
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
from trainer.files import parse_json

# MTEB's sets have this number of subsets.
NUM_SUBSETS = 10
# Range of subject lengths in MTEB's set of newsgroups, in characters.
SUBJECT_LENGTHS = (11, 120)


class LabeledText(NamedTuple):
    """A text and its topic."""

    text: str
    label: str


class Subset(NamedTuple):
    """Texts that are clustered together."""

    texts: list[str]
    labels: list[str]


class LocalFile(NamedTuple):
    """Describe a file that replaces a set of MTEB's."""

    name: str
    read: Callable[[Path], list[LabeledText]]
    size: int  # texts per subset
    what: str  # description for the record


class ClusteringSet(NamedTuple):
    """Locate a set: on the Hub at the revision that MTEB reads, and in a local folder."""

    hub_id: str
    revision: str
    file: LocalFile | None = None


def _read_newsgroups(file: Path) -> list[LabeledText]:
    """Read subject lines filtered as in MTEB's set: without the `Re:` of replies, neither very short nor very long.

    The file then has 5,239 different texts of 32.1 characters on average, MTEB's set 5,242 of 32.0.
    """
    rows = []
    with open_text(file) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                values = parse_json(line)
                subject = re.sub(r"^re:\s*", "", values["subject"], flags=re.IGNORECASE)
                rows.append(LabeledText(subject, str(values["label"])))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"Line {number} of {str(file)!r} is not JSON with subject and label ({line!r:.80}). Correct it."
                ) from error
    shortest, longest = SUBJECT_LENGTHS
    return [row for row in rows if shortest <= len(row.text) <= longest]


def _read_titles(file: Path) -> list[LabeledText]:
    """Read titles and subjects from a tab-separated file with a header."""
    with open_text(file, newline="") as stream:
        lines = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [LabeledText(str(line.get("title") or ""), str(line.get("subject") or "")) for line in lines]
    empty = next((number for number, row in enumerate(rows, start=2) if not all(row)), None)
    if empty is not None:
        raise ValueError(f"Line {empty} of {str(file)!r} has no title or no subject. Correct it.")
    return rows


CLUSTERING_SETS = {
    "BiorxivClusteringP2P": ClusteringSet("mteb/biorxiv-clustering-p2p", "65b79d1d13f80053f67aca9498d9402c2d9f1f40"),
    "BiorxivClusteringS2S": ClusteringSet(
        "mteb/biorxiv-clustering-s2s",
        "258694dd0231531bc1fd9de6ceb52a0853c6d908",
        LocalFile("biorxiv_title_subject.tsv.gz", _read_titles, 4000, "other bioRxiv titles than MTEB's"),
    ),
    "TwentyNewsgroupsClustering": ClusteringSet(
        "mteb/twentynewsgroups-clustering",
        "6125ec4e24fa026cec8a478383ee943acfbd5449",
        LocalFile("20news_bydate_train.jsonl.xz", _read_newsgroups, 6000, "subjects of 20news by date, train"),
    ),
    "MedrxivClusteringP2P": ClusteringSet("mteb/medrxiv-clustering-p2p", "e7a26af6f3ae46b30dde8737f02c07b1505bcc73"),
    "MedrxivClusteringS2S": ClusteringSet("mteb/medrxiv-clustering-s2s", "35191c8c0dca72d8ff3efcd72aa802307d469663"),
}


def subsets_of(
    name: str, *, folder: Path | None = None, subsets: int | None = None, size: int | None = None, seed: int = 0
) -> list[Subset]:
    """Return the subsets of a set.

    Raises:
        NotAvailableError: If there is no such file, or the Hub cannot be reached.
    """
    source = CLUSTERING_SETS[name]
    if folder is not None:
        texts, labels = map(list, zip(*read_file(name, folder), strict=True))
        file_size = source.file.size if source.file else None
        return [
            _drawn(texts, labels, size or file_size, f"{seed} {number}") for number in range(subsets or NUM_SUBSETS)
        ]
    try:
        table = load_dataset(source.hub_id, revision=source.revision, split="test")
    except OSError as error:
        raise NotAvailableError(f"{source.hub_id} of the Hub: {str(error).splitlines()[0]}") from error
    return [
        _drawn(row["sentences"], [str(label) for label in row["labels"]], size, f"{seed} {number}")
        for number, row in enumerate(table)
        if subsets is None or number < subsets
    ]


def read_file(name: str, folder: Path) -> list[LabeledText]:
    """Read the file that replaces a set.

    Raises:
        NotAvailableError: If no file replaces it, or the folder lacks it.
    """
    file = CLUSTERING_SETS[name].file
    if file is None:
        raise NotAvailableError("no file replaces this set; leave `--data` out for the Hub")
    path = data_file(folder, file.name)
    if not path.is_file():
        raise NotAvailableError(f"the folder of the data has no {file.name}")
    try:
        return file.read(path)
    except csv.Error as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}). Fetch it again.") from error


def describe_texts(name: str, args: argparse.Namespace) -> dict[str, str | int | None]:
    """Describe the texts for the record, because a file is not MTEB's own set."""
    source = CLUSTERING_SETS[name]
    settings = {"data": f"{source.hub_id}@{source.revision[:7]}", "files": None}
    sizes = {"subsets": args.subsets, "subset_size": args.subset_size}
    if args.data is not None and source.file is not None:
        files = digest_files([data_file(args.data, source.file.name)])
        settings = {"data": f"stand-in: {source.file.what}, drawn from {source.file.name}", "files": files}
        sizes = {"subsets": args.subsets or NUM_SUBSETS, "subset_size": args.subset_size or source.file.size}
    return {**settings, **sizes}


def _drawn(texts: list[str], labels: list[str], size: int | None, seed: str) -> Subset:
    """Draw texts without replacement; if there are no more than requested, return all in order."""
    if size is None or size >= len(texts):
        return Subset(list(texts), list(labels))
    places = random.Random(seed).sample(range(len(texts)), size)
    return Subset([texts[place] for place in places], [labels[place] for place in places])


def v_measure_by_mteb(reader: SentenceReader, name: str, subsets: list[Subset], *, prompt: str) -> tuple[float, float]:
    """Compute the V-measure x 100 of a legacy MTEB task on the given texts.

    Source: Rosenberg and Hirschberg 2007 for the measure; Muennighoff et al. 2022 (MTEB) for the k-means.
    """
    from examples.evaluate.parts.mteb_reader import scores_by_mteb

    columns = {"sentences": [subset.texts for subset in subsets], "labels": [subset.labels for subset in subsets]}
    scores = scores_by_mteb(reader, name, columns, prompt=prompt)
    return 100 * float(scores["v_measure"]), 100 * float(scores["v_measure_std"])


def measure(reader: SentenceReader, task: str, args: argparse.Namespace) -> Measurement:
    """Measure one set on one model."""
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


def make_units(args: argparse.Namespace) -> list[Unit]:
    """Return one cell per set."""
    return [
        Unit(
            task,
            {**reading_settings(args, prompt_of(args, task)), **describe_texts(task, args)},
            functools.partial(measure, task=task, args=args),
        )
        for task in args.tasks
    ]


def parse_arguments(arguments: list[str] | None) -> list[argparse.Namespace]:
    """Parse and check the command line once per reading that the models need."""
    parser = make_parser(
        __doc__, smoke={"subsets": 2, "subset_size": 500}, paper={"subsets": None, "subset_size": None}
    )
    tasks = list(CLUSTERING_SETS)
    parser.add_argument("--tasks", nargs="+", default=tasks, choices=tasks, help="sets to run")
    parser.add_argument("--subsets", type=at_least(), help="subsets of a set; all of MTEB's, or 10 drawn from a file")
    parser.add_argument("--subset_size", type=at_least(2), help="texts of a subset, drawn with the seed; or all")
    add_reading_options(parser)
    args = parse(parser, arguments)
    require_extra("eval", "mteb")
    complaints = [] if args.data is None else data_complaints(args.tasks, lambda task: read_file(task, args.data))
    return by_reading(args, tasks=args.tasks, complaints=complaints)


def main(arguments: list[str] | None = None) -> list[Record]:
    """Measure the named models."""
    return run_readings("clustering", parse_arguments(arguments), make_units)


if __name__ == "__main__":
    start(main)
