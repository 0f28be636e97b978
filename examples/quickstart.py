"""Demonstrate all of MAGNET in a few minutes on two CPU cores, without downloads or preparation.

It writes stories whose missing sentence follows only from the sentences after it, trains a tiny Llama on them from
left to right, adapts it with all three objectives, saves it, loads it as a user would, and compares.

    python examples/quickstart.py --output_dir outputs/quickstart
"""

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

# Busy-waiting threads slow a tiny model down many times if other jobs share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Python puts only the folder of a script on the path; the imports use the package name, as the tests do.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers.utils import logging

from examples.command_line import OneLineParser, add_output_dir, at_least, require_extra, start
from examples.toy.table import LEGEND, fill_table, render_table, show_infills
from examples.toy.training import SMOKE, Budget, train_models
from modeling_magnet.masking_magnet import attention_pattern

MASK_TOKENS = [f"token {number}" for number in range(1, 8)]
ACCEPTED_ACCURACY = 0.9
# Whole sentences of the corpus, because the model knows no other words and no shorter texts. Only a raincoat fits.
TEXT = (
    "Nora and a friend were at the market at noon. She found a [blank] under a bench. "
    "Soon it rained hard, but she stayed dry."
)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    add_output_dir(parser, default=Path("outputs/quickstart"), help="folder of corpus, models and plots")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the corpus, the weights and all draws")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to test that it runs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the quickstart."""
    started = time.monotonic()
    args = parse_arguments(arguments)
    require_extra("plots", "matplotlib")
    from examples.tour.pictures import draw_attention, draw_objectives

    logging.disable_progress_bar()  # hides the bars of reading and writing weights; training keeps its own
    output_dir = args.output
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"`--output_dir` {str(output_dir)!r} is a file. Name a folder.")
    exam, models, log_history = train_models(output_dir, budget=SMOKE if args.smoke else Budget(), seed=args.seed)

    print("5/6 questions to each model")
    table = fill_table(exam, models)
    rendered = f"{render_table(table)}\n\n{LEGEND}"
    (output_dir / "table.md").write_text(rendered + "\n", encoding="utf-8")
    (output_dir / "figures.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")

    print("6/6 plots")
    masks, curves = output_dir / "masks.png", output_dir / "curves.png"
    draw_attention(mask_panels(), MASK_TOKENS).savefig(masks)
    draw_objectives(curves, log_history)
    print(f"\n{rendered}\n\n{show_infills(exam, models)}\n")
    show_calls(models.magnet)
    print(f"checkpoint: {output_dir / 'magnet'}\nplots: {masks}, {curves}")
    print(f"a blank of your own: {command(output_dir / 'magnet')}")

    accuracy = table["hidden fact, from both sides"]["MAGNET"]
    line, exit_code = verdict(accuracy, smoke=args.smoke, seconds=time.monotonic() - started)
    print(line)
    return exit_code


def show_calls(model: Any) -> None:
    """Print what the saved model, opened by `AutoModel`, returns in each of its three modes."""
    prefix, suffix = TEXT.split("[blank]")
    output = model.generate(**model.tokenizer(prefix, return_tensors="pt"), max_new_tokens=8, do_sample=False)
    print(f"model.encode:   vectors of shape {model.encode([prefix, suffix]).shape}")
    print(f"model.infill:   {prefix}<{model.infill(prefix, suffix, max_new_tokens=1)}>{suffix}")
    print(f"model.generate: {model.tokenizer.decode(output[0], skip_special_tokens=True)}\n")


def mask_panels() -> dict[str, tuple[torch.Tensor, list[int]]]:
    """Return mask and segments of `MASK_TOKENS` in each mode (Khosla et al. 2025, figure 2)."""
    modes = {
        "bidirectional: encode": [0] * 7,
        "causal: generate": [1] * 7,
        "infill: two spans in their context": [0, 1, 1, 0, 2, 2, 0],
    }
    masks = {title: attention_pattern(torch.tensor([segments]), query_length=7) for title, segments in modes.items()}
    return {title: (masks[title][0, 0], segments) for title, segments in modes.items()}


def command(checkpoint: Path) -> str:
    """Return the command that fills a blank of a text in the made-up language with the model.

    Example:
        >>> command(Path("outputs/quickstart/magnet")).split('"')[2]
        ' --model outputs/quickstart/magnet'
    """
    return f'python examples/fill.py "{TEXT}" --model {shlex.quote(str(checkpoint))}'


def verdict(accuracy: float, *, smoke: bool, seconds: float) -> tuple[str, int]:
    """Return the last line and the exit code.

    Example:
        >>> verdict(0.984, smoke=False, seconds=150.2)
        ('quickstart: OK (MAGNET 98 %; 150 s)', 0)
        >>> verdict(0.5, smoke=False, seconds=150.2)
        ('quickstart: FAILED (MAGNET 50 %, not the 90 % it should reach; 150 s)', 1)
    """
    if smoke:
        return f"quickstart: OK (MAGNET {100 * accuracy:.0f} %, a smoke run; {seconds:.0f} s)", 0
    if accuracy >= ACCEPTED_ACCURACY:
        return f"quickstart: OK (MAGNET {100 * accuracy:.0f} %; {seconds:.0f} s)", 0
    missed = f"MAGNET {100 * accuracy:.0f} %, not the {100 * ACCEPTED_ACCURACY:.0f} % it should reach"
    return f"quickstart: FAILED ({missed}; {seconds:.0f} s)", 1


if __name__ == "__main__":
    start(lambda: sys.exit(main()))
