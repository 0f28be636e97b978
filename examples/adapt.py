"""Adapt a Llama to MAGNET: any decoder, any text, one checkpoint that generates, encodes and infills.

    python examples/adapt.py examples/configs/llama2_7b_paper.json
    python examples/adapt.py --model_name_or_path DIR --train_texts corpus.jsonl.xz --output_dir outputs/mine
    accelerate launch examples/adapt.py CONFIG.json

At the end `output_dir` holds the checkpoint and its model card, with adapters merged unless `--merge_adapter false`
is given; `adapt.json` with all arguments and measurements; and `curves.png` with the loss of each objective, if
matplotlib is installed.
"""

import difflib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.command_line import DTYPES, check, keep_freed_memory, start  # before anything imports transformers

# isort: split
import torch
from datasets import Dataset
from torch import nn
from transformers import HfArgumentParser, PreTrainedTokenizerBase, set_seed
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_utils import unwrap_peft_model

from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.configuration_magnet import MODES, resolve_mask_token
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.masking_magnet import MASKED_BACKENDS
from modeling_magnet.tokenization_magnet import context_length, join_prompt
from trainer import (
    LoraArguments,
    MagnetTrainer,
    MagnetTrainingArguments,
    apply_lora,
    dropout_pairs,
    load_pairs,
    load_texts,
    paraphrase_pairs,
    texts_to_blocks,
)
from trainer.checkpoints import check_checkpoint, check_processes, last_complete_checkpoint, remove_checkpoints
from trainer.checks import check_run
from trainer.contrastive import HEAD_NAME, attach_contrastive_head
from trainer.lora import LARGEST_MODEL, adapter_cost
from trainer.model_card import describe_data
from trainer.whole_files import parse_json, whole_file

try:
    from examples.tour.pictures import draw_objectives
except ImportError:  # of matplotlib, in the extra `plots`
    draw_objectives = None  # type: ignore[assignment]


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
    pair_columns: list[str] | None = field(default=None, metadata={"help": "The two columns of given pairs."})
    pair_label_column: str | None = field(default=None, metadata={"help": "Keep pairs whose label here is 1."})
    pair_limit: int | None = field(default=20_000, metadata={"help": "Use this many pairs at most."})
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


def check_arguments(adapt: AdaptArguments, lora: LoraArguments, training: MagnetTrainingArguments) -> None:
    """Refuse values out of range and contradictions between the argument groups before anything is read."""
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
    with refusing(ValueError):
        check(complaints)


def _about_model(adapt: AdaptArguments, training: MagnetTrainingArguments) -> Iterator[str]:
    """Yield what is wrong with how the model is to be held."""
    if adapt.dtype is not None and adapt.dtype not in DTYPES:
        yield f"`dtype` is {adapt.dtype!r}; pass one of {list(DTYPES)}."
    if adapt.attn_implementation is not None and adapt.attn_implementation not in MASKED_BACKENDS:
        yield f"`attn_implementation` is {adapt.attn_implementation!r}; pass one of {list(MASKED_BACKENDS)}."
    elif adapt.attn_implementation == "flex_attention" and training.device.type == "cpu":
        yield "`attn_implementation` is 'flex_attention', which has no backward pass on the CPU. Pass 'sdpa'."


def _about_adapter(adapt: AdaptArguments, lora: LoraArguments, training: MagnetTrainingArguments) -> Iterator[str]:
    """Yield what contradicts how the result is to be saved and pushed."""
    if not lora.use_lora and (not adapt.merge_adapter or adapt.adapter_modes is not None):
        yield "`merge_adapter` and `adapter_modes` are for adapters, and `use_lora` is false. Drop one of them."
    elif adapt.merge_adapter and adapt.adapter_modes is not None:
        yield "`adapter_modes` is for an unmerged adapter. Pass `--merge_adapter false`, or leave it out."
    elif not set(adapt.adapter_modes or ()) <= set(MODES):
        yield f"`adapter_modes` is {adapt.adapter_modes}; pass some of {list(MODES)}."
    if training.push_to_hub and not training.hub_model_id:
        yield "`push_to_hub` is true, but no `hub_model_id` says where to. Name a repository, such as `me/mine`."


