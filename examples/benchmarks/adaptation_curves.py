"""How adaptations move the held-out metrics over their steps: a picture from the `adapt.json` of each run.

    python examples/benchmarks/adaptation_curves.py --runs magnet=DIR causal=DIR lora=DIR --name wiki7m

Each run needs `eval_texts` and `eval_strategy steps`. Writes `results/NAME.png` and the plotted figures as
`results/NAME.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import OneLineParser, check, named_items, need, start
from trainer.whole_files import write_json

PANELS = {
    "eval_infilling_perplexity": "spans, from both sides",
    "eval_left_to_right_perplexity": "the same spans, left to right",
    "eval_causal_perplexity": "all tokens, left to right",
    "eval_masked_accuracy": "masked tokens found",
}


def read_evaluations(directory: Path) -> dict[str, dict[int, float]]:
    """Each plotted metric of a run by step, 0 being the model before it.

    Raises:
        ValueError: the directory holds no finished run, or one that evaluated nothing.
    """
    file = directory / "adapt.json"
    if not file.is_file():
        raise ValueError(f"{str(directory)!r} has no adapt.json; name the output folder of a finished run.")
    log: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["log_history"]
    metrics = {name: {int(row["step"]): float(row[name]) for row in log if name in row} for name in PANELS}
    if not any(metrics.values()):
        raise ValueError(f"The run in {str(directory)!r} evaluated nothing; give it `eval_texts`.")
    return metrics


def draw_evaluations(runs: dict[str, dict[str, dict[int, float]]], path: Path) -> Path:
    """One panel for each metric, one line for each run; the dashed line is the base.

    Args:
        runs (`dict`): What `read_evaluations` returns, by the name of the run.
        path (`Path`): PNG file to write.

    Returns:
        `Path`: the file written.
    """
    from matplotlib.figure import Figure  # of the extra `plots`

    figure = Figure(figsize=(12, 7))
    for axes, (metric, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name, metrics in runs.items():
            steps = sorted(metrics[metric])
            axes.plot(steps, [metrics[metric][step] for step in steps], marker="o", markersize=3, label=name)
        # A filled gap is to be compared with what the base makes of it from the left alone.
        reference = "eval_left_to_right_perplexity" if metric == "eval_infilling_perplexity" else metric
        bases = [metrics[reference][0] for metrics in runs.values() if 0 in metrics[reference]]
        if bases:
            axes.axhline(bases[0], color="0.4", linestyle="--", linewidth=1, label="base, left to right")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel("share" if metric == "eval_masked_accuracy" else "perplexity")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return path


def main(arguments: list[str] | None = None) -> None:
    """Draw the runs that were named."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=DIR", help="output folders of adapt.py")
    parser.add_argument("--name", required=True, help="name of the files")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="where they go")
    args = parser.parse_args(arguments)
    need("plots", "matplotlib")
    folders, complaints = named_items(args.runs, option="--runs")
    check(complaints)
    runs = {name: read_evaluations(Path(folder)) for name, folder in folders.items()}
    file = args.results / f"{args.name}.json"
    write_json(file, runs)
    print(f"adaptation_curves: OK ({draw_evaluations(runs, file.with_suffix('.png'))})")


if __name__ == "__main__":
    start(main)
