"""Run each benchmark at the size of 7B on a GPU, and compare the figures with their targets.

    python examples/benchmarks/on_gpu.py --model DIR --texts FILE --pairs FILE

Random weights of that shape are written once, with the tokenizer of the model; values do not change speed. Each
benchmark runs in its own process, compares results before it times, and writes its own JSON; one that fails or takes
too long has no figure in the table. Planned for 10 minutes on one H200: a step of 32 rows of 512 tokens at 55 % of 790
TFLOP/s takes 1.1 seconds, compiling a layer half a minute.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers

from examples.benchmarks.measuring import PAPER_STEPS, SHAPES, machine, random_llama
from examples.benchmarks.training_systems import COMPILED, JOINT, MNTP, ROWS
from examples.command_line import (
    OneLineParser,
    add_device,
    add_dtype,
    add_model,
    at_least,
    choose_device,
    require_extra,
    start,
)
from trainer.files import write_json

HERE = Path(__file__).parent
Report = dict[str, Any]


class Target(NamedTuple):
    """Compare a figure of a benchmark with its minimum; `None` if there is no target."""

    what: str
    at_least: float | None
    figure: Callable[[Report], float]


def training_share(report: Report, system: str) -> float:
    """Return the necessary operations per second of a training step, over the rate of a matrix product."""
    seconds = statistics.median(report["seconds"][system])
    return float(report["floor_flop"][system] / report["matrix_flop_per_second"] / seconds)


def recipes_an_hour(report: Report, end: str) -> float:
    """Return how many runs with the steps of the paper's recipe fit into an hour."""
    steps = zip(PAPER_STEPS, (ROWS, JOINT), strict=True)
    return 3600 / sum(number * statistics.median(report["seconds"][system + end]) for number, system in steps)


def encoding_share(report: Report) -> float:
    """Return the operations per second of `encode`, padding excluded, over the rate of a matrix product."""
    seconds = statistics.median(report["seconds"]["encode"])
    return float(report["floor_flop"] / report["matrix_flop_per_second"] / seconds)


def decoding_share(report: Report) -> float:
    """Return the bytes per second that decoding has to read, over the rate of a large copy."""
    return float(report["ratios"]["share of the copying rate"]["median"])


TRAINING = [
    Target("rows of MNTP and MSG: share of a large product's rate", 0.55, lambda r: training_share(r, ROWS)),
    Target("rows of MNTP and MSG, compiled: share", 0.55, lambda r: training_share(r, ROWS + COMPILED)),
    Target("joint step: share", None, lambda r: training_share(r, JOINT)),
    Target("joint step, compiled: share", None, lambda r: training_share(r, JOINT + COMPILED)),
    Target("runs of the paper's recipe an hour", 1 / 1.5, lambda r: recipes_an_hour(r, "")),
    Target("runs of the paper's recipe an hour, compiled", 1 / 1.5, lambda r: recipes_an_hour(r, COMPILED)),
    Target("tokens/s of MNTP alone over the joint step's", None, lambda r: r["ratios"][f"{MNTP} over {JOINT}"]),
]
DECODING = [Target("decoding, batch 1: share of the copying rate", 0.7, decoding_share)]
ENCODING = [
    Target("encode, mixed lengths: share of a large product's rate", 0.6, encoding_share),
    Target("encode over sentence-transformers, its default batch size", None, lambda r: r["ratio_default"]),
    Target("encode over sentence-transformers, its best", None, lambda r: r["ratio_best"]),
]


