"""Embed a corpus of any size into one file of vectors, which appears whole or not at all.

    python examples/encode_corpus.py --model_name_or_path DIR --texts corpus.jsonl.xz --output vectors.npy
    python examples/encode_corpus.py --model_name_or_path DIR --texts 'corpus/*.parquet' --id_column id \\
        --output vectors.parquet --num_processes 8 --threads 4

The same command resumes an interrupted run and writes the same bytes as an uninterrupted one. Row n of the output is
row n of the corpus; a row that cannot be read has a vector of NaN and is listed in the report, `OUTPUT.json`. A run
needs disk space for its vectors twice.
"""

import argparse
import glob
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging

import modeling_magnet
from examples.command_line import OneLineParser, check, start
from examples.corpus.encoding import EncodingOptions, ModelFacts, complaints_about, inspect_model
from examples.corpus.ray_engine import encode_on_ray, import_ray
from examples.corpus.reading import ChunkStream, Corpus, open_corpus
from examples.corpus.workers import encode_here
from examples.corpus.writing import SUFFIXES, PartsFolder, merge_parts
from trainer.whole_files import whole_file

ENGINES = {"local": encode_here, "ray": encode_on_ray}
COMPLAINTS_TOLD = 20
COUNTED_FIRST = 0.5  # seconds that the bar waits for the number of rows
_EXISTS = "`output` {!r} exists already. Choose another, or move it away."


@dataclass(frozen=True, kw_only=True)
class CorpusArguments:
    """Which texts, and where the vectors go."""

    texts: list[str] = field(
        metadata={"help": "Files (.txt, .jsonl, .parquet, .csv, also .gz and .xz), folders, globs, or one Hub id."}
    )
    output: str = field(metadata={"help": "The file of vectors: .npy, or .parquet with row numbers and ids."})
    text_column: str = field(default="text", metadata={"help": "Column of the texts."})
    id_column: str | None = field(default=None, metadata={"help": "Column to keep in a .parquet output, as text."})
    split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub dataset."})
    limit: int | None = field(default=None, metadata={"help": "Read this many rows at most."})
    chunk_size: int = field(default=4096, metadata={"help": "Rows that are encoded, and kept, together."})
    num_processes: int = field(default=1, metadata={"help": "Processes, each with a model; one a GPU."})
    engine: str = field(default="local", metadata={"help": "local: this machine; ray: the cluster of RAY_ADDRESS."})


class CorpusFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Help with the docstring as it is and the default of each option."""


class CorpusParser(OneLineParser, HfArgumentParser):
    """The options of the dataclasses; a wrong one is one line."""


def parse_arguments(arguments: list[str]) -> tuple[CorpusArguments, EncodingOptions]:
    """Read the command line."""
    parser = CorpusParser((EncodingOptions, CorpusArguments), description=__doc__, formatter_class=CorpusFormatter)
    options, corpus = parser.parse_args_into_dataclasses(arguments)
    return corpus, options


def choose_threads(options: EncodingOptions, *, num_processes: int, parts: PartsFolder) -> EncodingOptions:
    """Fill in the number of threads: given, as in the run that goes on, or an equal share."""
    if options.threads is not None:
        return options
    share = max(1, torch.get_num_threads() // num_processes)
    return replace(options, threads=parts.begun_with("threads") or share)


def check_arguments(arguments: CorpusArguments, options: EncodingOptions) -> None:
    """Refuse values out of range and contradictions before anything is read."""
    complaints = [*_about_output(arguments), *_about_inputs(arguments, options)]
    for name in ("chunk_size", "num_processes"):
        if getattr(arguments, name) < 1:
            complaints.append(f"`{name}` is {getattr(arguments, name)}; pass 1 or more.")
    if arguments.engine not in ENGINES:
        complaints.append(f"`engine` is {arguments.engine!r}; pass one of {list(ENGINES)}.")
    check(complaints)


def _about_output(arguments: CorpusArguments) -> Iterator[str]:
    """Yield what is in the way of writing the output."""
    output = Path(arguments.output)
    report, is_begun = _report_of(output), PartsFolder(output).path.exists()
    if output.suffix not in SUFFIXES:
        yield f"`output` is {arguments.output!r}; its name must end in {' or '.join(SUFFIXES)}."
    if output.is_dir():
        yield f"`output` {arguments.output!r} is a folder; name a file."
    elif output.exists() and not is_begun:
        yield _EXISTS.format(arguments.output)
    elif report.exists() and not (output.exists() and is_begun):
        yield f"{str(report)!r} exists already, where the report is to stand. Choose another output, or move it away."
    if arguments.id_column is not None and output.suffix == ".npy":
        yield f"`id_column` is {arguments.id_column!r}, but a .npy file has no room for ids. Write .parquet."


def _about_inputs(arguments: CorpusArguments, options: EncodingOptions) -> Iterator[str]:
    """Yield which inputs would change with what is written: a run that was killed late could never go on."""
    output, parts = Path(arguments.output), PartsFolder(Path(arguments.output))
    written = [output, _report_of(output), *(parts.path / f"0{suffix}" for suffix in (".json", ".npy"))]
    for source in arguments.texts:
        path = Path(source).expanduser()
        inside = path.is_dir() and output.resolve().is_relative_to(path.resolve())
        if inside or any(_is_matched(file, str(path)) for file in written):
            yield (
                f"`output` {arguments.output!r} lies in {source!r}, which is read as texts, or its report does. Write "
                "it elsewhere."
            )
    model = Path(options.model_name_or_path)
    if model.is_dir() and output.resolve().is_relative_to(model.resolve()):
        yield f"`output` {arguments.output!r} lies in the folder of the model, {str(model)!r}. Write it elsewhere."


def _report_of(output: Path) -> Path:
    """Return where the report of an output stands."""
    return output.with_name(output.name + ".json")


def _is_matched(file: Path, pattern: str) -> bool:
    """Return whether a glob pattern would find a file, if it were there."""

    def agree(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
        if not patterns:
            return not names
        if patterns[0] == "**":
            return any(agree(names[start:], patterns[1:]) for start in range(len(names) + 1))
        return bool(names) and fnmatchcase(names[0], patterns[0]) and agree(names[1:], patterns[1:])

    absolute = os.path.normpath(os.path.join(glob.escape(os.getcwd()), pattern))
    return any(agree(Path(path).parts, Path(absolute).parts) for path in (os.path.abspath(file), file.resolve()))


def describe_run(arguments: CorpusArguments, options: EncodingOptions, corpus: Corpus, facts: ModelFacts) -> dict:
    """Return all that the output's bytes depend on, which excludes how many processes write it, and where."""
    left_out = ("num_processes", "engine", "output")
    chosen = {name: value for name, value in vars(arguments).items() if name not in left_out}
    return {
        **{f"`{name}`": value for name, value in {**chosen, **asdict(options)}.items()},
        **corpus.origin.fingerprint(),
        **facts.files,
        "the model's revision": facts.revision,
        "the device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **{f"the version of {name}": version for name, version in _versions().items()},
    }


def _versions() -> dict[str, str]:
    """Return versions of what computes."""
    libraries = (modeling_magnet, np, torch, transformers)
    return {library.__name__: library.__version__ for library in libraries}


@contextmanager
def progress(corpus: Corpus, *, done: int) -> Iterator[tuple[tqdm, Callable[[int], None]]]:
    """Show a bar over the rows of a corpus; where their number is unknown, a thread counts them."""
    ended, counted = threading.Event(), [corpus.count()]
    counter = threading.Thread(
        target=lambda: counted.append(corpus.count_by_reading(lambda: not ended.is_set())), daemon=True
    )
    if counted[-1] is None:
        counter.start()
        counter.join(COUNTED_FIRST)
    with tqdm(desc="Encoding", unit="row", initial=done, total=counted[-1], mininterval=0.5) as bar:

        def tell(number: int) -> None:
            """Advance the bar."""
            bar.total = counted[-1]
            bar.update(number)

        try:
            yield bar, tell
        finally:
            ended.set()
            if counter.ident is not None:
                counter.join()


