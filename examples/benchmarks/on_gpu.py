"""All that is asked of a GPU, in one command: each benchmark at the size of 7B, and a table of bars and figures.

    python examples/benchmarks/on_gpu.py --model DIR --texts FILE --pairs FILE --pair_label_column COLUMN

Random weights of that shape are written once, with the tokenizer of the model; values do not change speed. Each
benchmark runs in a process of its own, compares before it times, and writes its own JSON; one that fails or takes too
long leaves a line in the table. Within 10 minutes on one H200 by plan: a step of 32 rows of 512 tokens at 55 % of 790
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

# A script finds its own folder alone.
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
    also,
    at_least,
    choose_device,
    need,
    start,
)
from trainer.whole_files import write_json

HERE = Path(__file__).parent
Report = dict[str, Any]


class Bar(NamedTuple):
    """What is asked of a benchmark."""

    what: str
    at_least: float | None  # None: to be known
    figure: Callable[[Report], float]


def share_of_the_floor(report: Report, system: str) -> float:
    """Operations that a step cannot do without, per second, over those of a large matrix product."""
    seconds = statistics.median(report["seconds"][system])
    return float(report["floor_flop"][system] / report["matrix_flop_per_second"] / seconds)


def recipes_an_hour(report: Report, end: str) -> float:
    """How many runs of as many steps as the paper's fit into an hour."""
    steps = zip(PAPER_STEPS, (ROWS, JOINT), strict=True)
    return 3600 / sum(number * statistics.median(report["seconds"][system + end]) for number, system in steps)


def encoding_share(report: Report) -> float:
    """The same for the batches of `encode`."""
    seconds = statistics.median(report["seconds"]["encode"])
    return float(report["floor_flop"] / report["matrix_flop_per_second"] / seconds)


def copying_share(report: Report) -> float:
    """Bytes that a decoding step has to read, per second, over those of a large copy."""
    return float(report["ratios"]["share of the copying rate"]["median"])


TRAINING = [
    Bar("rows of MNTP and MSG: share of a large product's rate", 0.55, lambda r: share_of_the_floor(r, ROWS)),
    Bar("rows of MNTP and MSG, compiled: share", 0.55, lambda r: share_of_the_floor(r, ROWS + COMPILED)),
    Bar("joint step: share", None, lambda r: share_of_the_floor(r, JOINT)),
    Bar("joint step, compiled: share", None, lambda r: share_of_the_floor(r, JOINT + COMPILED)),
    Bar("runs of the paper's recipe an hour", 1 / 1.5, lambda r: recipes_an_hour(r, "")),
    Bar("runs of the paper's recipe an hour, compiled", 1 / 1.5, lambda r: recipes_an_hour(r, COMPILED)),
    Bar(
        "tokens/s of MNTP alone over the joint step's, at most 1.5",
        None,
        lambda r: r["ratios"][f"{MNTP} over {JOINT}"],
    ),
]
DECODING = [Bar("decoding, batch 1: share of the copying rate", None, copying_share)]
ENCODING = [
    Bar("encode, mixed lengths: share of a large product's rate", 0.6, encoding_share),
    Bar("encode over sentence-transformers, its default batch size", None, lambda r: r["ratio_default"]),
    Bar("encode over sentence-transformers, its best", None, lambda r: r["ratio_best"]),
]


