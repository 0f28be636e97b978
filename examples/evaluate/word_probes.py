"""Reproduce Table 1 of the paper: linear probes for chunking, entities and parts of speech on states of CoNLL-2003.

    python examples/evaluate/word_probes.py --model MAGNET=DIR "base, bidirectional=DIR" --data FOLDER
    python examples/evaluate/word_probes.py --model "base, causal=DIR" --reading causal --data FOLDER
    python examples/evaluate/word_probes.py --model BERT-Large=google-bert/bert-large-cased

A decoder is read bidirectionally unless `--reading causal` is given; any other model is read as an encoder. The vector
of a word is the mean of those of its tokens. In bidirectional mode, the output before a token represents it; in causal
mode and in an encoder, its own output does. The states of all words are computed once for the three probes.
`accuracy` over words, in percent, is the paper's figure; `f1` is that of spans (see `probe_scores`).
"""

import argparse
import functools
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from examples.command_line import at_least, raise_complaints, require_extra, start
from examples.evaluate.parts.conll import (
    HUB_ID,
    TASKS,
    TaggedSentence,
    missing_files,
    read_conll,
    split_file,
    split_to_test,
)
from examples.evaluate.parts.driver import Measurement, NotAvailableError, Unit, print_table, run
from examples.evaluate.parts.linear_probe import ProbeSettings, predict, train_probe
from examples.evaluate.parts.options import add_batch_size, make_parser, model_complaints, parse
from examples.evaluate.parts.records import Record, digest_files
from examples.evaluate.parts.word_readers import READINGS, SHIFTS, WordStates, open_reader, reading_of, tabulate
from modeling_magnet.words_magnet import Shift

PAPER = {
    "steps": 4000,
    "batch_size": 8,
    "learning_rate": 5e-4,
    "dropout": 0.1,
    "train_sentences": None,
    "test_sentences": None,
}
SMOKE = {**PAPER, "steps": 1000, "train_sentences": 2000, "test_sentences": 500}

Corpus = dict[str, list[TaggedSentence]]


class FrozenStates:
    """The states of all words from one model: computed for the first probe, then shared without the model."""

    def __init__(self, path: str, args: argparse.Namespace, *, reading: str, corpus: Callable[[], Corpus]) -> None:
        self.path, self.args, self.reading, self.corpus = path, args, reading, corpus

    @functools.cached_property
    def tables(self) -> dict[str, WordStates]:
        """Return the states by part of the corpus."""
        corpus = self.corpus()
        reader = open_reader(self.path, self.args, reading=self.reading)
        return {
            part: tabulate(reader, [sentence.words for sentence in sentences], description=f"states, {part}")
            for part, sentences in corpus.items()
        }


def draw(sentences: list[TaggedSentence], number: int | None, *, seed: int) -> list[TaggedSentence]:
    """Draw sentences in order; return all if there are no more than requested, or with `None`."""
    if number is None or number >= len(sentences):
        return sentences
    return [sentences[index] for index in sorted(random.Random(seed).sample(range(len(sentences)), number))]


def read_corpus(args: argparse.Namespace) -> Corpus:
    """Return the sentences for training and for testing.

    Raises:
        NotAvailableError: If the Hub cannot be reached.
    """
    try:
        parts = {"train": read_conll("train", folder=args.data)}
        parts["test"] = read_conll(split_to_test(args.data), folder=args.data)
    except OSError as error:
        raise NotAvailableError(f"CoNLL-2003 cannot be read ({error}); pass `--data` with its files") from error
    limits = {"train": args.train_sentences, "test": args.test_sentences}
    return {part: draw(sentences, limits[part], seed=args.seed) for part, sentences in parts.items()}


def probe_settings(args: argparse.Namespace) -> ProbeSettings:
    """Return the probe settings of the command line."""
    names = ("steps", "batch_size", "learning_rate", "dropout")
    return ProbeSettings(**{name: getattr(args, name) for name in names})


