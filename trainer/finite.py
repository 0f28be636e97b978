"""Losses and gradients that are no numbers stop a run, and name the rows it happened with.

A CPU is asked after every step, before the optimizer sees the gradients. Elsewhere asking would make the host wait: it
is asked at the next log, evaluation or checkpoint, none of which takes place after a bad step.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .whole_files import write_json

_GRADIENTS = "gradients"


class _Step(NamedTuple):
    """What is known of a step before anyone has looked at its values."""

    number: int
    rows: list[dict[str, list[int]]]  # of each micro-batch
    names: list[str]
    values: Tensor  # (len(names),)


class FiniteWatch:
    """Remember the losses of a step until somebody asks whether they are numbers.

    Args:
        output_dir (`str` or `Path`): Where the report of a bad step goes.
        process_index (`int`, defaults to 0): Which of several processes this is.
    """

    def __init__(self, output_dir: str | Path, *, process_index: int = 0) -> None:
        self.output_dir, self.process_index = Path(output_dir), process_index
        self._rows: list[dict[str, list[int]]] = []
        self._losses: list[tuple[str, Tensor]] = []
        self._steps: list[_Step] = []

    def note(self, losses: dict[str, Tensor], rows: dict[str, Any] | None) -> None:
        """Take a micro-batch in, or further losses of the last one.

        Args:
            losses (`dict`): Name of each objective to its loss `()`.
            rows (`dict`, *optional*): Names to numbers of rows, as lists or as tensors that are on the CPU; `None` for
                further losses of the micro-batch that was noted last.
        """
        if rows is not None:
            self._rows.append({name: torch.as_tensor(ids).tolist() for name, ids in rows.items()})
        self._losses += [(name, loss.detach()) for name, loss in losses.items()]

    def end_step(self, number: int, parameters: Iterable[nn.Parameter] = ()) -> None:
        """Take in the end of a step's backward pass.

        Args:
            number (`int`): Of the step, from 1.
            parameters (iterable of `nn.Parameter`): Whose gradients are to be looked at.
        """
        names, values = [name for name, _ in self._losses], [value.float() for _, value in self._losses]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            names.append(_GRADIENTS)
            values.append((norm.full_tensor() if isinstance(norm, DTensor) else norm).to(values[0].device))
        self._steps.append(_Step(number, self._rows, names, torch.stack(values)))
        self._rows, self._losses = [], []

    def check(self) -> None:
        """Look at all steps since the last time.

        Raises:
            FloatingPointError: naming the first step with a value that is no number, what it is of, and the report.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        is_finite = torch.isfinite(torch.cat([step.values for step in steps])).tolist()  # waited for once
        for step in steps:
            own, is_finite = is_finite[: len(step.names)], is_finite[len(step.names) :]
            if not all(own):
                raise FloatingPointError(
                    self._told(step, bad=[n for n, ok in zip(step.names, own, strict=True) if not ok])
                )

    def _told(self, step: _Step, *, bad: Sequence[str]) -> str:
        """What to say of a bad step, whose report is written first."""
        names = list(dict.fromkeys(bad))
        report = {
            "step": step.number,
            "process_index": self.process_index,
            "not_finite": names,
            "values": [[name, repr(value)] for name, value in zip(step.names, step.values.tolist(), strict=True)],
            "micro_batches": step.rows,
        }
        suffix = f"-process-{self.process_index}" if self.process_index else ""
        file = self.output_dir / f"not-finite-step-{step.number}{suffix}.json"
        write_json(file, report)
        what = f"{' and '.join(names)} {'are' if len(names) > 1 or _GRADIENTS in names else 'is'}"
        return (
            f"Step {step.number}: {what} not finite. Its rows are in {file}; `trainer.replay(file)` makes its "
            "batches again. Look at them, or lower the learning rate, and resume from the last checkpoint."
        )


def read_report(file: str | Path) -> dict[str, Any]:
    """The report of a bad step.

    Raises:
        ValueError: a file that is none.
    """
    try:
        report = json.loads(Path(file).read_text(encoding="utf-8"))
        if not all(isinstance(rows["row_ids"], list) for rows in report["micro_batches"]):
            raise TypeError
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is no report of a step; pass a not-finite-step-N.json of this run.") from error
    return dict(report)


__all__ = ["FiniteWatch", "read_report"]
