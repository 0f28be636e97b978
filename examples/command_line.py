"""Define the command line that all scripts share: option names, devices, extras, and error reports.

Imports only the standard library, so that `--help` works without extras.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

# transformers imports torchao if it is installed. torchao then reports GPU kernels that do not load here, and torch
# how its classes are registered. Neither concerns a run that does not use torchao.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

HEADING = "The arguments cannot be used:"
DTYPES = ("float32", "bfloat16")
_LISTED = "\n- "


class OneLineParser(argparse.ArgumentParser):
    """Parse arguments and report errors in one line; the help keeps the line breaks of the script's docstring."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print one line without argparse's summary of all options, and exit with code 2."""
        self.exit(2, f"error: {' '.join(message.split())}. See --help.\n")


def at_least(minimum: int = 1, maximum: int | None = None) -> Callable[[str], int]:
    """Return an argparse `type` for whole numbers in a range."""
    upper = "" if maximum is None else f" and at most {maximum}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least {minimum}{upper}")
        return value

    return convert


def add_model(parser: Any, *, help: str, required: bool = True, **options: Any) -> None:
    """Add `--model_name_or_path`, also spelled `--model`; the value is `args.model`."""
    options = {"metavar": "MODEL", **options}
    parser.add_argument("--model_name_or_path", "--model", dest="model", required=required, help=help, **options)


def add_device(parser: Any) -> None:
    """Add `--device`; pass `args.device` to `choose_device`."""
    parser.add_argument("--device", help="such as cpu or cuda:1; defaults to CUDA if available")


def add_dtype(parser: Any) -> None:
    """Add `--dtype`, the dtype of the weights."""
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="dtype of the weights")


def add_data(parser: Any) -> None:
    """Add `--data`, the folder with the data files."""
    parser.add_argument("--data", type=Path, help="folder with the data files, searched recursively; default: the Hub")


def add_output_dir(parser: Any, *, help: str, **options: Any) -> None:
    """Add `--output_dir`, a folder to write; the value is `args.output`."""
    parser.add_argument("--output_dir", dest="output", metavar="DIR", type=Path, help=help, **options)


def choose_device(name: str | None) -> str:
    """Return the requested device; by default CUDA if available, else the CPU."""
    import torch  # imported here, so that `--help` does not wait for torch

    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`--device` is {device!r}, which cannot be used ({reason}). Pass another, such as cpu."
        ) from error
    return device


def named_items(items: Sequence[str], *, option: str, what: str = "DIR") -> tuple[dict[str, str], list[str]]:
    """Parse a list of `NAME=VALUE`."""
    named: dict[str, str] = {}
    complaints = []
    for item in items:
        name, _, value = item.partition("=")
        if not (name and value):
            complaints.append(f"`{option}` has {item!r}; expected NAME={what}.")
        elif name in named:
            complaints.append(f"`{option}` has {name!r} twice. Give each a name of its own: NAME={what}.")
        named[name] = value
    return named, complaints


def require_extra(extra: str, *modules: str) -> None:
    """Raise an error if packages of an extra are missing."""
    missing = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing[module] = str(error)
    if missing:
        reason = next(iter(missing.values()))
        raise ValueError(
            f"{', '.join(missing)} cannot be imported ({reason}). Install it: pip install -e '.[{extra}]'"
        )


def raise_complaints(complaints: Sequence[str]) -> None:
    """Raise one error with all complaints, before weights are read or anything is measured."""
    if complaints:
        raise ValueError(_LISTED.join([HEADING, *complaints]))


def in_lines(error: BaseException) -> str:
    """Format an error: one complaint in one line, several below their heading.

    Example:
        >>> in_lines(ValueError("The arguments cannot be used:\\n- `--limit` is 0.\\n  Pass more."))
        '`--limit` is 0. Pass more.'
    """
    heading, *complaints = (" ".join(part.split()) for part in str(error).split(_LISTED))
    if heading == HEADING and len(complaints) == 1:
        return complaints[0]
    return _LISTED.join([heading, *complaints]) or type(error).__name__


def start(
    main: Callable[[], Any], *, reported: type[Exception] | tuple[type[Exception], ...] = (ValueError, OSError)
) -> None:
    """Run a script and turn errors that the user can fix into a short message.

    Exit with code 2 and one line for such an error, with 1 and one line if memory ran out, with 130 after Ctrl+C.
    Any other error keeps its traceback.
    """
    try:
        result = main()
    except reported as error:
        print(f"error: {in_lines(error)}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # raised by torch, which is not imported here
            raise
        print(f"error: {in_lines(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nStopped. Finished work is kept; the same command resumes it.", file=sys.stderr)
        sys.exit(130)
    if isinstance(result, list) and result and all(getattr(record, "unavailable", None) for record in result):
        sys.exit(1)