def _about_pairs(adapt: AdaptArguments, training: MagnetTrainingArguments) -> Iterator[str]:
    """Yield which arguments about pairs contradict each other."""
    if adapt.pairs == "dropout" and training.uses_contrastive_loss and training.view_dropout == 0:
        yield "`pairs` is 'dropout', but `view_dropout` is 0: both views would be the same. Set it, e.g. to 0.3."
    if adapt.pair_columns is not None and len(set(adapt.pair_columns)) != 2:
        yield f"`pair_columns` is {adapt.pair_columns}; name two different columns."
    if adapt.pairs in ("dropout", "paraphrase") and (adapt.pair_columns or adapt.pair_label_column):
        yield f"`pairs` is {adapt.pairs!r}, which makes its own pairs, but columns of given pairs are named. Drop one."


def _about_output(training: MagnetTrainingArguments) -> Iterator[str]:
    """Yield what is in the way of writing to the output folder, or of going on with what is there."""
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
        yield f"`resume_from_checkpoint` is {resume!r}, which is not a folder. Name a checkpoint, or pass true."
    elif isinstance(resume, str):
        try:
            check_checkpoint(resume)
            check_processes(resume, num_processes=training.world_size)
        except ValueError as error:
            yield str(error)


def resume_point(training: MagnetTrainingArguments) -> str | bool | None:
    """Return `resume_from_checkpoint` as the trainer takes it: `True` for the newest, a folder, or `None`."""
    wish = training.resume_from_checkpoint
    return {"true": True, "false": None}.get(str(wish).lower(), wish)


def parse_arguments(arguments: list[str]) -> tuple[AdaptArguments, LoraArguments, MagnetTrainingArguments]:
    """Parse one JSON file, JSON and options that override it, or options only.

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


def _about_unknown(words: list[str], *, known: list[str]) -> str:
    """Say which options are not known, and which were meant."""
    names = [word.partition("=")[0] for word in words if word.startswith("-")] or words
    meant = [match for name in names for match in difflib.get_close_matches(name, known, n=1)]
    told = f" Did you mean {', '.join(meant)}?" if meant else ""
    return f"unknown: {', '.join(names)}.{told} `--help` lists all options."


def _flags_of(recipe: Path) -> list[str]:
    """Return a JSON file as options; keys with an underscore in front are comments."""
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


# What the cost of an unmerged adapter is measured on.
COST_TEXTS, COST_TOKENS = 32, 32


def open_tokenizer(adapt: AdaptArguments) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model, once it is certain that the two can be adapted; no weights are read."""
    config, tokenizer = open_without_weights(adapt.model_name_or_path, gguf_file=adapt.gguf_file)
    known = (getattr(config, "magnet", None) or {}).get("mask_token_id")
    if known is None or adapt.mask_token is not None:
        resolve_mask_token(tokenizer, adapt.mask_token)
    if adapt.max_length > config.max_position_embeddings:
        raise ValueError(
            f"`max_length` is {adapt.max_length}, but the model has positions for {config.max_position_embeddings} "
            "tokens. Lower it."
        )
    return tokenizer


def read_texts(adapt: AdaptArguments) -> tuple[Dataset, Dataset | None]:
    """Return texts to train on, and held-out ones where they are named."""
    read: dict[str, Any] = {"text_column": adapt.text_column, "config_name": adapt.dataset_config}
    texts = load_texts(_source(adapt.train_texts), split=adapt.train_split, limit=adapt.train_limit, **read)
    if not adapt.eval_texts:
        return texts, None
    return texts, load_texts(_source(adapt.eval_texts), split=adapt.eval_split, **read)


def _source(names: list[str]) -> str | list[str]:
    """Return one name may be a Hub id; several are files."""
    return names[0] if len(names) == 1 else names


def read_pairs(adapt: AdaptArguments, training: MagnetTrainingArguments, texts: Dataset) -> Dataset | None:
    """Return the contrastive pairs the arguments ask for; none where no phase uses them.

    For paraphrases these are the lines that will be paraphrased, paired with themselves: as many as there will be.
    """
    if not training.uses_contrastive_loss:
        return None
    if adapt.pairs in ("dropout", "paraphrase"):
        return dropout_pairs(texts, min_words=adapt.pair_min_words, limit=adapt.pair_limit)
    columns = None if adapt.pair_columns is None else (adapt.pair_columns[0], adapt.pair_columns[1])
    return load_pairs(adapt.pairs, columns=columns, label_column=adapt.pair_label_column, limit=adapt.pair_limit)


def write_paraphrases(adapt: AdaptArguments, training: MagnetTrainingArguments, texts: Dataset) -> Dataset:
    """Paraphrase the lines; a killed run goes on where it was."""
    return paraphrase_pairs(
        texts,
        model_id=adapt.paraphraser,
        output_path=Path(str(training.output_dir)) / "paraphrases.jsonl",
        min_words=adapt.pair_min_words,
        limit=adapt.pair_limit,
    )