def encode_missing(
    corpus: Corpus, parts: PartsFolder, arguments: CorpusArguments, options: EncodingOptions, facts: ModelFacts
) -> list[int]:
    """Encode and keep the chunks that are not there yet.

    Raises:
        RuntimeError: the chunks do not make up the corpus.
    """
    rows = parts.finished()
    stream = ChunkStream(corpus, arguments.chunk_size, skip=frozenset(rows))
    total = None
    encode = partial(ENGINES[arguments.engine], stream, options, facts, num_processes=arguments.num_processes)
    with progress(corpus, done=sum(rows.values())) as (bar, tell), closing(encode(tell=tell)) as encoded:
        told = 0
        for chunk, vectors in encoded:
            if not chunk.num_rows:
                total = chunk.first_row
                continue
            tell(len(chunk.complaints))  # rows without a text, which no batch has
            chunk.complaints.extend(complaints_about(chunk, vectors))
            parts.write(chunk, vectors)
            rows[chunk.index] = chunk.num_rows
            for complaint in chunk.complaints[: max(0, COMPLAINTS_TOLD - told)]:
                place = "" if complaint.file is None else f" ({complaint.file}, line {complaint.line})"
                bar.write(f"Row {complaint.row}{place}: {complaint.reason}", file=sys.stderr)
            told += len(chunk.complaints)
    if sorted(rows) != list(range(len(rows))) or sum(rows.values()) != total:
        raise RuntimeError(f"{len(rows)} chunks of {sum(rows.values())} rows are there, but {total} rows were read.")
    return [rows[index] for index in range(len(rows))]


def describe_result(
    parts: PartsFolder, rows: list[int], arguments: CorpusArguments, options: EncodingOptions, facts: ModelFacts
) -> dict[str, Any]:
    """Return what the report holds, but for the time it took."""
    corrupt = [complaint._asdict() for index in range(len(rows)) for complaint in parts.complaints(index)]
    return {
        "rows": sum(rows),
        "corrupt_rows": len(corrupt),
        "width": facts.width,
        "dtype": facts.dtype,
        "model": options.model_name_or_path,
        "revision": facts.revision,
        "prompt": facts.prompt,
        "pooling": facts.pooling,
        "arguments": {**asdict(arguments), **asdict(options)},
        "versions": _versions(),
        "corrupt": corrupt,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Embed a corpus."""
    started = time.perf_counter()
    chosen, options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    check_arguments(chosen, options)
    if chosen.engine == "ray":
        import_ray()
    logging.disable_progress_bar()  # of reading weights, which would stand among the rows
    corpus = open_corpus(
        chosen.texts,
        text_column=chosen.text_column,
        id_column=chosen.id_column,
        split=chosen.split,
        config_name=chosen.dataset_config,
        limit=chosen.limit,
    )
    facts = inspect_model(options)
    parts = PartsFolder(Path(chosen.output))
    options = choose_threads(options, num_processes=chosen.num_processes, parts=parts)
    run = describe_run(chosen, options, corpus, facts)
    draft, report_file = parts.path / "report.json", _report_of(parts.output)
    with parts.opened(run) as known:
        if not parts.output.exists():
            before = sum(parts.finished().values())
            rows = encode_missing(corpus, parts, chosen, options, facts)
            if not corpus.origin.fingerprint().items() <= run.items():
                raise ValueError(
                    f"The corpus {chosen.texts} was changed while it was read. Delete {str(parts.path)!r} and start "
                    "again."
                )
            seconds, encoded = time.perf_counter() - started, sum(rows) - before
            timing = {"seconds": seconds, "rows_encoded": encoded, "rows_per_second": encoded / seconds}
            with whole_file(draft) as file:
                report = {**describe_result(parts, rows, chosen, options, facts), **timing}
                file.write((json.dumps(report, indent=1) + "\n").encode())
            merge_parts(parts, rows, width=facts.width, dtype=facts.dtype, with_ids=chosen.id_column is not None)
        elif not known or not (draft.exists() or report_file.exists()):
            raise ValueError(f"{_EXISTS.format(chosen.output)} Its work folder {str(parts.path)!r} is not its own.")
        # What is left to do when a run is killed from here on is done by the next.
        if draft.exists():
            os.replace(draft, report_file)
        parts.remove()
    report = json.loads(report_file.read_bytes())
    if report["corrupt_rows"]:
        print(
            f"{report['corrupt_rows']:,} of {report['rows']:,} rows could not be encoded; they are listed in "
            f"{report_file}",
            file=sys.stderr,
        )
    print(f"encode_corpus: OK ({parts.output}; {report['rows']:,} rows; {report['seconds']:.0f} s)", flush=True)
    return report


if __name__ == "__main__":
    start(main)
