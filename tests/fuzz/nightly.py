"""Many hostile inputs, and what became of them.

    python tests/fuzz/nightly.py --inputs 1000000 --processes 2 --report fuzz.md
    python tests/fuzz/nightly.py --inputs 20000 --target marks settings --seed 5000000
    python tests/fuzz/nightly.py --input marks:4711

The inputs are divided between the targets by weight. A finding is kept as `target:seed`, by which the last line shows
it again, and the run goes on; with findings the exit status is 1. Needs Linux.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
# Before anything imports huggingface_hub: no input may reach a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from tqdm import tqdm

from tests.fuzz.judging import LIMIT_SECONDS, no_bars, silent_logs
from tests.fuzz.pool import Tally, draw_of, run
from tests.fuzz.targets import TARGETS, shares


def table(tallies: dict[str, Tally]) -> str:
    """A row for each target, and one for all."""
    lines = [
        "| target | inputs | right results | clear errors | findings | ms each | slowest | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    whole = Tally()
    for tally in tallies.values():
        whole.add(tally)
    for name, tally in [*tallies.items(), ("all", whole)]:
        each = 1000 * tally.seconds / max(tally.inputs, 1)
        lines.append(
            f"| {name} | {tally.inputs:,} | {tally.right:,} | {tally.refused:,} | {len(tally.findings)} "
            f"| {each:.2f} | {tally.slowest[0]:.2f} s ({tally.slowest[1]}) | {tally.memory >> 20:,} |"
        )
    return "\n".join(lines)


@no_bars()
@silent_logs()
def main(arguments: list[str] | None = None) -> int:
    """Draw, judge, count; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="over all targets")
    parser.add_argument("--processes", type=int, default=1, help="that judge at the same time")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="these alone")
    parser.add_argument("--seed", type=int, default=0, help="the first of each target")
    parser.add_argument("--seconds", type=float, default=LIMIT_SECONDS, help="after which an input hangs")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    parser.add_argument("--input", help="show what becomes of one input, TARGET:SEED")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.input is not None:
        name, _, seed = args.input.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[name].run(draw_of(TARGETS[name], int(seed)), Path(folder))
        return 0
    amounts = shares(args.inputs, [TARGETS[name] for name in args.target])
    tallies, began = {name: Tally() for name in amounts}, time.monotonic()
    with tqdm(total=args.inputs, unit="input", smoothing=0) as bar:
        for name, tally in run(TARGETS, amounts, processes=args.processes, first=args.seed, limit=args.seconds):
            tallies[name].add(tally)
            bar.set_postfix_str(f"{name}, {sum(len(one.findings) for one in tallies.values())} findings")
            bar.update(tally.inputs)
            for found in tally.findings:
                bar.write(f"{found[0]}  {found[1]}")
    findings = [found for tally in tallies.values() for found in tally.findings]
    seconds = time.monotonic() - began
    told = [table(tallies), f"\n{seconds:,.0f} seconds, {len(findings)} findings, seeds from {args.seed}."]
    told += [f"- `{name}`: {what}" for name, what in findings]
    print("\n".join(told))
    if args.report is not None:
        args.report.write_text("\n".join(told) + "\n", encoding="utf-8", errors="backslashreplace")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