def remember_prompt(model: Any, prompt: str) -> None:
    """Make the prompt of the contrastive training the one that `encode` and sentence-transformers use by default."""
    if prompt:
        model.prompts["sentence"] = join_prompt(prompt, "")
    model.default_prompt_name = "sentence" if prompt else None


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run an adaptation.

    Raises:
        ArgumentError: what cannot work, before the first step.
    """
    adapt, lora, training = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    check_arguments(adapt, lora, training)
    set_seed(training.seed)
    started = time.perf_counter()
    # What is pushed is the result, once; the trainer would push every checkpoint on the way.
    wants_push, training.push_to_hub = training.push_to_hub, False
    with refusing(ValueError, ImportError):
        trainer = build_trainer(adapt, lora, training)
    rows, pairs = len(trainer.train_dataset), len(trainer.pair_dataset or ())
    if training.should_save:
        print(f"{rows:,} rows of up to {adapt.max_length} tokens, {pairs:,} pairs", flush=True)
    with refusing(ImportError):  # of an optimiser whose package is not there
        trainer.train(resume_from_checkpoint=resume_point(training))
    last = trainer.state.global_step
    if trainer.eval_dataset is not None and not any(
        "eval_loss" in log and log["step"] == last for log in trainer.state.log_history
    ):
        trainer.evaluate()
    report = {
        "arguments": {**training.to_dict(), **vars(lora), **vars(adapt)},
        "log_history": trainer.state.log_history,
        "rows": rows,
        "pairs": pairs,
        "seconds": time.perf_counter() - started,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": training.world_size,
    }
    finished = whole_model(trainer, adapt, lora)
    if training.should_save:
        save_and_push(finished, trainer, adapt, lora, wants_push=wants_push)
        if draw_objectives is not None:
            draw_objectives(Path(str(training.output_dir)) / "curves.png", trainer.state.log_history)
        with whole_file(Path(str(training.output_dir)) / "adapt.json") as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())
        if not adapt.keep_checkpoints:
            remove_checkpoints(str(training.output_dir))
        print(f"adapt: OK ({training.output_dir}; {report['seconds']:.0f} s)", flush=True)
    return report


def save_and_push(
    model: Any, trainer: MagnetTrainer, adapt: AdaptArguments, lora: LoraArguments, *, wants_push: bool
) -> None:
    """Write the checkpoint or the adapter with the card of the run, and push it where that was asked for."""
    training = trainer.args
    merged = lora.use_lora and adapt.merge_adapter
    notes = cost_notes(model, trainer.train_dataset) if lora.use_lora and not merged else []
    model.card = trainer.card_text(
        training.hub_model_id or Path(str(training.output_dir)).name,
        merged=merged,
        train_texts=adapt.train_texts,
        eval_texts=adapt.eval_texts or (),
        notes=notes,
        recipe={
            "max_length": adapt.max_length,
            "pairs": describe_data([adapt.pairs]) if training.uses_contrastive_loss else "none",
            "train_limit": adapt.train_limit,
        },
    )
    # Half precision is what an adapter was computed with under autocast; its float32 copy is for the optimiser alone.
    # Merged into weights, most of what it adds would be rounded away.
    dtype = None if not (lora.use_lora and training.bf16) else torch.float32 if merged else torch.bfloat16
    model.save_pretrained(training.output_dir, merge_adapter=merged, dtype=dtype)
    if wants_push:
        commit = model.push_to_hub(
            training.hub_model_id,
            private=training.hub_private_repo,
            token=training.hub_token,
            revision=training.hub_revision,
            merge_adapter=merged,
            dtype=dtype,
        )
        print(f"pushed: {commit.commit_url}", flush=True)


def cost_notes(model: Any, blocks: Dataset) -> list[str]:
    """Return what the unmerged adapter costs in time, as a sentence of the card, where it can be measured."""
    if model.num_parameters() > LARGEST_MODEL:
        return []
    try:
        # A prefix, a suffix and a fill of a quarter each: the last is left to what reading a cut text anew may add.
        quarter = context_length(model.config, model.tokenizer) // 4
        rows = [row[:quarter] for row in blocks[: min(COST_TEXTS, len(blocks))]["input_ids"]]
        texts = model.tokenizer.batch_decode(rows, skip_special_tokens=True)
        cost = adapter_cost(model, texts=texts, new_tokens=min(COST_TOKENS, quarter), rounds=3)
    except Exception as error:  # memory may run out, too: the run is done, and its result must be saved
        print(f"warning: the cost of the adapter was not measured ({error!r})", flush=True)
        return []
    told = ", ".join(f"`{name}` {ratio:.2f}" for name, ratio in cost.items())
    return [f"Unmerged, the adapter costs time: {told} of the time with merged weights, measured here."]


def open_model(adapt: AdaptArguments, training: MagnetTrainingArguments, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the model to adapt, with its tokenizer and the prompt of its training."""
    model = AutoMagnetForCausalLM.from_pretrained(
        adapt.model_name_or_path,
        gguf_file=adapt.gguf_file,
        mask_token=adapt.mask_token,
        attn_implementation=adapt.attn_implementation,
        dtype=getattr(torch, adapt.dtype or "float32"),
    )
    model.tokenizer = tokenizer
    if training.uses_contrastive_loss:
        remember_prompt(model, training.contrastive_prompt)
    return model


