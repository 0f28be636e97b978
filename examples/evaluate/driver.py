"""Shared by the scripts of the paper's tables: the command line, and measuring the cells without a record.

A script names its cells as `Unit`s and how a model is opened; `run` measures what no record answers yet, appends one
record per cell, and prints the table. The same command resumes an interrupted run.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from examples import models
from examples.command_line import (
    OneLineParser,
    add_data,
    add_device,
    add_dtype,
    add_model,
    at_least,
    check,
    choose_device,
)
from examples.evaluate.records import Record, RecordFile, answered, conditions, identify
from examples.models import is_here, offline_where_unreachable


def make_parser(doc: str | None, *, smoke: dict[str, Any], paper: dict[str, Any]) -> argparse.ArgumentParser:
    """Return the options that every driver has; add its own after them, without defaults where a preset has one."""
    parser = OneLineParser(description=doc)
    add_model(
        parser,
        nargs="+",
        action="extend",
        metavar="[NAME=]MODEL",
        help="directories, adapters or Hub ids; the name is the row's in the table, by default the folder's",
    )
    parser.add_argument("--preset", default="paper", choices=["smoke", "paper"], help="sizes: of a trial, or in full")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of all draws of the measurement")
    add_data(parser)
    parser.add_argument("--results", type=Path, default=Path("outputs/results"), help="folder of the records")
    parser.add_argument("--replica", type=at_least(0), default=0, help="which of several trainings of the same system")
    parser.add_argument("--step", type=at_least(0), help="training step of the model, for curves")
    parser.add_argument("--again", action="store_true", help="measure anew what is on record; both stay on record")
    add_dtype(parser)
    add_device(parser)
    parser.set_defaults(presets={"smoke": smoke, "paper": paper})
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what is not said comes from the preset."""
    chosen = parser.parse_known_args(arguments)[0]
    parser.set_defaults(**chosen.presets[chosen.preset])
    args = parser.parse_args(arguments)
    del args.presets
    complaints = []
    try:
        args.device = choose_device(args.device)
    except ValueError as error:
        complaints.append(str(error))
    models: dict[str, str] = {}
    for item in args.model:
        name, separator, path = item.partition("=")
        name, path = (name, path) if separator else (Path(item).name, item)
        if not (name and path):
            complaints.append(f"`--model` has {item!r}; expected NAME=MODEL, such as magnet=outputs/mine.")
        elif name in models:
            complaints.append(f"`--model` has two models named {name!r}. Give each a name: NAME=MODEL.")
        models[name] = path
    args.model = models
    if args.data is not None and not args.data.is_dir():
        complaints.append(f"`--data` {str(args.data)!r} is not a folder. Name one, or leave it out for the Hub.")
    check(complaints)
    if args.data is None or not all(map(is_here, models.values())):
        offline_where_unreachable()
    return args


T = TypeVar("T")


class NotAvailableError(Exception):
    """Data or a model that cannot be had here; the reason becomes part of the record."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one cell came to."""

    metrics: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Unit:
    """One column of a table: its name, all settings that change its figures, and how it is measured.

    `measure` takes the opened model and may raise `NotAvailableError`.
    """

    name: str
    settings: dict[str, Any]
    measure: Callable[[Any], Measurement]


def unless_absent(read: Callable[[], T], *, folder: Path | None) -> T:
    """Read a corpus; one of the Hub that cannot be had is told as such.

    Raises:
        NotAvailableError: no way to the Hub.
    """
    try:
        return read()
    except ValueError as error:
        if folder is None:
            raise NotAvailableError(str(error)) from error
        raise


def complaints_of(attempts: Mapping[str, Callable[[], Any]]) -> list[str]:
    """Try each function and return the messages of those that fail, with their names."""
    complaints = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except (ValueError, OSError) as error:
            complaints.append(f"{name}: {error}")
    return complaints


def about_models(models: Mapping[str, str], look: Callable[[str], Any]) -> list[str]:
    """Return what `look` finds wrong with the models, before weights are read."""
    return complaints_of({f"`--model` {name}": partial(look, path) for name, path in models.items()})


def open_magnet(path: str, args: argparse.Namespace) -> Any:
    """Return a MAGNET checkpoint, an adapter or a plain decoder, as our class, in evaluation mode on the device."""
    return models.open_magnet(path, dtype=args.dtype, device=args.device)


