"""Stop training on a NaN or infinite loss or gradient, and report the rows involved.

On a CPU every step is checked before the optimizer sees its gradients. On an accelerator a check would synchronise
with the host, so it waits for the next log, evaluation or checkpoint; none of these runs after a bad step.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .whole_files import write_json

_GRADIENTS = "gradients"


class _Step(NamedTuple):
    """What is recorded of a step before its values are checked."""

    number: int
    rows: list[dict[str, list[int]]]  # one dict per micro-batch
    names: list[str]
    values: Tensor  # (len(names),)


class NanGuard:
    """Collect losses and gradient norms of steps, and raise when one of them is not finite.

    Args:
        output_dir (`str` or `Path`): Where the report of a bad step is written.
        process_index (`int`, defaults to 0): Rank of this process.
    """

    def __init__(self, output_dir: str | Path, *, process_index: int = 0) -> None:
        self.output_dir, self.process_index = Path(output_dir), process_index
        self._rows: list[dict[str, list[int]]] = []
        self._losses: list[tuple[str, Tensor]] = []
        self._steps: list[_Step] = []

    def note(self, losses: dict[str, Tensor], rows: dict[str, Any] | None) -> None:
        """Record the losses of a micro-batch.

        Args:
            losses (`dict`): Name of each objective to its loss `()`.
            rows (`dict`, *optional*): Names to numbers of rows, as lists or CPU tensors; `None` for further losses of
                the last micro-batch.
        """
        if rows is not None:
            self._rows.append({name: torch.as_tensor(ids).tolist() for name, ids in rows.items()})
        self._losses += [(name, loss.detach()) for name, loss in losses.items()]

    def end_step(self, number: int, parameters: Iterable[nn.Parameter] = ()) -> None:
        """Record the end of a step's backward pass.

        Args:
            number (`int`): Number of the step, from 1.
            parameters (iterable of `nn.Parameter`): Whose gradients are checked.
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
        """Check all steps since the last call.

        Raises:
            FloatingPointError: naming the first step that has a value that is not finite, and its report.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        is_finite = torch.isfinite(torch.cat([step.values for step in steps])).tolist()  # one synchronisation
        for step in steps:
            own, is_finite = is_finite[: len(step.names)], is_finite[len(step.names) :]
            bad = list(dict.fromkeys(name for name, finite in zip(step.names, own, strict=True) if not finite))
            if bad:
                file = self._write_report(step, bad)
                verb = "are" if len(bad) > 1 or _GRADIENTS in bad else "is"
                raise FloatingPointError(
                    f"Step {step.number}: {' and '.join(bad)} {verb} not finite. Its rows are in {file}; "
                    "`trainer.replay(file)` makes its batches again. Look at them, or lower the learning rate, and "
                    "resume from the last checkpoint."
                )

    def _write_report(self, step: _Step, bad: list[str]) -> Path:
        suffix = f"-process-{self.process_index}" if self.process_index else ""
        file = self.output_dir / f"not-finite-step-{step.number}{suffix}.json"
        report = {
            "step": step.number,
            "process_index": self.process_index,
            "not_finite": bad,
            "values": [[name, repr(value)] for name, value in zip(step.names, step.values.tolist(), strict=True)],
            "micro_batches": step.rows,
        }
        write_json(file, report)
        return file


def read_report(file: str | Path) -> dict[str, Any]:
    """Read the report of a bad step.

    Raises:
        ValueError: if the file is not such a report.
    """
    try:
        report = json.loads(Path(file).read_text(encoding="utf-8"))
        if not all(isinstance(rows["row_ids"], list) for rows in report["micro_batches"]):
            raise TypeError
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is not the report of a step; pass a not-finite-step-N.json of this run.") from error
    return dict(report)


__all__ = ["NanGuard", "read_report"]