def default_dtype(adapt: AdaptArguments, lora: LoraArguments, training: MagnetTrainingArguments) -> str:
    """Choose the dtype of the weights: bfloat16 where it loses nothing and saves converting them in each product."""
    config, _ = open_without_weights(adapt.model_name_or_path, gguf_file=adapt.gguf_file)
    is_half = str(getattr(config, "dtype", None)).endswith("bfloat16")
    return "bfloat16" if training.bf16 and lora.use_lora and is_half else "float32"


def whole_model(trainer: MagnetTrainer, adapt: AdaptArguments, lora: LoraArguments) -> Any:
    """Return the adapted model; where processes share its weights, all of them are in the first process only.

    Every process has to ask for it. The others get the parts that they have.
    """
    trained: Any = unwrap_peft_model(trainer.accelerator.unwrap_model(trainer.model))
    if not trainer.shares_weights:
        return trained
    weights = trainer.whole_weights()
    unset_hf_deepspeed_config()  # from here on one process alone opens a model, and no part of one
    if not trainer.args.should_save:
        return trained
    model = open_model(adapt, trainer.args, trained.tokenizer)
    trained.magnet_settings.store(model.config)
    if isinstance(getattr(trained, HEAD_NAME, None), nn.Module):
        attach_contrastive_head(model, kind="tanh", hidden_size=model.config.hidden_size, seed=0)
    apply_lora(model, lora).load_state_dict(weights)
    if adapt.adapter_modes is not None:
        model.set_adapter_modes(adapt.adapter_modes)
    return model


def build_trainer(adapt: AdaptArguments, lora: LoraArguments, training: MagnetTrainingArguments) -> MagnetTrainer:
    """Read everything a run needs, cheap things first, so that what cannot work is refused early."""
    tokenizer = open_tokenizer(adapt)
    adapt.dtype = adapt.dtype or default_dtype(adapt, lora, training)
    cut: dict[str, Any] = {
        "max_length": adapt.max_length,
        "concatenate": adapt.concatenate_texts,
        "split_special_tokens": training.split_special_tokens,
    }
    # One process fills the cache of the data sets, the others read it.
    with training.main_process_first(desc="reading texts"):
        texts, eval_texts = read_texts(adapt)
        pairs = read_pairs(adapt, training, texts)
        eval_blocks = None if eval_texts is None else texts_to_blocks(eval_texts, tokenizer, **cut)
        if eval_blocks is not None and adapt.eval_limit is not None:
            eval_blocks = eval_blocks.select(range(min(len(eval_blocks), adapt.eval_limit)))
        blocks = texts_to_blocks(texts, tokenizer, **cut)
    model = open_model(adapt, training, tokenizer)
    if training.uses_contrastive_loss and adapt.pairs == "paraphrase":
        # It takes hours: whatever the trainer would refuse is refused before.
        check_run(
            model,
            args=training,
            data_collator=None,
            train_dataset=blocks,
            pair_dataset=pairs,
            eval_pair_dataset=None,
            tokenizer=tokenizer,
        )
        with training.main_process_first(desc="paraphrasing"):
            pairs = write_paraphrases(adapt, training, texts)
    # The first evaluation is what the base can do; a resumed run has it in its history.
    training.eval_on_start = eval_blocks is not None and resume_point(training) is None
    adapted = apply_lora(model, lora)
    if adapt.adapter_modes is not None:  # before training, so that evaluations see what will be saved
        model.set_adapter_modes(adapt.adapter_modes)
    return MagnetTrainer(
        model=adapted,
        args=training,
        train_dataset=blocks,
        eval_dataset=eval_blocks,
        pair_dataset=pairs,
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    keep_freed_memory()  # of the whole process, so not in `main`
    start(main, told=ArgumentError)
