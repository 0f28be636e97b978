"""Check a plain decoder, a MAGNET checkpoint or an adapter, and print a table of what passes and what fails.

    python examples/doctor.py --model outputs/mine
    python examples/doctor.py --model outputs/mine --trust_remote_code --backends sdpa flex_attention

Checks that the model opens, that each token attends to what its mode allows, that vectors and fills do not depend on
the batch, that adapters merge, that the tokenizer fits, that saving and loading changes no bit, and that code and
sidecars are those of this library. The model is not changed; copies for comparison are written to the
folder for temporary files, which needs space for the weights twice.

Exit code: 0 when nothing failed, 1 when something did, 2 when the model cannot be opened.
"""

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from transformers.utils import logging as transformers_logging

from examples.checkup.files import file_findings, tokenizer_findings
from examples.checkup.findings import Finding, examine, in_one_line
from examples.checkup.invariance import embedder_findings, encode_findings, infill_findings
from examples.checkup.leaks import leak_findings, padding_findings
from examples.checkup.opening import Opened, open_model, opening_findings
from examples.checkup.round_trip import adapter_mode_findings, merge_findings, round_trip_findings
from examples.command_line import OneLineParser, add_device, add_model, choose_device, start
from modeling_magnet.configuration_magnet import MODES
from modeling_magnet.masking_magnet import MASKED_BACKENDS
from trainer.files import write_json

DTYPES = ("auto", "float32", "bfloat16", "float16")
MARKS = {"pass": "pass", "fail": "FAIL", "not applicable": "n/a"}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="directory or Hub id of a decoder, checkpoint or adapter")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="dtype of the weights; as stored if auto")
    add_device(parser)
    parser.add_argument(
        "--backends",
        nargs="+",
        default=["eager", "sdpa"],
        choices=MASKED_BACKENDS,
        help="attention back-ends in which to look for leaks; flex_attention compiles for a minute on a CPU",
    )
    parser.add_argument("--output", type=Path, help="JSON file to write the results to, too")
    parser.add_argument("--gguf_file", help="the GGUF file there that holds the model")
    parser.add_argument("--revision", help="commit, tag or branch of a Hub id")
    parser.add_argument("--mask_token", help="for a plain decoder whose vocabulary has no underscore")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the model's own files, not the package")
    args = parser.parse_args(arguments)
    args.backends = list(dict.fromkeys(args.backends))
    return args


def open_named(args: argparse.Namespace) -> Opened:
    """Open the model named on the command line."""
    try:
        return open_model(
            args.model,
            dtype=args.dtype,
            device=args.device,
            revision=args.revision,
            gguf_file=args.gguf_file,
            mask_token=args.mask_token,
            trust_remote_code=args.trust_remote_code,
        )
    except Exception as error:  # code and files of third parties may raise anything
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        hint = " Here: `--mask_token`." if "`mask_token`" in str(error) and args.mask_token is None else ""
        raise ValueError(f"{args.model!r} cannot be opened: {kind}{in_one_line(error)}{hint}") from error


def plan(
    opened: Opened, folder: Path, args: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Iterable[Finding]]]]:
    """Yield all checks in order, each with the name of the row that it fails as."""
    model = opened.model
    yield "opens", partial(opening_findings, opened, trust_remote_code=args.trust_remote_code)
    yield "tokenizer", partial(tokenizer_findings, model)
    for backend in args.backends:
        for mode in MODES:
            yield f"leaks, {mode}, {backend}", partial(leak_findings, model, mode, backend)
        yield f"padding, {backend}", partial(padding_findings, model, backend)
    yield "encode, batch invariance", partial(encode_findings, model)
    yield "infill, batch invariance", partial(infill_findings, model)
    yield "adapter, merged", partial(merge_findings, model, folder)
    yield "adapter, causal mode is the base", partial(adapter_mode_findings, model, opened.base)
    yield "saved and loaded", partial(round_trip_findings, model, folder)
    yield "files", partial(file_findings, opened)
    yield "sentence-transformers", partial(embedder_findings, opened)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and progress bars of libraries; problems have rows of their own."""
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def describe(opened: Opened, findings: list[Finding], args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Return the results as JSON values."""
    return {
        "model": Path(args.model).name if Path(args.model).is_dir() else args.model,
        "kind": opened.kind,
        "class": type(opened.model).__name__,
        "arguments": {name: value for name, value in vars(args).items() if name not in ("model", "output")},
        "counts": dict(Counter(finding.outcome for finding in findings)),
        "findings": [asdict(finding) for finding in findings],
        "opening_seconds": round(opened.seconds, 1),
        "seconds": round(seconds, 1),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def summary(args: argparse.Namespace, findings: list[Finding], seconds: float) -> str:
    """Return the last line."""
    counts = Counter(finding.outcome for finding in findings)
    totals = f"{args.model}; {counts['pass']} passed, {counts['not applicable']} not applicable; {seconds:.0f} s"
    failed = [finding.name for finding in findings if finding.outcome == "fail"]
    return f"doctor: {len(failed)} FAILED ({totals}): {'; '.join(failed)}" if failed else f"doctor: OK ({totals})"


def main(arguments: list[str] | None = None) -> int:
    """Check the named model and return the exit code."""
    args = parse_arguments(arguments)
    args.device = choose_device(args.device)
    started = time.monotonic()
    findings = []
    with quiet(), tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        opened = open_named(args)
        for name, check in plan(opened, Path(folder), args):
            for finding in examine(name, check):
                print(f"{MARKS[finding.outcome]:5s} {finding.name:36s} {finding.detail}", flush=True)
                findings.append(finding)
    seconds = time.monotonic() - started
    if args.output is not None:
        write_json(args.output, describe(opened, findings, args, seconds))
    print(summary(args, findings, seconds))
    return int(any(finding.outcome == "fail" for finding in findings))


if __name__ == "__main__":
    start(lambda: sys.exit(main()))
