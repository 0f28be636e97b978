"""Define the options of the drivers that embed sentences, and check them before weights are read."""

import argparse
import copy
from collections.abc import Callable, Sequence
from typing import Any

from examples.command_line import raise_complaints, require_extra
from examples.evaluate.parts.driver import NotAvailableError, Unit, open_magnet, print_table, run
from examples.evaluate.parts.records import Record
from examples.evaluate.parts.sentence_readers import (
    ECHO_TEMPLATE,
    PLAIN_ECHO_TEMPLATE,
    POOLINGS,
    CausalReader,
    EchoReader,
    MagnetReader,
    SentenceReader,
    check_echo_prompt_fits,
    open_encoder,
)
from modeling_magnet import FAMILIES
from modeling_magnet.configuration_magnet import PAPER_PROMPTS
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.sources_magnet import ModelSource
from modeling_magnet.tokenization_magnet import checked_prompt_length, context_length


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add `--reading`, `--pooling` and `--prompt`."""
    parser.add_argument(
        "--reading",
        choices=list(POOLINGS),
        help="how sentences are read; by default magnet for a MAGNET checkpoint or an adapter, causal for a plain "
        "decoder, encoder for anything else",
    )
    choices = "; ".join(f"{reading}: {', '.join(poolings)}" for reading, poolings in POOLINGS.items())
    parser.add_argument("--pooling", help=f"states that make the vector, the first by default ({choices})")
    parser.add_argument("--prompt", help="instruction, '' for none; defaults to the paper's, for an encoder to none")


def default_reading(path: str) -> str:
    """Return the default reading of a model."""
    source = ModelSource(path, {})
    if source.adapter_base() is not None:
        return "magnet"
    values = source.config_values()
    if "magnet" in values:
        return "magnet"
    is_embedder = source.file("modules.json") is not None
    return "causal" if values["model_type"] in FAMILIES and not is_embedder else "encoder"


def prompt_of(args: argparse.Namespace, task: str) -> str:
    """Return the instruction of a task, named as in `PAPER_PROMPTS`, for the reading of `args`."""
    if args.prompt is not None:
        return str(args.prompt)
    return "" if args.reading == "encoder" else PAPER_PROMPTS[task]


def reading_settings(args: argparse.Namespace, prompt: str) -> dict[str, Any]:
    """Return the settings of the reading that affect a figure, for the record."""
    settings = {"reading": args.reading, "pooling": args.pooling, "prompt": prompt}
    if args.reading == "echo":
        settings["template"] = ECHO_TEMPLATE if prompt.strip() else PLAIN_ECHO_TEMPLATE
    return settings


def open_reader(path: str, args: argparse.Namespace) -> SentenceReader:
    """Open the model of a directory or Hub id in the reading of `args`."""
    if args.reading == "encoder":
        return open_encoder(path, pooling=args.pooling, dtype=args.dtype, device=args.device)
    readers: dict[str, Callable[..., SentenceReader]] = {
        "magnet": MagnetReader,
        "causal": CausalReader,
        "echo": EchoReader,
    }
    return readers[args.reading](open_magnet(path, args), pooling=args.pooling)


def by_reading(
    args: argparse.Namespace, *, tasks: Sequence[str], complaints: Sequence[str] = ()
) -> list[argparse.Namespace]:
    """Return the arguments once per reading, each with its own models and pooling."""
    complaints = list(complaints)
    groups: dict[str, argparse.Namespace] = {}
    for name, path in args.model.items():
        try:
            reading = args.reading or default_reading(path)
            if reading not in groups:
                groups[reading] = _with_reading(args, reading)
            _check_model(path, groups[reading], tasks)
            groups[reading].model[name] = path
        except ValueError as error:
            complaints.append(f"`--model` {name}: {error}")
    for group in groups.values():
        poolings = POOLINGS[group.reading]
        if group.pooling not in poolings:
            complaints.append(
                f"`--pooling` is {group.pooling!r}; the reading {group.reading} has {', '.join(poolings)}. Pass one."
            )
    raise_complaints(complaints)
    if "encoder" in groups:
        require_extra("eval", "sentence_transformers")
    return list(groups.values())


def data_complaints(tasks: Sequence[str], read: Callable[[str], Any]) -> list[str]:
    """Return what is wrong with the data of tasks; missing data is reported in the cells instead."""
    complaints = []
    for task in tasks:
        try:
            read(task)
        except ValueError as error:
            complaints.append(f"`--data`: {error}")
        except NotAvailableError:
            continue
    return complaints


def run_readings(
    table: str, groups: Sequence[argparse.Namespace], units_of: Callable[[argparse.Namespace], list[Unit]]
) -> list[Record]:
    """Measure all models, reading by reading, and print one table."""
    records = []
    for group in groups:
        records += run(table, group, units_of(group), open_model=open_reader)
    if len(groups) > 1:
        print_table(records)
    return records


def _with_reading(args: argparse.Namespace, reading: str) -> argparse.Namespace:
    """Return the arguments for a reading, with an empty list of models."""
    group = copy.copy(args)
    group.reading, group.model = reading, {}
    group.compile = args.compile and reading != "encoder"  # sentence-transformers opens an encoder
    group.pooling = POOLINGS[reading][0] if args.pooling is None else args.pooling
    return group


def _check_model(path: str, group: argparse.Namespace, tasks: Sequence[str]) -> None:
    """Refuse a model that does not support the reading, or whose context the instructions fill."""
    if group.reading == "encoder":
        ModelSource(path, {}).config_values()
        return
    config, tokenizer = open_without_weights(path)
    check_frame = check_echo_prompt_fits if group.reading == "echo" else checked_prompt_length
    for prompt in dict.fromkeys(prompt_of(group, task) for task in tasks):
        check_frame(tokenizer, prompt=prompt, max_length=context_length(config, tokenizer))
