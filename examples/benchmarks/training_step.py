"""Compare a joint training step with the same losses written naively and with the arithmetic.

    python examples/benchmarks/training_step.py --model DIR --texts FILES --pairs FILE
    python examples/benchmarks/training_step.py --model DIR --texts FILES --pairs FILE --shape 7b --device cuda \
        --batch_size 32 --rounds 5
    python examples/benchmarks/training_step.py --model GEMMA --texts FILES --pairs FILE --batch_size 8 --rounds 3 \
        --dtype bfloat16 --bf16 --systems "MNTP and MSG" "naive, MNTP and MSG"

The arithmetic counts 4 operations per token for a frozen weight and 6 for a trained one, the LM head only at labeled
positions, and 12 x length x width per layer and token for attention. It excludes padding. It is converted to a time
at the rate of one large matrix product measured in the same run.

All systems use the same optimizer: the trainer's joint step, with and without pairs; the same losses written naively
(`naive_loss` in `training_systems.py`), with and without pairs; and MNTP alone, by the trainer and with the logits of
all positions. With `--torch_compile_backend inductor`, each is also measured with compiled layers. Losses and
gradients are compared before anything is timed, and the systems alternate.
"""

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from accelerate.utils import send_to_device

from examples.benchmarks.measuring import (
    PAPER_STEPS,
    SHAPES,
    add_results,
    machine,
    matrix_rate,
    open_shaped,
    quartiles,
    seconds,
    write_report,
)
from examples.benchmarks.training_systems import (
    COMPILED,
    FULL,
    JOINT,
    KINDS,
    MNTP,
    NAIVE,
    NAIVE_ROWS,
    ROWS,
    collate,
    compare,
    layers_of,
    loss_of,
    make_trainer,
    phase_of,
    step_operations,
)
from examples.command_line import OneLineParser, add_device, add_dtype, add_model, at_least, choose_device, start
from trainer import LoraArguments, MagnetTrainer, apply_lora, load_pairs, load_texts, texts_to_blocks
from trainer.cpu_memory import keep_freed_memory

PAPER = dict(zip((ROWS, JOINT), PAPER_STEPS, strict=True))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="directory or Hub id of a plain decoder or a MAGNET checkpoint")
    parser.add_argument("--texts", nargs="+", required=True, help="texts to train on")
    parser.add_argument("--pairs", required=True, help="pairs of texts")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights of this size, with the tokenizer")
    names = list(KINDS)
    parser.add_argument(
        "--systems", nargs="+", metavar="SYSTEM", choices=names, default=names, help=f"of {'; '.join(names)}"
    )
    parser.add_argument("--lora_r", type=at_least(0), default=16, help="rank of the adapters; 0 trains all weights")
    parser.add_argument("--batch_size", type=at_least(), default=16, help="rows per step")
    parser.add_argument("--max_length", type=at_least(), default=512, help="tokens per row")
    parser.add_argument("--contrastive_batch_size", type=at_least(), default=64, help="pairs per step")
    parser.add_argument("--contrastive_max_length", type=at_least(), default=64, help="tokens of one side")
    parser.add_argument("--contrastive_mini_batch_tokens", type=at_least(), default=2048, help="as of adapt.py")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument("--contrastive_recompute", action="store_true", help="GradCache, for the pairs")
    parser.add_argument("--torch_compile_backend", help="time all systems with compiled layers, too")
    parser.add_argument("--attn_implementation", help="the attention's back-end; by default the model's choice")
    add_device(parser)
    add_dtype(parser)
    add_results(parser, name="training_step", rounds=7)
    args = parser.parse_args(arguments)
    args.device = choose_device(args.device)
    return args