def benchmarks(args: argparse.Namespace) -> list[tuple[str, str, list[str], list[Target]]]:
    """Return script, file suffix, options and targets of each benchmark, the most important first."""
    step = ["--texts", args.texts, "--pairs", args.pairs, "--torch_compile_backend", args.torch_compile_backend]
    step += ["--bf16", "--contrastive_recompute", "--batch_size", str(args.batch_size), "--rounds", "5"]
    encode = ["--texts", args.texts, "--limit", str(args.limit), "--rounds", "3", "--batch_sizes", "32", "128"]
    flex = [target._replace(what=f"flex attention, {target.what}", at_least=None) for target in TRAINING[:2]]
    asked = [
        ("training_step", "", [*step, "--systems", JOINT, ROWS, MNTP], TRAINING),
        ("infill_decoding", "", ["--rounds", "5"], DECODING),
        ("encoding_throughput", "", encode, ENCODING),
        ("training_step", "_flex", [*step, "--systems", ROWS, "--attn_implementation", "flex_attention"], flex),
    ]
    return asked if args.device == "cuda" else asked[:-1]  # flex attention has a backward pass only on CUDA


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="directory or Hub id of the model whose tokenizer is used")
    parser.add_argument("--texts", required=True, help="texts with paragraphs")
    parser.add_argument("--pairs", required=True, help="pairs of texts")
    parser.add_argument("--shape", choices=list(SHAPES), default="7b", help="shape of the random weights")
    parser.add_argument("--batch_size", type=at_least(), default=32, help="rows per step")
    parser.add_argument("--limit", type=at_least(), default=1000, help="texts to embed")
    parser.add_argument("--torch_compile_backend", default="inductor", help="back-end that compiles the layers")
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(dtype="bfloat16")
    parser.add_argument("--seconds", type=float, default=560, help="for all of it")
    parser.add_argument("--name", default="gpu", help="how the names of the JSON files begin")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="output folder")
    args = parser.parse_args(arguments)
    require_extra("eval", "sentence_transformers")
    args.device = choose_device(args.device)
    return args


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run all benchmarks, print the table, and write it.

    Raises:
        SystemExit: If a figure that has a target is missing.
    """
    args = parse_arguments(arguments)
    started = time.monotonic()
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
        path = random_llama(args.shape, tokenizer, Path(folder) / "random", dtype=getattr(torch, args.dtype))
        print(f"weights of {args.shape} written after {time.monotonic() - started:.0f} s", flush=True)
        for script, end, options, targets in benchmarks(args):
            name = f"{args.name}_{script}{end}"
            call = [sys.executable, str(HERE / f"{script}.py"), "--model", path, "--device", args.device]
            call += ["--dtype", args.dtype, "--name", name, "--results", str(args.results), *options]
            left = args.seconds - (time.monotonic() - started)
            report = run(call, seconds=left, file=args.results / f"{name}.json")
            print(f"{name} ended after {time.monotonic() - started:.0f} s in all", flush=True)
            for target in targets:
                figure = None if report is None else target.figure(report)
                row = {"what": target.what, "at_least": target.at_least, "figure": figure}
                table.append({**row, "file": f"{name}.json"})
    print_table(table)
    file = args.results / f"{args.name}_all.json"
    whole = {"table": table, "seconds": time.monotonic() - started, "shape": args.shape}
    write_json(file, {**whole, **machine(torch.device(args.device), dtype=args.dtype)})
    missing = [row["what"] for row in table if row["at_least"] is not None and row["figure"] is None]
    if missing:
        raise SystemExit(f"There is no figure for: {'; '.join(missing)}.")
    print(f"on_gpu: OK ({file.name})")
    return table


def run(call: list[str], *, seconds: float, file: Path) -> Report | None:
    """Run a benchmark and return its report; return `None` if it fails or exceeds the remaining time."""
    file.unlink(missing_ok=True)  # left by an earlier run
    if seconds <= 0:
        print(f"{file.stem}: no time was left for it", flush=True)
        return None
    try:
        # The benchmark prints to this terminal; its progress bars would hide the other output.
        ended = subprocess.run(call, timeout=seconds, stderr=subprocess.PIPE, text=True, check=False)
    except subprocess.TimeoutExpired:
        print(f"{file.stem} was ended after {seconds:.0f} s", flush=True)
        return None
    if ended.returncode or not file.is_file():
        print(f"{file.stem} failed:\n{ended.stderr[-3000:]}", flush=True)
        return None
    report: Report = json.loads(file.read_text(encoding="utf-8"))
    return report


def print_table(table: list[dict[str, Any]]) -> None:
    """Print the figures beside their targets."""
    print(f"\n{'':68s}{'at least':>10s}{'figure':>10s}")
    for row in table:
        target = "" if row["at_least"] is None else f"{row['at_least']:.2f}"
        figure = "not run" if row["figure"] is None else f"{row['figure']:.3f}"
        print(f"{row['what']:68s}{target:>10s}{figure:>10s}")


if __name__ == "__main__":
    start(main)
