"""Stop a run at a NaN or infinite loss or gradient, and before it runs out of memory, and report where.

On a CPU the losses and gradients of every step are checked before the optimizer step. On an accelerator a check would
synchronize with the host, so it happens at the next log, evaluation or checkpoint, before any of them runs. The
largest micro-batch of each kind of phase runs once before the first step, so that a phase that does not fit into
memory fails after seconds, not when it begins hours later.
"""

import heapq
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .objectives import LossPhase
from .samplers import RowSource
from .whole_files import write_json

_GRADIENTS = "gradients"
# Most rows to inspect if access may tokenize.
_MAX_ROWS = 100_000
_TABLE_ROWS = 10_000
# Parts of the messages of allocators, whose errors have different types.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


# ---- Values that are not finite ----


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
            names.append(_GRADIENTS)
            values.append((norm.full_tensor() if isinstance(norm, DTensor) else norm).to(values[0].device))
        self._steps.append(_Step(number, rows, names, torch.stack(values)))

    def check(self) -> None:
        """Check all steps since the last call.

        Raises:
            FloatingPointError: naming the first step with a NaN or infinite value, and its report.
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


# ---- Memory ----


def _phases_to_try(phases: Sequence[LossPhase], *, step: int) -> Iterator[tuple[int, LossPhase]]:
    """Yield the number and first phase of each kind, except kinds that a run has begun before `step`."""
    first, tried = 0, set()
    for number, phase in enumerate(phases):
        kind = (phase.uses_tokens, phase.uses_pairs)
        if kind not in tried and first >= step:
            yield number, phase
        tried.add(kind)
        first += phase.steps


def row_lengths(rows: RowSource) -> Iterator[int]:
    """Yield the number of tokens of each row, or of the first 100,000 if access to a row may tokenize it."""
    # A dataset with a transform, format "custom", computes its columns on access.
    if isinstance(rows, Dataset) and "input_ids" in rows.column_names and rows.format["type"] != "custom":
        for table in rows.select_columns(["input_ids"]).with_format("arrow").iter(_TABLE_ROWS):
            yield from pyarrow.compute.list_value_length(table["input_ids"]).to_pylist()
        return
    limit = None if isinstance(rows, (list, tuple)) else _MAX_ROWS
    yield from (len(rows[index]["input_ids"]) for index in islice(range(len(rows)), limit))


def longest_rows(rows: RowSource, *, count: int) -> list[int]:
    """Return the indices of the `count` longest rows; see `row_lengths`."""
    return _largest(row_lengths(rows), count=count)


def longest_pairs(pairs: RowSource, *, count: int) -> list[int]:
    """Return the indices of the `count` pairs whose longer side has the most bytes.

    Bytes are counted because a character outside the vocabulary takes one token per byte.
    """
    limit = None if isinstance(pairs, (list, tuple, Dataset)) else _MAX_ROWS
    rows = (pairs[index] for index in islice(range(len(pairs)), limit))
    sizes = (max(len(str(row[side]).encode("utf-8", "replace")) for side in ("anchor", "positive")) for row in rows)
    return _largest(sizes, count=count)


def _largest(sizes: Iterator[int], *, count: int) -> list[int]:
    """Return the indices of the `count` largest sizes, in descending order."""
    best: Sequence[tuple[int, int]] = heapq.nlargest(count, ((size, -index) for index, size in enumerate(sizes)))
    return [-index for _, index in best]


def try_phases(trainer: Any, model: nn.Module) -> None:
    """Run the largest micro-batch of each kind of phase that has not begun yet, to find out whether it fits in memory.

    Gradients and random states are restored. `model` is the trainer's model as training calls it.

    Raises:
        torch.OutOfMemoryError: naming the phase that does not fit and the arguments to lower.
    """
    was_training = trainer.model.training
    try:
        for number, phase in _phases_to_try(trainer.phases, step=trainer.state.global_step):
            with _random_state_kept():
                batch = _largest_batch(trainer, phase)
                if (
                    trainer.is_world_process_zero()
                ):  # printed, since the log may be lost if the system kills the process
                    name = f"phase {number + 1} ({trainer.args.loss_phases[number]})"
                    print(f"trying the memory of {name}: {_batch_sizes(batch)}", flush=True)
                reserved = reserve_for_optimizer(trainer.optimizer)
                trainer.try_step(model, phase, batch)
                del reserved
            model.zero_grad()
    finally:
        model.zero_grad()
        trainer.model.train(was_training)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore all random states that training uses when the context ends."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def reserve_for_optimizer(optimizer: Any) -> list[Tensor]:
    """Allocate as much as Adam in its first step; nothing for other optimizers or after that step."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if not isinstance(inner, torch.optim.Adam) or inner.state:
        return []
    weights = [weight for group in inner.param_groups for weight in group["params"]]
    # Not zeros, for which the system reserves no memory until they are written to.
    return [torch.ones_like(weight, requires_grad=False) for weight in weights for _ in range(2)]


def _largest_batch(trainer: Any, phase: LossPhase) -> dict[str, Any]:
    """Make a micro-batch of the longest rows, and of the longest pairs if the phase uses pairs."""
    rows = trainer.train_dataset
    numbers = longest_rows(rows, count=trainer._train_batch_size)
    batch = trainer.data_collator([{**rows[number], "row_id": number, "epoch": 0} for number in numbers])
    if phase.uses_pairs:
        pairs = trainer.pair_dataset
        numbers = longest_pairs(pairs, count=trainer.args.contrastive_batch_size)
        batch["pairs"] = trainer.pair_collator([pairs[number] for number in numbers])
    return dict(batch)


def _batch_sizes(batch: dict[str, Any]) -> str:
    """Describe the sizes of a micro-batch."""
    rows, width = batch["input_ids"].shape
    sizes = f"{rows} rows of {width} tokens"
    if "pairs" in batch:
        texts, width = batch["pairs"]["input_ids"].shape
        sizes += f", then {texts // 2} pairs of {width} tokens a side"
    return sizes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that a GPU or the CPU is out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def out_of_memory(error: BaseException, *, where: str, of_pairs: bool) -> torch.OutOfMemoryError:
    """Return an error that names where memory ran out and the arguments to lower.

    It includes the original message, which accelerate reads to lower batch sizes.
    """
    remedy = (
        "Lower `per_device_train_batch_size` and raise `gradient_accumulation_steps` by the same factor, or make "
        "shorter rows"
    )
    if of_pairs:
        remedy = (
            "Lower `contrastive_batch_size` or `contrastive_max_length`, or process the batch in parts with "
            "`contrastive_mini_batch_tokens` and `contrastive_recompute`"
        )
    return torch.OutOfMemoryError(
        f"Memory ran out {where}. {remedy}; or turn on `activation_checkpointing`. ({error})"
    )
