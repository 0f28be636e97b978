"""Define the options that the scripts of the paper's tables share, and check their values."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from examples.command_line import (
    OneLineParser,
    add_data,
    add_device,
    add_dtype,
    add_model,
    at_least,
    choose_device,
    named_items,
    raise_complaints,
)
from examples.models import is_here, offline_where_unreachable


def make_parser(doc: str | None, *, smoke: dict[str, Any], paper: dict[str, Any]) -> argparse.ArgumentParser:
    """Make a parser with the options of every driver; options whose default comes from a preset must not set one."""
    parser = OneLineParser(description=doc)
    add_results(parser)
    add_replica(parser)
    parser.add_argument("--step", type=at_least(0), help="training step of the model, for curves")
    parser.add_argument("--again", action="store_true", help="measure recorded cells again; the old records are kept")
    add_measuring(parser, smoke=smoke, paper=paper)
    return parser


def add_measuring(parser: argparse.ArgumentParser, *, smoke: dict[str, Any], paper: dict[str, Any]) -> None:
    """Add the options of the measurement: models, data, sizes, seeds, and device."""
    add_model(
        parser,
        nargs="+",
        action="extend",
        metavar="[NAME=]MODEL",
        help="directories, adapters or Hub ids; the name is the row's in the table, by default the folder's",
    )
    parser.add_argument("--preset", default="paper", choices=["smoke", "paper"], help="sizes: of a trial, or in full")
    add_data(parser)
    add_seed(parser)
    add_dtype(parser)
    add_device(parser)
    parser.add_argument("--compile", action="store_true", help="compile the layers: a minute, then faster on a CPU")
    parser.set_defaults(presets={"smoke": smoke, "paper": paper})


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add `--results`."""
    parser.add_argument("--results", type=Path, default=Path("outputs/results"), help="folder of the records")


def add_replica(parser: argparse.ArgumentParser) -> None:
    """Add `--replica`."""
    parser.add_argument("--replica", type=at_least(0), default=0, help="index among several trainings of a system")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add `--seed`."""
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of all draws of the measurement")


def add_limit(parser: argparse.ArgumentParser, what: str, *, minimum: int = 1) -> None:
    """Add `--limit`, the size of the measurement."""
    parser.add_argument("--limit", type=at_least(minimum), help=what)


def add_batch_size(parser: argparse.ArgumentParser, what: str, *, default: int | None = 16) -> None:
    """Add `--batch_size`."""
    parser.add_argument("--batch_size", type=at_least(), default=default, help=what)


def add_max_new_tokens(parser: argparse.ArgumentParser, what: str, *, default: int | None = None) -> None:
    """Add `--max_new_tokens`."""
    parser.add_argument("--max_new_tokens", type=at_least(), default=default, help=f"tokens of a {what} at most")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line of a driver."""
    return checked(parser.parse_args(arguments))


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """Fill unset options from the preset, check the shared ones, and convert `model` to paths by name."""
    for name, value in args.presets[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    del args.presets
    complaints: list[str] = []
    try:
        args.device = choose_device(args.device)
    except ValueError as error:
        complaints.append(str(error))
    named = [item if "=" in item else f"{Path(item).name}={item}" for item in args.model]
    args.model, faults = named_items(named, option="--model", what="MODEL")
    complaints += faults
    if args.data is not None and not args.data.is_dir():
        complaints.append(f"`--data` {str(args.data)!r} is not a folder. Name one, or leave it out for the Hub.")
    raise_complaints(complaints)
    if args.data is None or not all(map(is_here, args.model.values())):
        offline_where_unreachable()
    return args


def complaints_of(attempts: Mapping[str, Callable[[], Any]]) -> list[str]:
    """Call each function and return the messages of those that fail, with their names."""
    complaints = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except (ValueError, OSError) as error:
            complaints.append(f"{name}: {error}")
    return complaints


def model_complaints(models: Mapping[str, str], look: Callable[[str], Any]) -> list[str]:
    """Return what `look` finds wrong with the models, before weights are read."""
    return complaints_of({f"`--model` {name}": partial(look, path) for name, path in models.items()})