def benchmarks(args: argparse.Namespace) -> list[tuple[str, list[str], list[Bar]]]:
    """Names of the benchmarks, what to call them with, and their bars; the most wanted first."""
    data = ["--texts", args.texts]
    pairs = ["--pairs", args.pairs]
    pairs += ["--pair_label_column", args.pair_label_column] if args.pair_label_column else []
    compiled = ["--compiler", args.compiler]
    step = [*data, *pairs, *compiled, "--autocast", "--recompute", "--batch_size", str(args.batch_size)]
    asked = [
        ("training_step", [*step, "--rounds", "5", "--systems", JOINT, ROWS, MNTP], TRAINING),
        ("infill_decoding", ["--rounds", "5"], DECODING),
        ("encoding_throughput", [*data, "--rounds", "3", "--number", str(args.number), "--batch_sizes", "32", "128"],
         ENCODING),
        ("training_step", [*step, "--rounds", "5", "--systems", ROWS, "--attn_implementation", "flex_attention"],
         [bar._replace(what=f"flex attention, {bar.what}", at_least=None) for bar in TRAINING[:2]]),
    ]  # fmt: skip
    return asked if args.device == "cuda" else asked[:-1]  # elsewhere flex attention has no backward pass


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run all, print the table, write it."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="directory or Hub id of the model whose tokenizer is used")
    parser.add_argument("--texts", required=True, help="texts with paragraphs")
    parser.add_argument("--pairs", required=True, help="pairs of texts")
    parser.add_argument("--pair_label_column", help="1 where the two are paraphrases")
    parser.add_argument("--shape", choices=list(SHAPES), default="7b", help="of the random weights")
    parser.add_argument("--batch_size", type=at_least(), default=32, help="rows of a training step")
    parser.add_argument("--number", type=at_least(), default=1000, help="texts to embed")
    parser.add_argument("--compiler", default="inductor", help="of layers")
    add_device(parser, default="cuda")
    add_dtype(parser, default="bfloat16")
    action = parser.add_argument("--seconds", type=float, default=560, help="for all of it")
    also(parser, action, "--limit")
    parser.add_argument("--name", default="gpu", help="how the names of the JSON files begin")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where they go")
    args = parser.parse_args(arguments)
    need("eval", "sentence_transformers")
    args.device = choose_device(args.device)
    started = time.monotonic()
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
        path = random_llama(args.shape, tokenizer, Path(folder) / "random", dtype=getattr(torch, args.dtype))
        print(f"weights of {args.shape} written after {time.monotonic() - started:.0f} s", flush=True)
        for number, (script, options, bars) in enumerate(benchmarks(args)):
            name = f"{args.name}_{script}" + ("_flex" if number == 3 else "")
            call = [sys.executable, str(HERE / f"{script}.py"), "--model_name_or_path", path, "--device", args.device]
            call += ["--dtype", args.dtype, "--name", name, "--results", str(args.results), *options]
            left = args.seconds - (time.monotonic() - started)
            report = run(call, seconds=left, file=args.results / f"{name}.json")
            print(f"{name} ended after {time.monotonic() - started:.0f} s in all", flush=True)
            for bar in bars:
                figure = None if report is None else bar.figure(report)
                table.append({"what": bar.what, "at_least": bar.at_least, "figure": figure, "file": f"{name}.json"})
    print_table(table)
    whole = {"table": table, "seconds": time.monotonic() - started, "shape": args.shape}
    file = args.results / f"{args.name}_all.json"
    write_json(file, {**whole, **machine(torch.device(args.device), dtype=args.dtype)})
    missing = [row["what"] for row in table if row["at_least"] is not None and row["figure"] is None]
    if missing:
        raise SystemExit(f"There is no figure for: {'; '.join(missing)}.")
    print(f"on_gpu: OK ({file.name})")
    return table


def run(call: list[str], *, seconds: float, file: Path) -> Report | None:
    """What a benchmark wrote, or nothing where it failed or took longer than is left."""
    file.unlink(missing_ok=True)  # of an earlier run
    if seconds <= 0:
        print(f"{file.stem}: no time was left for it", flush=True)
        return None
    try:
        # What it prints is seen as it comes; its bars of progress would hide the rest.
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
    """Bars and figures."""
    print(f"\n{'':68s}{'at least':>10s}{'figure':>10s}")
    for row in table:
        bar = "" if row["at_least"] is None else f"{row['at_least']:.2f}"
        print(
            f"{row['what']:68s}{bar:>10s}{'not run' if row['figure'] is None else format(row['figure'], '.3f'):>10s}"
        )


if __name__ == "__main__":
    start(main)