def measure(frozen: FrozenStates, *, task: str, settings: ProbeSettings, args: argparse.Namespace) -> Measurement:
    """Train a probe for one task and score its predictions."""
    from trainer.metric_modules.probe_scores import probe_scores  # needs the extra `eval`

    corpus = frozen.corpus()
    train, test = frozen.tables["train"], frozen.tables["test"]
    truth = {part: [sentence.tags(task) for sentence in sentences] for part, sentences in corpus.items()}
    labels = sorted({tag for tags in truth["train"] for tag in tags})
    ids = {label: number for number, label in enumerate(labels)}
    probe = train_probe(
        train.states,
        np.array([ids[tag] for tags in truth["train"] for tag in tags]),
        train.bounds,
        num_labels=len(labels),
        settings=settings,
        seed=args.seed,
        device=args.device,
        description=f"probe, {task}",
    )
    predicted = [labels[number] for number in predict(probe, test.states)]
    tags = [predicted[first:last] for first, last in zip(test.bounds, test.bounds[1:], strict=False)]
    return Measurement(
        metrics=probe_scores(tags, truth["test"], spans=task != "pos"),
        counts={
            "train_sentences": len(corpus["train"]),
            "train_words": len(train.states),
            "test_sentences": len(corpus["test"]),
            "test_words": len(test.states),
            "labels": len(labels),
            "words_without_tokens": train.num_without_tokens + test.num_without_tokens,
        },
    )


def make_units(args: argparse.Namespace, reading: str) -> list[Unit]:
    """Return the three columns of the table for models with the same reading."""
    probe = probe_settings(args)
    splits = ("train", split_to_test(args.data))
    settings = {
        **vars(probe),
        "optimizer": "AdamW, no weight decay, linear decay",
        "reading": reading,
        "shift": args.shift,
        "data": HUB_ID if args.data is None else "files of the shared task",
        "files": None if args.data is None else digest_files([split_file(args.data, split) for split in splits]),
        "tested": splits[1],
        "train_sentences": args.train_sentences,
        "test_sentences": args.test_sentences,
    }
    return [Unit(task, settings, partial(measure, task=task, settings=probe, args=args)) for task in TASKS]


def parse_arguments(arguments: list[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """Return the checked command line and the reading of each model."""
    parser = make_parser(__doc__, smoke=SMOKE, paper=PAPER)
    parser.add_argument("--reading", choices=READINGS, help="the reading of all models; defaults to the type of each")
    parser.add_argument(
        "--shift",
        choices=get_args(Shift),
        help="for decoders: a token is the output before it, or its own; by default own only with `--reading causal`",
    )
    parser.add_argument("--steps", type=at_least(), help="updates of a probe")
    add_batch_size(parser, "sentences of an update", default=None)
    parser.add_argument("--learning_rate", type=float, help="at the first step")
    parser.add_argument("--dropout", type=float, help="on the states")
    parser.add_argument("--train_sentences", type=at_least(), help="drawn from the training set; defaults to all")
    parser.add_argument("--test_sentences", type=at_least(), help="drawn from the test set; defaults to all")
    args = parse(parser, arguments)
    require_extra("eval", "evaluate", "seqeval")
    complaints = missing_files(args.data) if args.data is not None else []
    readings: dict[str, str] = {}
    complaints += model_complaints(args.model, lambda path: readings.setdefault(path, reading_of(path, args.reading)))
    raise_complaints(complaints)
    return args, {name: readings[path] for name, path in args.model.items()}


def main(arguments: list[str] | None = None) -> list[Record]:
    """Probe the named models."""
    args, readings = parse_arguments(arguments)
    corpus = functools.cache(partial(read_corpus, args))
    records = []
    kinds = list(dict.fromkeys(readings.values()))
    for reading in kinds:  # the settings of a record name the reading of its model
        models = {name: path for name, path in args.model.items() if readings[name] == reading}
        shift = SHIFTS[reading] if reading == "encoder" or args.shift is None else args.shift
        some = argparse.Namespace(**{**vars(args), "model": models, "shift": shift})
        opened = partial(FrozenStates, reading=reading, corpus=corpus)
        records += run("words", some, make_units(some, reading), open_model=opened)
    if len(kinds) > 1:
        print_table(records)
    return records


if __name__ == "__main__":
    start(main)
