"""What a run of `adapt.py` leaves: its report, and the model of each step it saved, so that a table becomes a curve.

for step, model in models_by_step("outputs/mine").items():
    repetition.main(["--model", f"MAGNET={model}", "--step", str(step)])
"""

from pathlib import Path
from typing import Any

from trainer.whole_files import parse_json

REPORT = "adapt.json"
_STATE = "trainer_state.json"  # the last file of a checkpoint that is written


def read_report(run: str | Path) -> dict[str, Any]:
    """What `adapt.json` of a finished run holds.

    Args:
        run (`str` or `Path`): `output_dir` of the run.

    Raises:
        ValueError: no such file, or one that `adapt.py` did not write.
    """
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
            f"{str(file)!r} is no report of adapt.py; expected JSON with `arguments` and a `log_history` of rows "
            "with a `step`. Name the output folder of a finished run."
        )
    return dict(report)


def models_by_step(run: str | Path) -> dict[int, Path]:
    """The models of a run by training step, first to last: checkpoints, and at its last step what the run saved.

    A checkpoint of a full training is a model, one of LoRA an adapter; `AutoMagnetForCausalLM` and `--model` of the
    drivers open both. What was killed while it was written is left out.

    Args:
        run (`str` or `Path`): `output_dir` of a run, finished or not.

    Raises:
        ValueError: no checkpoint and no finished model there, or a broken `adapt.json`.
    """
    folder = Path(run)
    found = {}
    for state in folder.glob(f"checkpoint-*/{_STATE}"):
        try:
            found[int(parse_json(state.read_bytes())["global_step"])] = state.parent
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    if (folder / REPORT).is_file():
        # The last checkpoint holds the same weights, of LoRA not merged; all other tables measure what was saved.
        found[max(int(row["step"]) for row in read_report(folder)["log_history"])] = folder
    if not found:
        raise ValueError(
            f"{str(run)!r} has no whole checkpoint and no {REPORT}; name the output folder of adapt.py, of a run with "
            "`save_strategy` steps."
        )
    return dict(sorted(found.items()))


__all__ = ["models_by_step", "read_report"]
