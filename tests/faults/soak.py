"""Measure whether memory stays flat over an hour of mixed calls, or ten thousand training steps of the tiny model.

    python tests/faults/soak.py --model DIR --minutes 60 --report calls.json
    python tests/faults/soak.py --steps 10000 --report steps.json

The resident memory of the process is read at even intervals. After a warm-up of a tenth, the slope of a straight line
through it is reported with its standard error, and how far the last tenth is above the first.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Python puts only a script's own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import psutil
import torch
from tqdm import tqdm
from transformers import TrainerCallback

from modeling_magnet import AutoMagnetForCausalLM
from tests.trainer.tiny import tiny_args, tiny_pairs, tiny_rows, tiny_trainer

WORDS = "the river runs through an old town and its bridges were built by kings in a last century of war".split()
SAMPLES = 200


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run one of the two, print the slope, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--minutes", type=float, help="of mixed calls")
    what.add_argument("--steps", type=int, help="of training, the last tenth with pairs")
    parser.add_argument("--model", help="a plain Llama or a MAGNET checkpoint, for calls")
    parser.add_argument("--report", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    if args.minutes is not None and args.model is None:
        parser.error("--minutes needs --model")
    samples = mixed_calls(args.model, minutes=args.minutes) if args.minutes is not None else train(args.steps)
    unit = "hour" if args.minutes is not None else "1,000 steps"
    report = {"unit": unit, **slope(samples), "samples": samples}
    print("; ".join(f"{name} {value:,.3f}" for name, value in slope(samples).items()), f"per {unit}")
    if args.report is not None:
        args.report.write_text(json.dumps(report) + "\n", encoding="utf-8")
    print("soak: OK")
    return report


def resident_mb() -> float:
    """Return the resident memory of this process."""
    return float(psutil.Process().memory_info().rss / 2**20)


def mixed_calls(path: str, *, minutes: float) -> list[list[float]]:
    """Make calls of every kind on texts of ever new lengths; return hours, memory and calls at even intervals."""
    model: Any = AutoMagnetForCausalLM.from_pretrained(path).eval()
    draw = random.Random(0)

    def text(most: int = 60) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))

    calls: list[Callable[[], Any]] = [
        lambda: model.encode([text() for _ in range(draw.randint(1, 20))]),
        lambda: model.encode_words(text().split()),
        lambda: model.infill(text(), text(), max_new_tokens=draw.randint(1, 20)),
        lambda: model.infill_blanks(f"{text()} [blank] {text()} [blank] {text()}", max_new_tokens=4, do_sample=True),
        lambda: model.score_infill(text(), [text(8), text(8)], text()),
        lambda: model.generate(**model.tokenizer(text(), return_tensors="pt"), max_new_tokens=8, pad_token_id=0),
    ]
    started, samples, done = time.monotonic(), [], 0
    with tqdm(total=SAMPLES, desc="Calls") as bar:
        while (spent := time.monotonic() - started) < 60 * minutes:
            draw.choice(calls)()
            done += 1
            if spent >= 60 * minutes * len(samples) / SAMPLES:
                samples.append([spent / 3600, resident_mb(), done])
                bar.update()
    return samples


class Sample(TrainerCallback):
    """Read the memory now and then."""

    def __init__(self, every: int) -> None:
        self.every, self.samples = every, list[list[float]]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.samples.append([state.global_step / 1000, resident_mb(), state.global_step])


def train(steps: int) -> list[list[float]]:
    """Train with logs and checkpoints as in a run; return thousands of steps, memory and steps at even intervals."""
    sample = Sample(max(1, steps // SAMPLES))
    with tempfile.TemporaryDirectory() as folder:
        args = tiny_args(
            folder,
            loss_phases=[f"{steps - steps // 10}:1,0,1", f"{max(1, steps // 10)}:1,1,1"],
            logging_steps=100,
            save_strategy="steps",
            save_steps=max(1, steps // 10),
            save_total_limit=1,
            disable_tqdm=False,
        )
        rows, pairs = tiny_rows(400), tiny_pairs(40)
        tiny_trainer(args, train_dataset=rows, pair_dataset=pairs, callbacks=[sample]).train()
    return sample.samples


def slope(samples: list[list[float]]) -> dict[str, float]:
    """Fit a straight line to memory over time, without the first tenth."""
    times, memory, done = np.array(samples[len(samples) // 10 :]).T
    (rate, _), covariance = np.polyfit(times, memory, 1, cov=True)
    tenth = max(1, len(times) // 10)
    return {
        "slope_mb": float(rate),
        "standard_error_mb": float(covariance[0, 0]) ** 0.5,
        "rise_mb": float(memory[-tenth:].mean() - memory[:tenth].mean()),
        "mean_mb": float(memory.mean()),
        "done": int(done[-1]),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
