"""What does a joint training step cost, against the same losses written naively and against the arithmetic?

    python examples/benchmarks/training_step.py --model DIR --texts FILES --pairs FILE
    python examples/benchmarks/training_step.py --model DIR --texts FILES --pairs FILE --shape 7b --device cuda \
        --batch_size 32 --rounds 5
    python examples/benchmarks/training_step.py --model GEMMA --texts FILES --pairs FILE --batch_size 8 --rounds 3 \
        --dtype bfloat16 --autocast --systems "MNTP and MSG" "naive, MNTP and MSG"

The floor: a frozen weight costs 4 operations a token, two each way; one that is trained 6. The LM head costs that for
labelled positions only, attention 12 x length x width a layer and token. Padding, projecting other positions and
reading the same rows again come on top. Its time is taken at the rate of one large matrix product of the same run.

Systems, all with the same optimizer: the trainer's joint step, with and without pairs; the same losses naively
(`naive_loss` in `training_systems.py`), on the same rows and on rows of one document each, padded, and without pairs;
MNTP alone, the trainer's and with the logits of all positions, as a plain Trainer has them. With `--compiler
inductor` each once more with compiled layers, the naive ones too. Losses and gradients are compared before anything
is timed; rounds alternate. On a CPU a naive step whose logits do not fit in memory is left out.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from accelerate.utils import send_to_device

from examples.benchmarks.measuring import PAPER_STEPS, SHAPES, machine, matrix_rate, quartiles, random_llama, seconds
from examples.benchmarks.training_systems import (
    COMPILED,
    FULL,
    JOINT,
    KINDS,
    MNTP,
    NAIVE,
    NAIVE_ROWS,
    PADDED,
    ROWS,
    add_arguments,
    collate,
    compare,
    layers_of,
    loss_of,
    make_trainer,
    naive_bytes,
    phase_of,
    read_data,
    step_operations,
    widened,
)
from examples.command_line import OneLineParser, add_device, add_dtype, add_model, at_least, choose_device, start
from examples.models import open_magnet
from trainer import LoraArguments, MagnetTrainer, apply_lora, texts_to_blocks
from trainer.memory import keep_freed_memory
from trainer.whole_files import write_json

PAPER = dict(zip((ROWS, JOINT), PAPER_STEPS, strict=True))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="directory or Hub id of a plain decoder or a MAGNET checkpoint")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights of this size, with the tokenizer")
    parser.add_argument(
        "--vocab_size", type=at_least(), help="random weights of the model's shape with this vocabulary"
    )
    names = list(KINDS)
    parser.add_argument(
        "--systems", nargs="+", metavar="SYSTEM", choices=names, default=names, help=f"of {'; '.join(names)}"
    )
    parser.add_argument("--attn_implementation", help="the attention's back-end; by default the model's choice")
    parser.add_argument("--rounds", type=at_least(), default=7, help="rounds that are timed")
    add_device(parser)
    add_dtype(parser)
    parser.add_argument("--name", default="training_step", help="name of the JSON file")
    add_arguments(parser, batch_size=16, pairs_a_step=64)
    args = parser.parse_args(arguments)
    args.device = choose_device(args.device)
    return args


def open_base(args: argparse.Namespace, folder: str) -> Any:
    """Open the model, or write random weights of the size that was asked for and open these."""
    path, dtype = args.model, getattr(torch, args.dtype)
    if args.shape is not None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
        path = random_llama(args.shape, tokenizer, Path(folder) / "random", dtype=dtype)
    elif args.vocab_size is not None:
        path = widened(args.model, vocab_size=args.vocab_size, folder=f"{folder}/widened")
    return open_magnet(path, dtype=args.dtype, device=args.device, attn_implementation=args.attn_implementation)


def check_equal(trainer: MagnetTrainer, blocks: Any, args: argparse.Namespace) -> dict[str, float]:
    """Compare losses and gradients with those of the naive step.

    Raises:
        SystemExit: they differ.
    """
    kind = JOINT if any(KINDS[name] == JOINT for name in args.systems) else ROWS
    few = send_to_device(collate(trainer, blocks, kind=kind, size=min(2, args.batch_size)), args.device)
    is_exact = args.dtype == "float32"
    apart: dict[str, float] = {}
    for with_compiled in (False, True) if args.compiler else (False,):
        # In float32 the losses are equal without half precision; weights in it have to be compared as they are timed.
        found = compare(trainer, few, kind=kind, with_compiled=with_compiled, autocast=args.autocast and not is_exact)
        print(f"apart: loss {found['loss']:.1e}, gradients {found['gradients']:.1e} of the largest")
        limit = 1e-4 if is_exact else 0.1
        if not all(difference <= limit for difference in found.values()):  # nor where one is not a number
            raise SystemExit("The steps differ: there is nothing to compare.")
        apart |= {name + COMPILED * with_compiled: difference for name, difference in found.items()}
    torch.compiler.reset()  # of the few rows' lengths
    return apart


def time_steps(
    trainer: MagnetTrainer, blocks: Any, batches: dict[str, Any], systems: dict[str, tuple[str, bool]], args: Any
) -> tuple[dict[str, list[float]], dict[str, float], list[float]]:
    """Return the seconds of each system's timed steps, of its first step, and of collating, in alternating rounds."""
    device = torch.device(args.device)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step(name: str, with_compiled: bool) -> None:
        with layers_of(name, trainer, with_compiled=with_compiled, autocast=args.autocast):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.autocast):
                loss = loss_of(name, trainer, batches[name])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times: dict[str, list[float]] = {system: [] for system in systems}
    first: dict[str, float] = {}
    collating: list[float] = []
    for turn in range(args.rounds + 1):
        for system, parts in systems.items():
            spent = seconds(partial(step, *parts), device)
            if turn:
                times[system].append(spent)
            else:
                first[system] = spent  # warms up, and compiles
        started = time.perf_counter()
        collate(trainer, blocks, kind=JOINT)
        collating.append(time.perf_counter() - started)
    return times, first, collating


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Compare, time, print, write."""
    args = parse_arguments(arguments)
    device = torch.device(args.device)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = open_base(args, folder)
    adapted = apply_lora(model, LoraArguments(lora_r=args.lora_r))
    texts, pairs = read_data(args)
    blocks = texts_to_blocks(texts, model.tokenizer, max_length=args.max_length, concatenate=True)
    documents = texts_to_blocks(texts, model.tokenizer, max_length=args.max_length)
    trainer = make_trainer(adapted, args, blocks, pairs, folder)
    trainer.model.train()
    apart = check_equal(trainer, blocks, args)

    batches = {
        name: send_to_device(collate(trainer, documents if name == PADDED else blocks, kind=KINDS[name]), device)
        for name in args.systems
    }
    too_large = [name for name in names_of_naive(args.systems) if not fits(naive_bytes(model, batches[name]), device)]
    if too_large:
        print(f"left out, for its logits do not fit in memory: {', '.join(too_large)}")
    fitting = [name for name in args.systems if name not in too_large]
    compiles = (False, True) if args.compiler else (False,)
    systems = {name + COMPILED * compiled: (name, compiled) for compiled in compiles for name in fitting}
    rate = matrix_rate(torch.bfloat16 if args.autocast else getattr(torch, args.dtype), device)
    times, first, collating = time_steps(trainer, blocks, batches, systems, args)
    tokens, floors = {}, {}
    for system, (name, _) in systems.items():
        batch, weights = batches[name], phase_of(trainer, name)
        tokens[system] = int(batch["attention_mask"].sum())
        tokens[system] += int(batch["pairs"]["attention_mask"].sum()) if weights.sscl else 0
        floors[system] = step_operations(adapted, batch, weights=weights)
    report = summary(times, tokens, floors, rate=rate, collating=collating)
    report |= {"apart": apart, "first_seconds": first}
    report |= machine(device, dtype="bfloat16 products" if args.autocast else args.dtype)
    settings = ["shape", "vocab_size", "lora_r", "batch_size", "max_length", "pairs_a_step", "rounds"]
    settings += ["attn_implementation", "compiler", "recompute"]
    report["settings"] = {name: getattr(args, name) for name in settings}
    file = args.results / f"{args.name}.json"
    write_json(file, report)
    print(f"training_step: OK ({file.name})")
    return report


def names_of_naive(systems: list[str]) -> list[str]:
    """Return those with the logits of all positions for both token losses."""
    return [name for name in systems if name in (NAIVE, NAIVE_ROWS, PADDED)]


def fits(num_bytes: int, device: torch.device) -> bool:
    """Return whether a given number of bytes are free on a CPU; elsewhere an error says so."""
    return device.type != "cpu" or num_bytes < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def summary(
    times: dict[str, list[float]],
    tokens: dict[str, int],
    floors: dict[str, float],
    *,
    rate: float,
    collating: list[float],
) -> dict[str, Any]:
    """Print the table and return what goes to the file."""
    speeds = {name: tokens[name] / statistics.median(spent) for name, spent in times.items()}
    print(f"\n{'':32s}{'seconds':>9s}{'quartiles':>16s}{'tokens/s':>10s}{'of the floor':>14s}")
    for name, spent in times.items():
        low, middle, high = quartiles(spent)
        print(
            f"{name:32s}{middle:9.3f}{f'{low:.3f} - {high:.3f}':>16s}{speeds[name]:10,.0f}"
            f"{floors[name] / rate / middle:14.0%}"
        )
    compared = [(JOINT, NAIVE), (JOINT, PADDED), (MNTP, FULL), (MNTP, JOINT), (ROWS, NAIVE_ROWS)]
    compared += [(fast + COMPILED, slow + end) for fast, slow in compared for end in ("", COMPILED)]
    compared += [(name + COMPILED, name) for name in KINDS]
    ratios = {
        f"{fast} over {slow}": speeds[fast] / speeds[slow]
        for fast, slow in compared
        if fast in speeds and slow in speeds
    }
    if JOINT in times:
        ratios["collator's time over the joint step's"] = statistics.median(collating) / statistics.median(
            times[JOINT]
        )
    for end in ("", COMPILED):
        if JOINT + end in times and ROWS + end in times:
            hours = sum(steps * statistics.median(times[name + end]) for name, steps in PAPER.items()) / 3600
            print(f"\n{PAPER[ROWS]} and {PAPER[JOINT]} such steps{end}, as many as the paper's: {hours:.2f} hours")
    print("\n" + "\n".join(f"{name}: {ratio:.3f}" for name, ratio in ratios.items()))
    return {
        "seconds": times,
        "collating_seconds": collating,
        "tokens": tokens,
        "floor_flop": floors,
        "matrix_flop_per_second": rate,
        "ratios": ratios,
    }


if __name__ == "__main__":
    keep_freed_memory()
    start(main)