def run(
    table: str,
    args: argparse.Namespace,
    units: Sequence[Unit],
    *,
    open_model: Callable[[str, argparse.Namespace], Any] = open_magnet,
) -> list[Record]:
    """Measure the cells that have no record yet, model by model, and print the table.

    The file's last record of each cell is then the one that was asked for.
    """
    file = RecordFile(args.results, table)
    on_record = file.read()
    known = {} if args.again else answered(on_record)
    reasons = {record.question: record.unavailable for record in on_record}
    shown = {record.place: record for record in on_record}
    identities = _identities(args.model)
    records = []
    for name, path in args.model.items():
        asked = [
            Record(
                table=table,
                system=name,
                unit=unit.name,
                settings={**unit.settings, "dtype": args.dtype, "preset": args.preset},
                model=identities[name],
                seed=args.seed,
                replica=args.replica,
                step=args.step,
            )
            for unit in units
        ]
        open_units = [unit for unit, record in zip(units, asked, strict=True) if record.question not in known]
        model = open_model(path, args) if open_units else None
        bar = tqdm(total=len(units), desc=f"{table}: {name}", unit="cell", file=sys.stderr)
        for unit, record in zip(units, asked, strict=True):
            bar.set_postfix_str(unit.name)
            if unit in open_units:
                record = _measured(unit, record, model, device=args.device)
                if record.unavailable is None or record.unavailable != reasons.get(record.question):
                    file.append(record)  # the same reason once more is no news
            else:
                record = known[record.question]
                last = shown[record.place]
                if (last.question, last.unavailable) != (record.question, None):  # others took the cell over meanwhile
                    file.append(record)
            records.append(record)
            bar.update()
        bar.close()
        model = None  # so that the next one does not come beside it
    print_table(records)
    print("\n" + last_line(table, args, records, file.path))
    return records


def last_line(table: str, args: argparse.Namespace, records: Sequence[Record], path: Path) -> str:
    """Say what was measured; where nothing was, what is missing and where it was looked for."""
    if any(record.metrics for record in records):
        absent = sum(not record.metrics for record in records)
        told = f", {absent} not available" if absent else ""
        return f"{table}: OK ({len(args.model)} models, {len(records) // len(args.model)} cells each{told}; {path})"
    where = "the Hub, since `--data` was left out" if args.data is None else f"`--data` {str(args.data)!r}"
    missing = ", ".join(dict.fromkeys(record.unit for record in records)) or "all"
    return f"{table}: FAILED (nothing measured; not available: {missing}; looked for in {where})"


def print_table(records: Sequence[Record]) -> None:
    """Print systems by units and metrics, and below them why cells could not be measured."""
    columns = list(dict.fromkeys((record.unit, metric) for record in records for metric in record.metrics))
    cells = {
        (record.system, record.unit, metric): value for record in records for metric, value in record.metrics.items()
    }
    if not columns and records:
        print()
    else:
        _print_figures(records, columns, cells)
    for record in records:
        if record.unavailable:
            print(f"{record.system}, {record.unit}: not available here: {record.unavailable}")


def _print_figures(
    records: Sequence[Record], columns: Sequence[tuple[str, str]], cells: dict[tuple[str, str, str], float]
) -> None:
    """Print the rows of a table."""
    width = max([len(record.system) for record in records], default=0) + 2
    titles = [f"{unit} {metric}" for unit, metric in columns]
    print("\n" + " " * width + "".join(f"{title:>{len(title) + 2}s}" for title in titles))
    for system in dict.fromkeys(record.system for record in records):
        values = [cells.get((system, *column)) for column in columns]
        told = ["-" if value is None else f"{value:.4f}" for value in values]
        print(f"{system:{width}s}" + "".join(f"{value:>{len(t) + 2}s}" for value, t in zip(told, titles, strict=True)))


def _identities(named: dict[str, str]) -> dict[str, dict[str, str | None]]:
    """Return what tells the weights of each model apart."""
    found: dict[str, dict[str, str | None]] = {}
    check(about_models(named, lambda path: found.setdefault(path, identify(path))))
    return {name: found[path] for name, path in named.items()}


def _measured(unit: Unit, asked: Record, model: Any, *, device: str) -> Record:
    """Measure one cell."""
    started = time.perf_counter()
    try:
        found: dict[str, Any] = vars(unit.measure(model))
    except NotAvailableError as error:
        found = {"unavailable": str(error)}
    return Record(**{**vars(asked), **found, **conditions(device), "seconds": round(time.perf_counter() - started, 3)})


__all__ = [
    "Measurement", "NotAvailableError", "Unit", "about_models", "complaints_of", "make_parser", "open_magnet",
    "parse", "print_table", "run", "unless_absent",
]  # fmt: skip