def check_equal(trainer: MagnetTrainer, blocks: Any, args: argparse.Namespace) -> dict[str, float]:
    """Compare losses and gradients with those of the naive step.

    Raises:
        SystemExit: If they differ.
    """
    kind = JOINT if any(KINDS[name] == JOINT for name in args.systems) else ROWS
    few = send_to_device(collate(trainer, blocks, kind=kind, size=min(2, args.batch_size)), args.device)
    is_exact = args.dtype == "float32"
    apart: dict[str, float] = {}
    for with_compiled in (False, True) if args.torch_compile_backend else (False,):
        # In float32 the losses are equal without half precision; half-precision weights are compared as timed.
        errors = compare(trainer, few, kind=kind, with_compiled=with_compiled, autocast=args.bf16 and not is_exact)
        print(f"apart: loss {errors['loss']:.1e}, gradients {errors['gradients']:.1e} of the largest")
        limit = 1e-4 if is_exact else 0.1
        if not all(difference <= limit for difference in errors.values()):  # also fails if a difference is NaN
            raise SystemExit(f"The steps differ by more than {limit:g}, so the times are not comparable.")
        apart |= {name + COMPILED * with_compiled: difference for name, difference in errors.items()}
    torch.compiler.reset()  # depends on the lengths of a few rows
    return apart


def time_steps(
    trainer: MagnetTrainer, blocks: Any, batches: dict[str, Any], systems: dict[str, tuple[str, bool]], args: Any
) -> tuple[dict[str, list[float]], dict[str, float], list[float]]:
    """Time the systems in alternating rounds: their first step, their later steps, and collating."""
    device = torch.device(args.device)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step(name: str, with_compiled: bool) -> None:
        with layers_of(name, trainer, with_compiled=with_compiled, autocast=args.bf16):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16):
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
                first[system] = spent  # warms up and compiles
        started = time.perf_counter()
        collate(trainer, blocks, kind=JOINT)
        collating.append(time.perf_counter() - started)
    return times, first, collating


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Compare, time, print, and write the report."""
    args = parse_arguments(arguments)
    device = torch.device(args.device)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        base = open_shaped(args, folder)
        model = apply_lora(base, LoraArguments(lora_r=args.lora_r))
        texts = load_texts(args.texts if len(args.texts) > 1 else args.texts[0], limit=60 * args.batch_size)
        pairs = load_pairs(args.pairs, limit=2 * args.contrastive_batch_size)
        blocks = texts_to_blocks(texts, base.tokenizer, max_length=args.max_length, concatenate=True)
        trainer = make_trainer(model, args, blocks, pairs, folder)
    trainer.model.train()
    apart = check_equal(trainer, blocks, args)

    batches = {name: send_to_device(collate(trainer, blocks, kind=KINDS[name]), device) for name in args.systems}
    compiles = (False, True) if args.torch_compile_backend else (False,)
    systems = {name + COMPILED * compiled: (name, compiled) for compiled in compiles for name in args.systems}
    rate = matrix_rate(torch.bfloat16 if args.bf16 else getattr(torch, args.dtype), device)
    times, first, collating = time_steps(trainer, blocks, batches, systems, args)
    tokens, floors = {}, {}
    for system, (name, _) in systems.items():
        batch, phase = batches[name], phase_of(trainer, name)
        tokens[system] = int(batch["attention_mask"].sum())
        tokens[system] += int(batch["pairs"]["attention_mask"].sum()) if phase.uses_pairs else 0
        floors[system] = step_operations(model, batch, phase=phase)
    names = "shape lora_r batch_size max_length contrastive_batch_size contrastive_recompute rounds".split()
    names += ["attn_implementation", "torch_compile_backend"]
    report = {
        **summary(times, tokens, floors, rate=rate, collating=collating),
        "apart": apart,
        "first_seconds": first,
        **machine(device, dtype="bfloat16 products" if args.bf16 else args.dtype),
        "settings": {name: getattr(args, name) for name in names},
    }
    write_report(args, report, script="training_step")
    return report


def summary(
    times: dict[str, list[float]],
    tokens: dict[str, int],
    floors: dict[str, float],
    *,
    rate: float,
    collating: list[float],
) -> dict[str, Any]:
    """Print the table and return the contents of the report."""
    speeds = {name: tokens[name] / statistics.median(spent) for name, spent in times.items()}
    print(f"\n{'':32s}{'seconds':>9s}{'quartiles':>16s}{'tokens/s':>10s}{'of the floor':>14s}")
    for name, spent in times.items():
        low, middle, high = quartiles(spent)
        print(
            f"{name:32s}{middle:9.3f}{f'{low:.3f} - {high:.3f}':>16s}{speeds[name]:10,.0f}"
            f"{floors[name] / rate / middle:14.0%}"
        )
    compared = [(JOINT, NAIVE), (MNTP, FULL), (MNTP, JOINT), (ROWS, NAIVE_ROWS)]
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
