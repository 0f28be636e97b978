"""Measure the cells of a table that have no record yet; shared by the scripts of the paper's tables.

A script defines its cells as `Unit`s and how to open a model. `run` measures the missing cells, appends one record per
cell, and prints the table. The same command resumes an interrupted run.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from tqdm import tqdm

from examples import models
from examples.command_line import raise_complaints
from examples.evaluate.parts.options import model_complaints
from examples.evaluate.parts.records import Record, RecordFile, conditions, identify, measured_records

T = TypeVar("T")


class NotAvailableError(Exception):
    """Signal data or a model that is not available here; the reason becomes part of the record."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The figures of one cell; see `Record` for the fields."""

    metrics: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)
    by_text: list[tuple[float, int]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Unit:
    """Define one column of a table: its name, all settings that affect its figures, and its measurement.

    `measure` receives the opened model and may raise `NotAvailableError`.
    """

    name: str
    settings: dict[str, Any]
    measure: Callable[[Any], Measurement]


def unless_absent(read: Callable[[], T], *, folder: Path | None) -> T:
    """Read a corpus.

    Raises:
        NotAvailableError: If it is on the Hub, which cannot be reached.
    """
    try:
        return read()
    except ValueError as error:
        if folder is None:
            raise NotAvailableError(str(error)) from error
        raise


def open_magnet(path: str, args: argparse.Namespace) -> Any:
    """Open a MAGNET checkpoint, adapter or plain decoder in evaluation mode on the device."""
    model = models.open_magnet(path, dtype=args.dtype, device=args.device)
    for layer in model.model.layers if args.compile else ():
        layer.compile(dynamic=True)
    return model


def run(
    table: str,
    args: argparse.Namespace,
    units: Sequence[Unit],
    *,
    open_model: Callable[[str, argparse.Namespace], Any] = open_magnet,
) -> list[Record]:
    """Measure the cells that have no record yet, model by model, and print the table.

    The last record of each cell in the file is then the requested one.
    """
    file = RecordFile(args.results, table)
    recorded = file.read()
    known = {} if args.again else measured_records(recorded)
    reasons = {record.measurement_key: record.unavailable for record in recorded}
    last = {record.cell_key: record for record in recorded}
    identities: dict[str, dict[str, str | None]] = {}
    raise_complaints(model_complaints(args.model, lambda path: identities.setdefault(path, identify(path))))
    records = []
    for name, path in args.model.items():
        shared = {"table": table, "system": name, "model": identities[path]}
        shared |= {key: getattr(args, key) for key in ("seed", "replica", "step")}
        preset = {"dtype": args.dtype, "preset": args.preset, **({"compile": True} if args.compile else {})}
        requested = [Record(**shared, unit=unit.name, settings={**unit.settings, **preset}) for unit in units]
        model = open_model(path, args) if any(record.measurement_key not in known for record in requested) else None
        bar = tqdm(zip(units, requested, strict=True), total=len(units), desc=f"{table}: {name}", unit="cell")
        for unit, record in bar:
            bar.set_postfix_str(unit.name)
            if record.measurement_key in known:
                record = known[record.measurement_key]
                # A later record with other settings may have replaced this cell.
                shown = last[record.cell_key]
                is_new = shown.measurement_key != record.measurement_key or shown.unavailable is not None
            else:
                record = _measured(unit, record, model, device=args.device)
                is_new = record.unavailable is None or record.unavailable != reasons.get(record.measurement_key)
            if is_new:
                file.append(record)
            records.append(record)
        model = None  # so that two models are never in memory together
    print_table(records)
    print("\n" + _last_line(table, args, records, file.path))
    return records


def _measured(unit: Unit, requested: Record, model: Any, *, device: str) -> Record:
    """Measure one cell."""
    started = time.perf_counter()
    try:
        outcome: dict[str, Any] = vars(unit.measure(model))
    except NotAvailableError as error:
        outcome = {"unavailable": str(error)}
    return replace(requested, **outcome, **conditions(device), seconds=round(time.perf_counter() - started, 3))


def print_table(records: Sequence[Record]) -> None:
    """Print systems by units and metrics, then the reasons why cells could not be measured."""
    table: dict[str, dict[str, float]] = {}
    for record in records:
        for metric, value in record.metrics.items():
            table.setdefault(f"{record.unit} {metric}", {})[record.system] = value
    if table:
        frame = pd.DataFrame(table, index=list(dict.fromkeys(record.system for record in records)))
        print("\n" + frame.to_string(float_format="{:.4f}".format, na_rep="-"))
    for record in records:
        if record.unavailable:
            print(f"{record.system}, {record.unit}: not available here: {record.unavailable}")


def _last_line(table: str, args: argparse.Namespace, records: Sequence[Record], path: Path) -> str:
    """Report how much was measured; if nothing was, what is missing and where it was looked for."""
    if any(record.metrics for record in records):
        absent = sum(not record.metrics for record in records)
        note = f", {absent} not available" if absent else ""
        return f"{table}: OK ({len(args.model)} models, {len(records) // len(args.model)} cells each{note}; {path})"
    where = "the Hub, since `--data` was left out" if args.data is None else f"`--data` {str(args.data)!r}"
    missing = ", ".join(dict.fromkeys(record.unit for record in records)) or "all"
    return f"{table}: FAILED (nothing measured; not available: {missing}; looked for in {where})"
