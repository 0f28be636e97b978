"""The command line that the drivers of the paper's tables share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.command_line import (
    DTYPES,
    OneLineParser,
    add_data,
    add_device,
    add_dtype,
    add_model,
    at_least,
    check,
    choose_device,
    start,
)
from examples.hub import offline_where_unreachable
from examples.models import is_here


def make_parser(doc: str | None, *, smoke: dict[str, Any], paper: dict[str, Any]) -> argparse.ArgumentParser:
    """The options that every driver has; add its own behind them, without defaults where a preset has one.

    Args:
        doc (`str`): The driver's docstring.
        smoke (`dict`): Values of the driver's own options with `--preset smoke`: minutes on a laptop.
        paper (`dict`): With `--preset paper`, the default: as the paper did it.
    """
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
    """Read the command line; what is not said comes from the preset.

    Raises:
        ValueError: two models of one name, or a device that cannot be used.
    """
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
        complaints.append(f"`--data` {str(args.data)!r} is no folder. Name one, or leave it out for the Hub.")
    check(complaints)
    if args.data is None or not all(map(is_here, models.values())):
        offline_where_unreachable()
    return args


__all__ = ["DTYPES", "check", "make_parser", "parse", "start"]
