"""Stop a run at a NaN or infinite loss or gradient, and report its rows.

On a CPU the losses and gradients of every step are checked before the optimizer step. On an accelerator a check would
synchronize with the host, so it happens at the next log, evaluation or checkpoint, before any of them runs.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .files import write_json


class _Step(NamedTuple):
    number: int
    rows: list[dict[str, Any]]  # one dict per micro-batch
    names: list[str]
    values: Tensor  # (len(names),)


class NanGuard:
    """Collect losses and gradient norms of steps, and raise if one of them is NaN or infinite.

    The report of such a step is written to `output_dir`.
    """

    def __init__(self, output_dir: str | Path, *, process_index: int = 0) -> None:
        self.output_dir, self.process_index = Path(output_dir), process_index
        self._steps: list[_Step] = []

    def end_step(
        self,
        number: int,
        losses: Sequence[tuple[str, Tensor]],
        rows: list[dict[str, Any]],
        parameters: Iterable[nn.Parameter] = (),
    ) -> None:
        """Record the losses of a step's micro-batches and its gradients.

        Args:
            number (`int`): Number of the step, from 1.
            losses (list of `tuple`): Names of objectives and their losses `()`.
            rows (list of `dict`): Row numbers of each micro-batch, by the name of the field.
            parameters (iterable of `nn.Parameter`): Parameters whose gradients are checked.
        """
        names, values = [name for name, _ in losses], [value.float() for _, value in losses]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            names.append("gradients")
            values.append(norm.to(values[0].device) if values else norm)
        if not values:  # a subclass computes the loss, and another library scales the gradients
            return
        self._steps.append(_Step(number, rows, names, torch.stack(values)))

    def check(self) -> None:
        """Check all steps since the last call.

        Raises:
            FloatingPointError: If a value is NaN or infinite; the message names the first such step and its report.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        is_finite = torch.isfinite(torch.cat([step.values for step in steps])).tolist()  # one synchronization
        for step in steps:
            of_step, is_finite = is_finite[: len(step.names)], is_finite[len(step.names) :]
            bad = list(dict.fromkeys(name for name, finite in zip(step.names, of_step, strict=True) if not finite))
            if bad:
                raise FloatingPointError(
                    f"Non-finite {', '.join(bad)} in step {step.number}. The numbers of its rows are in "
                    f"{self._write_report(step, bad)}. Inspect those rows or lower the learning rate, then resume "
                    "from the last checkpoint."
                )

    def _write_report(self, step: _Step, bad: list[str]) -> Path:
        suffix = f"-process-{self.process_index}" if self.process_index else ""
        file = self.output_dir / f"not-finite-step-{step.number}{suffix}.json"
        rows = [{name: torch.as_tensor(ids).tolist() for name, ids in fields.items()} for fields in step.rows]
        report = {
            "step": step.number,
            "process_index": self.process_index,
            "not_finite": bad,
            "values": [[name, repr(value)] for name, value in zip(step.names, step.values.tolist(), strict=True)],
            "micro_batches": rows,
        }
        write_json(file, report)
        return file
