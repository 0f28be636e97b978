"""The command line that the drivers of the paper's tables share, and how a script of theirs ends."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

DTYPES = ("float32", "bfloat16")


def make_parser(doc: str | None, *, smoke: dict[str, Any], paper: dict[str, Any]) -> argparse.ArgumentParser:
    """The options that every driver has; add its own behind them, without defaults where a preset has one.

    Args:
        doc (`str`): The driver's docstring.
        smoke (`dict`): Values of the driver's own options with `--preset smoke`: minutes on a laptop.
        paper (`dict`): With `--preset paper`, the default: as the paper did it.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        nargs="+",
        action="extend",
        required=True,
        metavar="[NAME=]MODEL",
        help="directories, adapters or Hub ids; the name is the row's in the table, by default the folder's",
    )
    parser.add_argument("--preset", default="paper", choices=["smoke", "paper"], help="sizes: of a trial, or in full")
    parser.add_argument("--seed", type=int, default=0, help="of all draws of the measurement")
    parser.add_argument("--data", type=Path, help="folder of the data's files; the Hub if left out")
    parser.add_argument("--results", type=Path, default=Path("outputs/results"), help="folder of the records")
    parser.add_argument("--replica", type=int, default=0, help="which of several trainings of the same system")
    parser.add_argument("--step", type=int, help="training step of the model, for curves")
    parser.add_argument("--again", action="store_true", help="measure anew what is on record; both stay on record")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="dtype of the weights")
    parser.add_argument("--device", help="such as cpu or cuda:1; CUDA where there is some if left out")
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
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    complaints = []
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:  # the second where torch was built without CUDA
        reason = str(error).splitlines()[0]
        complaints.append(
            f"`--device` is {args.device!r}, which cannot be used ({reason}). Pass another, such as cpu."
        )
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
    return args


def check(complaints: Sequence[str]) -> None:
    """Refuse arguments before weights are read or anything is measured.

    Raises:
        ValueError: listing the complaints, if there are any.
    """
    if complaints:
        raise ValueError("\n- ".join(["The arguments cannot be used:", *complaints]))


def start(main: Callable[[], Any]) -> None:
    """Run a driver as a script: what the user can mend is told in a line, anything else with its traceback."""
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept; the same command goes on.", file=sys.stderr)
        sys.exit(130)


__all__ = ["DTYPES", "check", "make_parser", "parse", "start"]
