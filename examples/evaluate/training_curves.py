"""Reproduce Figure 7 of the paper: losses and masked accuracy over the training steps, MNTP against MTP.

    python examples/evaluate/training_curves.py --runs MNTP=outputs/mntp MTP=outputs/mtp
    python examples/evaluate/training_curves.py --runs MAGNET=outputs/magnet --replica 1 --results outputs/results

Nothing is measured here: the evaluations that `adapt.py` made on its way (`eval_texts`, `eval_strategy steps`) become
records, one for each step, step 0 being the model before training. The steps of a run that started from another run's
result follow that run's. What is on record is not written twice.
"""

import hashlib
import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import OneLineParser, named_items, raise_complaints, start
from examples.evaluate.parts.options import add_replica, add_results
from examples.evaluate.parts.records import Record, RecordFile, measured_records
from trainer.files import parse_json

REPORT = "adapt.json"
_STATE = "trainer_state.json"  # the last file that a checkpoint writes
TABLE, UNIT = "curves", "training"
PREFIX = "eval_"
# Timings of the evaluation, not metrics of the model.
NOT_METRICS = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def read_report(run: str | Path) -> dict[str, Any]:
    """Read `adapt.json` of a finished run."""
    file = Path(run) / REPORT
    if not file.is_file():
        raise ValueError(f"{str(run)!r} has no {REPORT}; name the output folder of a finished run of adapt.py.")
    try:
        report = parse_json(file.read_bytes())
        steps = [int(row["step"]) for row in report["log_history"]]
        known = isinstance(report["arguments"], dict) and bool(steps)
    except (ValueError, KeyError, TypeError, OverflowError):  # a step may be 1e999
        known = False
    if not known:
        raise ValueError(
            f"{str(file)!r} is not a report of adapt.py; expected JSON with `arguments` and a `log_history` of rows "
            "with a `step`. Name the output folder of a finished run."
        )
    return dict(report)


def continued_run(report: dict[str, Any]) -> Path | None:
    """Return the run whose result a run started from, if it did."""
    folder = Path(str(report["arguments"].get("model_name_or_path")))
    return folder if (folder / REPORT).is_file() else None


def models_by_step(run: str | Path) -> dict[int, Path]:
    """Return the models of a run by training step: checkpoints, and at its last step the saved result.

    The models of the run that it continues come first. A checkpoint of full training is a model, one of LoRA an
    adapter; `AutoMagnetForCausalLM` and `--model` of the drivers open both. Incomplete checkpoints are skipped.
    """
    folder = Path(run)
    earlier: dict[int, Path] = {}
    models = {}
    for state in folder.glob(f"checkpoint-*/{_STATE}"):
        try:
            models[int(parse_json(state.read_bytes())["global_step"])] = state.parent
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    if (folder / REPORT).is_file():
        # The last checkpoint holds the same weights (LoRA: not merged); all other tables measure the saved result.
        report = read_report(folder)
        models[max(int(row["step"]) for row in report["log_history"])] = folder
        base = continued_run(report)
        earlier = models_by_step(base) if base else {}
    if not models:
        raise ValueError(
            f"{str(run)!r} has no whole checkpoint and no {REPORT}; name the output folder of adapt.py, of a run with "
            "`save_strategy` steps."
        )
    return earlier | {max(earlier, default=0) + step: model for step, model in sorted(models.items())}


def evaluations_by_step(report: dict[str, Any]) -> dict[int, dict[str, float]]:
    """Return the metrics of each evaluation, without the prefix `eval_`.

    Example:
        >>> evaluations_by_step({"log_history": [{"step": 0, "eval_loss_mntp": 5.5}, {"step": 1, "loss": 5.0}]})
        {0: {'loss_mntp': 5.5}}
    """
    metrics_by_step: dict[int, dict[str, float]] = {}
    for row in report["log_history"]:
        metrics = {
            name.removeprefix(PREFIX): float(value)
            for name, value in row.items()
            if name.startswith(PREFIX) and name not in NOT_METRICS
        }
        if metrics:
            metrics_by_step.setdefault(int(row["step"]), {}).update(metrics)
    return dict(sorted(metrics_by_step.items()))


def curve_records(name: str, run: Path, *, replica: int) -> list[Record]:
    """Return one record for each evaluated step of a run, and of the run that it continues."""
    report = read_report(run)
    base = continued_run(report)
    earlier = curve_records(name, base, replica=replica) if base else []
    before, tokens = (max(models_by_step(base)), earlier[-1].counts["tokens"]) if base else (0, 0)
    evaluations = evaluations_by_step(report)
    if not evaluations:
        raise ValueError(f"The run in {str(run)!r} evaluated nothing; give it `eval_texts` and `eval_strategy` steps.")
    arguments = report["arguments"]
    logged = [{name: value for name, value in row.items() if not _is_time(name)} for row in report["log_history"]]
    log = hashlib.sha256(json.dumps(logged, sort_keys=True).encode()).hexdigest()[:16]
    settings = {
        "log": log,  # another run in the same folder is another question; the same run at another speed is not
        "eval_texts": [Path(text).name for text in arguments.get("eval_texts") or ()],
        **{key: arguments.get(key) for key in ("eval_limit", "max_length", "dtype")},
    }
    rows = [arguments.get(key) or 1 for key in ("per_device_train_batch_size", "gradient_accumulation_steps")]
    tokens_per_step = math.prod(rows) * (report.get("processes") or 1) * (arguments.get("max_length") or 0)
    ended = datetime.fromtimestamp((run / REPORT).stat().st_mtime, UTC).isoformat(timespec="seconds")
    return earlier + [
        Record(
            table=TABLE,
            system=name,
            unit=UNIT,
            settings=settings,
            model={"name": run.resolve().name, "revision": None, "weights": None},
            seed=0,  # every evaluation draws the same masks and spans
            replica=replica,
            step=before + step,
            metrics=metrics,
            counts={"tokens": tokens + step * tokens_per_step},  # at most: rows may be shorter
            versions={"torch": str(report.get("torch", ""))},
            hardware={"threads": report.get("threads")},
            time=ended,
        )
        for step, metrics in evaluations.items()
        if step or not earlier  # its step 0 is the last one of the run that it continues
    ]


def _is_time(name: str) -> bool:
    """Return whether a field of a log is a timing."""
    return name.endswith(("_runtime", "_per_second"))


def main(arguments: list[str] | None = None) -> list[Record]:
    """Record the evaluations of the named runs."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=DIR", help="output folders of adapt.py")
    add_results(parser)
    add_replica(parser)
    args = parser.parse_args(arguments)
    runs, complaints = named_items(args.runs, option="--runs")
    records: list[Record] = []
    for name, folder in runs.items():
        try:
            records += curve_records(name, Path(folder), replica=args.replica)
        except ValueError as error:
            complaints.append(f"`--runs` {name}: {error}")
    raise_complaints(complaints)
    file = RecordFile(args.results, TABLE)
    known = measured_records(file.read())
    new = [record for record in records if record.measurement_key not in known]
    for record in new:
        file.append(record)
    for record in records:
        figures = ", ".join(f"{metric} {value:.4f}" for metric, value in record.metrics.items())
        print(f"{record.system}, step {record.step}: {figures}")
    print(f"\n{TABLE}: OK ({len(records)} evaluations, {len(new)} of them new; {file.path})")
    return [known.get(record.measurement_key, record) for record in records]


if __name__ == "__main__":
    start(main)
