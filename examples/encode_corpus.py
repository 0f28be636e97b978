"""Embed a corpus of any size into one file of vectors, which appears whole or not at all.

    python examples/encode_corpus.py --model_name_or_path DIR --texts corpus.jsonl.xz --output vectors.npy
    python examples/encode_corpus.py --model_name_or_path DIR --texts 'corpus/*.parquet' --id_column id \\
        --output vectors.parquet --num_processes 8 --threads 4

The same command resumes an interrupted run and writes the same bytes as an uninterrupted one. Row n of the output is
row n of the corpus; a row that cannot be read has a vector of NaN and is listed in the report, `OUTPUT.json`. A run
needs disk space for its vectors twice.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers.utils import logging

import modeling_magnet
from examples.command_line import OneLineParser, add_dtype, add_model, at_least, raise_complaints, start
from examples.corpus.encoding import ModelFacts, complaints_about, inspect_model
from examples.corpus.reading import Corpus, describe_files, open_corpus
from examples.corpus.workers import encode_chunks
from examples.corpus.writing import SUFFIXES, WorkFolder, merge_parts
from modeling_magnet.configuration_magnet import POOLINGS
from modeling_magnet.masking_magnet import MASKED_BACKENDS
from trainer.files import write_json

MAX_PRINTED_COMPLAINTS = 20
# The only arguments that do not affect the bytes of the output.
NOT_RECORDED = ("num_processes", "output")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; the options of encoding are those of `encode`."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="directory or Hub id of a MAGNET checkpoint, or of a plain decoder")
    parser.add_argument(
        "--texts",
        nargs="+",
        required=True,
        help="files (.txt, .jsonl, .parquet, .csv, also compressed), folders, globs",
    )
    parser.add_argument("--output", type=Path, required=True, help="file of vectors, .npy or .parquet")
    parser.add_argument("--text_column", default="text", help="column of the text")
    parser.add_argument("--id_column", help="column to keep in a .parquet output, as text")
    parser.add_argument("--limit", type=at_least(), help="rows, from the first on")
    parser.add_argument("--chunk_size", type=at_least(), default=4096, help="rows that are encoded and kept together")
    parser.add_argument("--num_processes", type=at_least(), default=1, help="processes with a model each, one a GPU")
    parser.add_argument("--threads", type=at_least(), help="CPU threads per process; affects the last bits of vectors")
    add_dtype(parser)
    parser.add_argument(
        "--output_dtype", default="float32", choices=["float32", "float16"], help="dtype of the stored vectors"
    )
    parser.add_argument("--attn_implementation", choices=MASKED_BACKENDS, help="back-end; the model's own if left out")
    parser.add_argument("--prompt", help="instruction before each text; '' for none")
    parser.add_argument("--prompt_name", help="name of an instruction stored with the model")
    parser.add_argument("--pooling", choices=POOLINGS, help="by default the model's own")
    parser.add_argument("--normalize_embeddings", action="store_true", help="scale each vector to unit length")
    parser.add_argument("--truncate_dim", type=at_least(), help="dimensions to keep")
    parser.add_argument("--max_length", type=at_least(3), help="tokens of the longest row")
    parser.add_argument("--batch_tokens", type=at_least(), help="tokens of a forward, padding included")
    args = parser.parse_args(arguments)
    args.threads = args.threads or max(1, torch.get_num_threads() // args.num_processes)
    return args


def check_output(args: argparse.Namespace, folder: WorkFolder) -> None:
    """Refuse an output that cannot be written, would overwrite something, or lies among the inputs."""
    complaints = []
    output = args.output
    if output.suffix not in SUFFIXES:
        complaints.append(f"`--output` is {str(output)!r}; its name must end in {' or '.join(SUFFIXES)}.")
    existing = [str(file) for file in (output, folder.report) if file.exists()]
    if existing and (output.is_dir() or not folder.is_begun()):
        complaints.append(f"`--output` would replace {', '.join(existing)}. Choose another, or move it away.")
    if args.id_column is not None and output.suffix == ".npy":
        complaints.append(f"`--id_column` is {args.id_column!r}, but a .npy file has no ids. Write .parquet.")
    # An output in an input folder would add itself to the inputs of a resumed run.
    for source in (*args.texts, args.model):
        if Path(source).is_dir() and output.resolve().is_relative_to(Path(source).resolve()):
            complaints.append(f"`--output` {str(output)!r} is in {source!r}, which is read. Write it elsewhere.")
    raise_complaints(complaints)


def describe_run(args: argparse.Namespace, corpus: Corpus, facts: ModelFacts) -> dict[str, Any]:
    """Return everything that the output's bytes depend on."""
    return {
        **{f"`{name}`": value for name, value in vars(args).items() if name not in NOT_RECORDED},
        **describe_files(corpus.files),
        **facts.files,
        "the model's revision": facts.revision,
        "the device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **{f"the version of {name}": version for name, version in _versions().items()},
    }


