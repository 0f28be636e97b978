"""The arguments of `adapt.py`: what can be said, and what contradicts itself."""

import difflib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from modeling_magnet.masking_magnet import MASKED_BACKENDS, MODES
from trainer import LoraArguments, MagnetTrainingArguments
from trainer.checkpoints import check_checkpoint, check_processes, last_complete_checkpoint
from trainer.whole_files import parse_json

DTYPES = ("float32", "bfloat16")


class ArgumentError(ValueError):
    """What cannot be used was asked for; a script says so in one message and without a traceback."""


class _Parser(HfArgumentParser):
    """Raises what argparse would print below pages of usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse an option or its value.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(message)


@dataclass
class AdaptArguments:
    """Which model and which texts."""

    model_name_or_path: str = field(
        metadata={"help": "Directory or Hub id of a plain decoder or a MAGNET checkpoint, or gemma-3-270m."}
    )
    train_texts: list[str] = field(
        metadata={"help": "Files (.txt, .jsonl, .parquet, also .gz and .xz), directories, globs, or one Hub id."}
    )
    gguf_file: str | None = field(default=None, metadata={"help": "The GGUF file there that holds the model."})
    mask_token: str | None = field(default=None, metadata={"help": "Overrides the choice of the mask token."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa or flex_attention; by default the fastest of the first two."}
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Dtype in which the weights are held. By default bfloat16 where `bf16` is true, the checkpoint "
            "holds them so and adapters alone are trained; otherwise float32."
        },
    )
    text_column: str = field(default="text", metadata={"help": "Column of the texts."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split of a Hub dataset, slices included."})
    train_limit: int | None = field(default=None, metadata={"help": "Use this many texts at most."})
    eval_texts: list[str] | None = field(default=None, metadata={"help": "Held-out texts, as for training."})
    eval_split: str = field(default="train", metadata={"help": "Their split, where they are a Hub dataset."})
    eval_limit: int | None = field(default=None, metadata={"help": "Use this many held-out rows at most."})
    max_length: int = field(default=512, metadata={"help": "Tokens of a row, BOS included."})
    concatenate_texts: bool = field(
        default=False, metadata={"help": "Join texts before cutting rows; for corpora with one paragraph per line."}
    )
    pairs: str = field(
        default="paraphrase", metadata={"help": "Pairs from: `paraphrase`, `dropout`, or files and Hub ids of pairs."}
    )
    pair_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub dataset of pairs."})
    pair_columns: list[str] | None = field(default=None, metadata={"help": "The two columns of given pairs."})
    pair_label_column: str | None = field(default=None, metadata={"help": "Keep pairs whose label here is 1."})
    pair_limit: int | None = field(default=20_000, metadata={"help": "Use this many pairs at most."})
    eval_pairs: int = field(default=0, metadata={"help": "Hold out this many pairs and report their loss, too."})
    pair_min_words: int = field(
        default=21, metadata={"help": "Shortest line that is paraphrased or paired with itself, in words."}
    )
    paraphraser: str = field(
        default="prithivida/parrot_paraphraser_on_T5", metadata={"help": "Sequence-to-sequence model for paraphrases."}
    )
    merge_adapter: bool = field(
        default=True, metadata={"help": "Merge LoRA into the checkpoint; false saves the adapter alone."}
    )
    adapter_modes: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modes in which an unmerged adapter is on; `bidirectional infill` leaves generation to the base."
        },
    )
    keep_checkpoints: bool = field(
        default=False,
        metadata={"help": "Leave the checkpoints of the run in `output_dir` after the finished one was saved there."},
    )
    license: str | None = field(
        default=None, metadata={"help": "The Hub's identifier for the model card; by default the base model's."}
    )
    language: list[str] | None = field(default=None, metadata={"help": "Language codes for the model card."})


def check_arguments(adapt: AdaptArguments, lora: LoraArguments, training: MagnetTrainingArguments) -> None:
    """Refuse values out of range and contradictions between the argument groups before anything is read.

    Raises:
        ValueError: listing them.
    """
    complaints = [
        *_about_model(adapt, training),
        *_about_adapter(adapt, lora, training),
        *_about_pairs(adapt, training),
        *_about_output(training),
    ]
    if adapt.eval_limit is not None and adapt.eval_limit < 1:
        complaints.append(f"`eval_limit` is {adapt.eval_limit}; pass 1 or more, or leave it out.")
    if adapt.eval_texts is None and training.eval_strategy != "no":
        complaints.append(
            "`eval_strategy` asks for evaluations, but there are no `eval_texts`. Name some, or set it to 'no'."
        )
    missing = [
        name
        for name in training.report_to or []
        if name in INTEGRATION_TO_CALLBACK and name not in get_available_reporting_integrations()
    ]
    if missing:
        complaints.append(f"`report_to` names {', '.join(missing)}, not installed here. Install it, or pass 'none'.")
    if complaints:
        raise ArgumentError("\n- ".join(["The arguments cannot be used:", *complaints]))


def _about_model(adapt: AdaptArguments, training: MagnetTrainingArguments) -> Iterator[str]:
    """What is wrong with how the model is to be held."""
    if adapt.dtype is not None and adapt.dtype not in DTYPES:
        yield f"`dtype` is {adapt.dtype!r}; pass one of {list(DTYPES)}."
    if adapt.attn_implementation is not None and adapt.attn_implementation not in MASKED_BACKENDS:
        yield f"`attn_implementation` is {adapt.attn_implementation!r}; pass one of {list(MASKED_BACKENDS)}."
    elif adapt.attn_implementation == "flex_attention" and training.device.type == "cpu":
        yield "`attn_implementation` is 'flex_attention', which has no backward pass on the CPU. Pass 'sdpa'."


def _about_adapter(adapt: AdaptArguments, lora: LoraArguments, training: MagnetTrainingArguments) -> Iterator[str]:
    """What contradicts how the result is to be saved and pushed."""
    if not lora.use_lora and (not adapt.merge_adapter or adapt.adapter_modes is not None):
        yield "`merge_adapter` and `adapter_modes` are for adapters, and `use_lora` is false. Drop one of them."
    elif adapt.merge_adapter and adapt.adapter_modes is not None:
        yield "`adapter_modes` is for an unmerged adapter. Pass `--merge_adapter false`, or leave it out."
    elif not set(adapt.adapter_modes or ()) <= set(MODES):
        yield f"`adapter_modes` is {adapt.adapter_modes}; pass some of {list(MODES)}."
    if training.push_to_hub and not training.hub_model_id:
        yield "`push_to_hub` is true, but no `hub_model_id` says where to. Name a repository, such as `me/mine`."


def _about_pairs(adapt: AdaptArguments, training: MagnetTrainingArguments) -> Iterator[str]:
    """Which arguments about pairs contradict each other."""
    if adapt.pairs == "dropout" and training.uses_contrastive_loss and training.view_dropout == 0:
        yield "`pairs` is 'dropout', but `view_dropout` is 0: both views would be the same. Set it, e.g. to 0.3."
    if adapt.eval_pairs < 0 or (adapt.eval_pairs > 0 and not adapt.eval_texts):
        yield f"`eval_pairs` is {adapt.eval_pairs}; pass 0, or 1 or more together with `eval_texts`."
    if adapt.pair_columns is not None and len(set(adapt.pair_columns)) != 2:
        yield f"`pair_columns` is {adapt.pair_columns}; name two different columns."
    if adapt.pairs in ("dropout", "paraphrase") and (
        adapt.pair_columns or adapt.pair_label_column or adapt.pair_config
    ):
        yield (
            f"`pairs` is {adapt.pairs!r}, which makes its own pairs, but columns or a configuration of given pairs "
            "are named. Drop one of them."
        )


def _about_output(training: MagnetTrainingArguments) -> Iterator[str]:
    """What stands in the way of writing to the output folder, or of going on with what is there."""
    output = Path(str(training.output_dir))
    resume = resume_point(training)
    if output.is_file():
        yield f"`output_dir` {str(output)!r} is a file; name a folder."
    elif (output / "adapt.json").exists():
        yield f"`output_dir` {str(output)!r} holds a finished run. Choose another directory."
    elif resume is None and any(output.glob("checkpoint-*/trainer_state.json")):
        yield (
            f"`output_dir` {str(output)!r} holds checkpoints of a run. Pass `--resume_from_checkpoint true` to go on "
            "with it, or choose another directory."
        )
    elif resume is True and last_complete_checkpoint(output, num_processes=training.world_size) is None:
        yield (
            f"`resume_from_checkpoint` is true, but `output_dir` {str(output)!r} has no complete checkpoint of "
            f"{training.world_size} process(es). Delete what is there and leave it out, to start afresh."
        )
    elif isinstance(resume, str) and not Path(resume).is_dir():
        yield f"`resume_from_checkpoint` is {resume!r}, which is no folder. Name a checkpoint, or pass true."
    elif isinstance(resume, str):
        try:
            check_checkpoint(resume)
            check_processes(resume, num_processes=training.world_size)
        except ValueError as error:
            yield str(error)


def resume_point(training: MagnetTrainingArguments) -> str | bool | None:
    """`resume_from_checkpoint` as the trainer takes it: `True` for the newest, a folder, or `None`."""
    wish = training.resume_from_checkpoint
    return {"true": True, "false": None}.get(str(wish).lower(), wish)


def parse_arguments(arguments: list[str]) -> tuple[AdaptArguments, LoraArguments, MagnetTrainingArguments]:
    """From one JSON file, JSON and overriding options behind it, or options alone.

    Raises:
        ArgumentError: an option that is not known, or a value that cannot be used.
    """
    parser = _Parser((AdaptArguments, LoraArguments, MagnetTrainingArguments))  # type: ignore[arg-type]
    # Beside its own errors transformers raises what the packages do that an option asks for.
    with refusing(ValueError, TypeError, KeyError, ImportError, RuntimeError):
        if arguments and arguments[0].endswith(".json"):
            arguments = [*_flags_of(Path(arguments[0])), *arguments[1:]]
        *parsed, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
        if unknown:
            raise ArgumentError(_about_unknown(unknown, known=list(parser._option_string_actions)))
    return tuple(parsed)  # type: ignore[return-value]


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Make some errors of what is asked for an `ArgumentError`, which is a `ValueError`, with the same message."""
    try:
        yield
    except ArgumentError:
        raise
    except errors as error:
        raise ArgumentError(str(error) or repr(error)) from error


def run_script(main: Callable[[], Any]) -> None:
    """Run a script; what cannot be used ends it with `error: ...` and status 2, too little memory with status 1."""
    try:
        main()
    except (ArgumentError, torch.OutOfMemoryError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)


def _about_unknown(words: list[str], *, known: list[str]) -> str:
    """Say which options are not known, and which were meant."""
    names = [word.partition("=")[0] for word in words if word.startswith("-")] or words
    meant = [match for name in names for match in difflib.get_close_matches(name, known, n=1)]
    told = f" Did you mean {', '.join(meant)}?" if meant else ""
    return f"unknown: {', '.join(names)}.{told} `--help` lists all options."


def _flags_of(recipe: Path) -> list[str]:
    """A JSON file as options; keys with an underscore in front are comments.

    Raises:
        ValueError: the file is not there or is not a JSON object.
    """
    try:
        values = parse_json(recipe.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(recipe)!r} cannot be read as JSON ({error}). Name one file of arguments.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(recipe)!r} holds a JSON {type(values).__name__}; expected an object of arguments.")
    flags: list[str] = []
    for name, value in values.items():
        if name.startswith("_") or value is None:
            continue
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