def _versions() -> dict[str, str]:
    libraries = (modeling_magnet, np, torch, transformers)
    return {library.__name__: library.__version__ for library in libraries}


def encode_missing(corpus: Corpus, folder: WorkFolder, args: argparse.Namespace, facts: ModelFacts) -> int:
    """Encode and save the missing chunks, and return the number of their rows."""
    done = sum(row["rows"] for row in folder.chunks.values())
    chunks = corpus.chunks(args.chunk_size, skip=frozenset(folder.chunks))
    encoded = printed = 0
    with tqdm(desc="Encoding", unit="row", initial=done, total=corpus.count(), mininterval=0.5) as bar:
        with closing(encode_chunks(chunks, args, facts)) as results:
            for chunk, vectors in results:
                chunk.complaints.extend(complaints_about(chunk, vectors))
                folder.keep(chunk, vectors)
                encoded += chunk.num_rows
                bar.update(chunk.num_rows)
                for complaint in chunk.complaints[: max(0, MAX_PRINTED_COMPLAINTS - printed)]:
                    place = "" if complaint.file is None else f" ({complaint.file}, line {complaint.line})"
                    bar.write(f"Row {complaint.row}{place}: {complaint.reason}", file=sys.stderr)
                printed += len(chunk.complaints)
    return encoded


def describe_result(folder: WorkFolder, args: argparse.Namespace, facts: ModelFacts) -> dict[str, Any]:
    """Return the contents of the report except times."""
    corrupt = list(_corrupt_rows(folder))
    return {
        "rows": folder.num_rows,
        "corrupt_rows": len(corrupt),
        "width": facts.width,
        "dtype": args.output_dtype,
        "model": args.model,
        "revision": facts.revision,
        "prompt": facts.prompt,
        "pooling": facts.pooling,
        "arguments": {name: str(value) if name == "output" else value for name, value in vars(args).items()},
        "versions": _versions(),
        "corrupt": corrupt,
    }


def _corrupt_rows(folder: WorkFolder) -> Iterator[dict[str, Any]]:
    for _, chunk in sorted(folder.chunks.items()):
        for row, file, line, reason in chunk["complaints"]:
            yield {"row": row, "file": file, "line": line, "reason": reason}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Embed a corpus."""
    started = time.perf_counter()
    args = parse_arguments(arguments)
    folder = WorkFolder(args.output)
    check_output(args, folder)
    logging.disable_progress_bar()  # hides the bar of reading weights, which would interrupt the bar of rows
    corpus = open_corpus(args.texts, text_column=args.text_column, id_column=args.id_column, limit=args.limit)
    facts = inspect_model(args)
    run = describe_run(args, corpus, facts)
    encoded = 0
    with folder.opened(run):
        # The output exists, so an earlier run was killed before it removed the folder.
        if not args.output.exists():
            encoded = encode_missing(corpus, folder, args, facts)
            if not describe_files(corpus.files).items() <= run.items():
                raise ValueError(
                    f"The corpus {args.texts} was changed while it was read. Delete {str(folder.path)!r}, start again."
                )
            merge_parts(folder, width=facts.width, dtype=args.output_dtype, with_ids=args.id_column is not None)
        seconds = time.perf_counter() - started
        timing = {"seconds": seconds, "rows_encoded": encoded, "rows_per_second": encoded / seconds}
        report = {**describe_result(folder, args, facts), **timing}
        write_json(folder.report, report)
        folder.remove()
    if report["corrupt_rows"]:
        print(
            f"{report['corrupt_rows']:,} of {report['rows']:,} rows could not be encoded; they are listed in "
            f"{folder.report}",
            file=sys.stderr,
        )
    print(f"encode_corpus: OK ({args.output}; {report['rows']:,} rows; {seconds:.0f} s)", flush=True)
    return report


if __name__ == "__main__":
    start(main)
