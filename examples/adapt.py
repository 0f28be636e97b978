"""Adapt a Llama to MAGNET: any decoder, any text, one checkpoint that generates, encodes and infills.

    python examples/adapt.py examples/configs/llama2_7b_paper.json
    python examples/adapt.py --model_name_or_path DIR --train_texts corpus.jsonl.xz --output_dir outputs/mine
    accelerate launch examples/adapt.py CONFIG.json

At the end `output_dir` holds the checkpoint and its model card, with adapters merged unless `--adapter_modes` is
given; `adapt.json` with all arguments and measurements; and `curves.png` with the loss of each objective, if
matplotlib is installed.
"""

import copy
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.command_line import DTYPES, raise_complaints, start  # before anything imports transformers

# isort: split
import torch
from datasets import Dataset
from torch import nn
from transformers import HfArgumentParser, PreTrainedTokenizerBase, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_utils import unwrap_peft_model

from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.configuration_magnet import MODES, MagnetSettings
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.masking_magnet import MASKED_BACKENDS
from modeling_magnet.tokenization_magnet import join_prompt, resolve_mask_token
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
from trainer.checkpoints import checkpoint_to_resume, remove_checkpoints
from trainer.checks import check_run
from trainer.contrastive_head import HEAD_NAME, attach_contrastive_head
from trainer.cpu_memory import keep_freed_memory
from trainer.files import parse_json, write_json
from trainer.model_card import describe_data
from trainer.training_args import option

try:
    from examples.tour.pictures import draw_objectives
except ImportError:  # raised by matplotlib, of the extra `plots`
    draw_objectives = None  # type: ignore[assignment]


class ArgumentError(ValueError):
    """Signal an unusable option; the script prints its message without a traceback."""


class _Parser(HfArgumentParser):
    """Parse arguments and raise errors that argparse would print below pages of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as an `ArgumentError`."""
        raise ArgumentError(message)


@dataclass
class AdaptArguments:
    """The options that select the model, the texts and the pairs."""

    model_name_or_path: str = field(
        metadata={"help": "Directory or Hub id of a plain decoder or a MAGNET checkpoint, or gemma-3-270m."}
    )
    train_texts: list[str] = field(
        metadata={"help": "Files (.txt, .jsonl, .parquet, also .gz and .xz), directories, globs, or one Hub id."}
    )
    gguf_file: str | None = option(None, "The GGUF file there that holds the model.")
    mask_token: str | None = option(None, "Overrides the choice of the mask token.")
    attn_implementation: str | None = option(
        None, "By default the fastest of eager and sdpa.", choices=list(MASKED_BACKENDS)
    )
    dtype: str | None = option(
        None,
        "Dtype in which the weights are held. By default bfloat16 if `bf16` is true, the checkpoint is in bfloat16 "
        "and only adapters are trained; otherwise float32.",
        choices=list(DTYPES),
    )
    text_column: str = option("text", "Column of the texts.")
    dataset_config: str | None = option(None, "Configuration name of a Hub dataset.")
    train_split: str = option("train", "Split of a Hub dataset; also a slice, of files too: `train[:1000]`.")
    eval_texts: list[str] | None = option(None, "Held-out texts, as for training.")
    eval_split: str = option("train", "Split of the held-out texts, as for training.")
    eval_limit: int | None = option(None, "Use this many held-out rows at most.")
    max_length: int = option(512, "Tokens of a row, BOS included.")
    concatenate_texts: bool = option(False, "Join texts before cutting rows; for corpora with one paragraph per line.")
    pairs: str = option("paraphrase", "Pairs from: `paraphrase`, `dropout`, or files and Hub ids of pairs.")
    pair_columns: list[str] | None = option(
        None, "Two columns of given pairs, and optionally a third that holds 1 in the rows to use."
    )
    pair_limit: int | None = option(20_000, "Use this many pairs at most.")
    pair_min_words: int = option(21, "Shortest line that is paraphrased or paired with itself, in words.")
    paraphraser: str = option("prithivida/parrot_paraphraser_on_T5", "Sequence-to-sequence model for paraphrases.")
    adapter_modes: list[str] | None = option(
        None,
        "Save the adapter unmerged, on in these modes: `bidirectional infill` leaves generation to the base. By "
        "default adapters are merged.",
        choices=list(MODES),
    )
    keep_checkpoints: bool = option(
        False, "Leave the checkpoints of the run in `output_dir` after the finished one was saved there."
    )


def check_arguments(adapt: AdaptArguments, lora: LoraArguments, training: MagnetTrainingArguments) -> None:
    """Refuse values out of range and contradictory options before anything is read."""
    output = Path(str(training.output_dir))
    complaints = []
    if adapt.attn_implementation == "flex_attention" and training.device.type == "cpu":
        complaints.append("`attn_implementation` flex_attention has no backward pass on the CPU. Pass sdpa.")
    if adapt.eval_limit is not None and adapt.eval_limit < 1:
        complaints.append(f"`eval_limit` is {adapt.eval_limit}; pass 1 or more, or leave it out.")
    if adapt.pairs == "dropout" and training.uses_contrastive_loss and training.view_dropout == 0:
        complaints.append("`pairs` is dropout and `view_dropout` 0: both embeddings would be equal. Pass e.g. 0.3.")
    if adapt.pair_columns is not None and len(adapt.pair_columns) not in (2, 3):
        complaints.append(f"`pair_columns` is {adapt.pair_columns}; name two columns, or three with the labels'.")
    if adapt.adapter_modes is not None and not lora.use_lora:
        complaints.append("`adapter_modes` is for adapters, and `lora_r` is 0. Drop one of them.")
    if training.push_to_hub and not training.hub_model_id:
        complaints.append("`push_to_hub` is true without `hub_model_id`. Name a repository, such as `me/mine`.")
    if (output / "adapt.json").exists():
        complaints.append(f"`output_dir` {str(output)!r} holds a finished run. Choose another directory.")
    elif resume_point(training) is None and any(output.glob("checkpoint-*/trainer_state.json")):
        complaints.append(
            f"`output_dir` {str(output)!r} holds checkpoints of a run. Pass `--resume_from_checkpoint true` to resume "
            "it, or choose another directory."
        )
    with as_argument_error(ValueError):
        raise_complaints(complaints)
        checkpoint_to_resume(resume_point(training), output_dir=output)


def resume_point(training: MagnetTrainingArguments) -> str | bool | None:
    """Convert `resume_from_checkpoint` to what the trainer expects: `True` (the newest), a folder, or `None`."""
    choice = training.resume_from_checkpoint
    return {"true": True, "false": None}.get(str(choice).lower(), choice)


def parse_arguments(arguments: list[str]) -> tuple[AdaptArguments, LoraArguments, MagnetTrainingArguments]:
    """Parse one JSON file, JSON and options that override it, or options only.

    Raises:
        ArgumentError: If an option is unknown or a value cannot be used.
    """
    parser = _Parser((AdaptArguments, LoraArguments, MagnetTrainingArguments))  # type: ignore[arg-type]
    # transformers also raises the errors of packages that an option requires.
    with as_argument_error(ValueError, TypeError, KeyError, ImportError, RuntimeError):
        if arguments and arguments[0].endswith(".json"):
            arguments = [*_options_of(Path(arguments[0])), *arguments[1:]]
        return parser.parse_args_into_dataclasses(arguments)  # type: ignore[return-value]


@contextmanager
def as_argument_error(*errors: type[Exception]) -> Iterator[None]:
    """Convert errors about the user's arguments to an `ArgumentError` with the same message."""
    try:
        yield
    except ArgumentError:
        raise
    except errors as error:
        raise ArgumentError(str(error) or repr(error)) from error


def _options_of(recipe: Path) -> list[str]:
    """Read a JSON file as options; keys that begin with an underscore are comments."""
    try:
        values = parse_json(recipe.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(recipe)!r} cannot be read as JSON ({error}). Name one file of arguments.") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{str(recipe)!r} holds a JSON {type(values).__name__}; expected an object. Name one file of arguments."
        )
    options: list[str] = []
    for name, value in values.items():
        if name.startswith("_") or value is None:
            continue
        if isinstance(value, list):
            options += [f"--{name}", *map(str, value)]
        else:
            options.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return options


def arguments_of_trainer(adapt: AdaptArguments, training: MagnetTrainingArguments) -> MagnetTrainingArguments:
    """Return a copy of the arguments that evaluates at the start and does not push."""
    changed = copy.copy(training)  # `dataclasses.replace` would set up devices and DeepSpeed a second time
    # The first evaluation measures the base model; a resumed run has it in its history.
    changed.eval_on_start = bool(adapt.eval_texts) and resume_point(training) is None
    # The result is pushed once, at the end; the trainer would push every checkpoint.
    changed.push_to_hub = False
    return changed


def inspect_model(
    adapt: AdaptArguments, lora: LoraArguments, training: MagnetTrainingArguments
) -> tuple[AdaptArguments, PreTrainedTokenizerBase]:
    """Return the arguments with the dtype of the weights, and the tokenizer. Weights are not read.

    Raises:
        ValueError: If the model cannot be adapted as requested.
    """
    config, tokenizer = open_without_weights(adapt.model_name_or_path, gguf_file=adapt.gguf_file)
    if MagnetSettings.from_config(config).mask_token_id is None or adapt.mask_token is not None:
        resolve_mask_token(tokenizer, adapt.mask_token)
    if adapt.max_length > config.max_position_embeddings:
        raise ValueError(
            f"`max_length` is {adapt.max_length}, but the model has positions for {config.max_position_embeddings} "
            "tokens. Lower it."
        )
    # Frozen weights lose nothing in bfloat16 if they are stored in it, and need no conversion for each product.
    is_half = str(getattr(config, "dtype", None)).endswith("bfloat16")
    dtype = adapt.dtype or ("bfloat16" if training.bf16 and lora.use_lora and is_half else "float32")
    return replace(adapt, dtype=dtype), tokenizer


def read_pairs(adapt: AdaptArguments, training: MagnetTrainingArguments, texts: Dataset) -> Dataset | None:
    """Load the contrastive pairs that the arguments request; return `None` if no phase uses pairs.

    For `paraphrase`, pair each line with itself, so that the number of pairs is known before paraphrasing.
    """
    if not training.uses_contrastive_loss:
        return None
    if adapt.pairs in ("dropout", "paraphrase"):
        return dropout_pairs(texts, min_words=adapt.pair_min_words, limit=adapt.pair_limit)
    named = adapt.pair_columns or []
    columns = (named[0], named[1]) if named else None
    label = named[2] if len(named) == 3 else None
    return load_pairs(adapt.pairs, columns=columns, label_column=label, limit=adapt.pair_limit)


def open_model(adapt: AdaptArguments, training: MagnetTrainingArguments, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Load the model and set its tokenizer; the training prompt becomes the default prompt of `encode`."""
    model = AutoMagnetForCausalLM.from_pretrained(
        adapt.model_name_or_path,
        gguf_file=adapt.gguf_file,
        mask_token=adapt.mask_token,
        attn_implementation=adapt.attn_implementation,
        dtype=getattr(torch, adapt.dtype or "float32"),
    )
    model.tokenizer = tokenizer
    if training.uses_contrastive_loss:
        prompt = training.contrastive_prompt
        if prompt:
            model.prompts["sentence"] = join_prompt(prompt, "")
        model.default_prompt_name = "sentence" if prompt else None
    return model


def limit_adapter(model: Any, adapt: AdaptArguments) -> None:
    """Limit the adapter to the requested modes, unless these are all modes."""
    if adapt.adapter_modes is not None and set(adapt.adapter_modes) != set(MODES):
        model.set_adapter_modes(adapt.adapter_modes)


def build_trainer(
    adapt: AdaptArguments, lora: LoraArguments, training: MagnetTrainingArguments, tokenizer: PreTrainedTokenizerBase
) -> MagnetTrainer:
    """Load the texts, the pairs and the model, cheap parts first, so that invalid input is refused early."""
    read: dict[str, Any] = {"text_column": adapt.text_column, "config_name": adapt.dataset_config}
    cut: dict[str, Any] = {
        "max_length": adapt.max_length,
        "concatenate": adapt.concatenate_texts,
        "split_special_tokens": training.split_special_tokens,
    }
    # The main process fills the cache of the data sets; the others read it.
    with training.main_process_first(desc="reading texts"):
        texts = load_texts(adapt.train_texts, split=adapt.train_split, **read)
        pairs = read_pairs(adapt, training, texts)
        blocks, eval_blocks = texts_to_blocks(texts, tokenizer, **cut), None
        if adapt.eval_texts:
            eval_texts = load_texts(adapt.eval_texts, split=adapt.eval_split, **read)
            eval_blocks = texts_to_blocks(eval_texts, tokenizer, **cut)
            if adapt.eval_limit is not None:
                eval_blocks = eval_blocks.select(range(min(len(eval_blocks), adapt.eval_limit)))
    model = open_model(adapt, training, tokenizer)
    if training.uses_contrastive_loss and adapt.pairs == "paraphrase":
        # Paraphrasing takes hours, so everything that the trainer would refuse is refused before it.
        check_run(model, args=training, train_dataset=blocks, pair_dataset=pairs, tokenizer=tokenizer)
        with training.main_process_first(desc="paraphrasing"):
            pairs = paraphrase_pairs(
                texts,
                model_id=adapt.paraphraser,
                output_path=Path(str(training.output_dir)) / "paraphrases.jsonl",
                min_words=adapt.pair_min_words,
                limit=adapt.pair_limit,
            )
    adapted = apply_lora(model, lora)
    limit_adapter(model, adapt)  # before training, so that evaluations measure the model as it will be saved
    return MagnetTrainer(
        model=adapted,
        args=training,
        train_dataset=blocks,
        eval_dataset=eval_blocks,
        pair_dataset=pairs,
        processing_class=tokenizer,
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run an adaptation.

    Raises:
        ArgumentError: If an argument is invalid, before the first step.
    """
    adapt, lora, training = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    check_arguments(adapt, lora, training)
    set_seed(training.seed)
    started = time.perf_counter()
    with as_argument_error(ValueError, ImportError):
        adapt, tokenizer = inspect_model(adapt, lora, training)
        trainer = build_trainer(adapt, lora, arguments_of_trainer(adapt, training), tokenizer)
    rows, pairs = len(trainer.train_dataset), len(trainer.pair_dataset or ())
    if training.should_save:
        print(f"{rows:,} rows of up to {adapt.max_length} tokens, {pairs:,} pairs", flush=True)
    with as_argument_error(ImportError):  # raised by an optimizer whose package is missing
        trainer.train(resume_from_checkpoint=resume_point(training))
    history, last = trainer.state.log_history, trainer.state.global_step
    if trainer.eval_dataset is not None and not any("eval_loss" in log and log["step"] == last for log in history):
        trainer.evaluate()
    report = {
        "arguments": {**trainer.args.to_dict(), **vars(lora), **vars(adapt)},
        "log_history": history,
        "rows": rows,
        "pairs": pairs,
        "seconds": time.perf_counter() - started,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": training.world_size,
    }
    finished = gather_model(trainer, adapt, lora)
    if training.should_save:
        output = Path(str(training.output_dir))
        save_and_push(finished, trainer, adapt, lora, push=training.push_to_hub)
        if draw_objectives is not None:
            draw_objectives(output / "curves.png", history)
        write_json(output / "adapt.json", report)
        if not adapt.keep_checkpoints:
            remove_checkpoints(output)
        print(f"adapt: OK ({output}; {report['seconds']:.0f} s)", flush=True)
    return report


def gather_model(trainer: MagnetTrainer, adapt: AdaptArguments, lora: LoraArguments) -> Any:
    """Return the adapted model, with all weights on the first process if processes share them.

    Every process has to call this function; processes other than the first get their own parts of the model.
    """
    trained: Any = unwrap_peft_model(trainer.accelerator.unwrap_model(trainer.model))
    if not trainer.has_sharded_weights:
        return trained
    weights = trainer.gather_weights()
    unset_hf_deepspeed_config()  # from here on a single process opens the model, unsharded
    if not trainer.args.should_save:
        return trained
    model = open_model(adapt, trainer.args, trained.tokenizer)
    trained.magnet_settings.store_in(model.config)
    if isinstance(getattr(trained, HEAD_NAME, None), nn.Module):
        attach_contrastive_head(model, kind="tanh", hidden_size=model.config.hidden_size, seed=0)
    apply_lora(model, lora).load_state_dict(weights)
    limit_adapter(model, adapt)
    return model


def save_and_push(
    model: Any, trainer: MagnetTrainer, adapt: AdaptArguments, lora: LoraArguments, *, push: bool
) -> None:
    """Save the checkpoint or adapter with the card of the run, and push it if requested."""
    training = trainer.args
    merged = lora.use_lora and adapt.adapter_modes is None
    model.card = trainer.card_text(
        training.hub_model_id or Path(str(training.output_dir)).name,
        merged=merged,
        train_texts=adapt.train_texts,
        eval_texts=adapt.eval_texts or (),
        recipe={
            "max_length": adapt.max_length,
            "pairs": describe_data([adapt.pairs]) if training.uses_contrastive_loss else "none",
        },
    )
    # Under autocast an adapter is computed in half precision; its float32 copy serves only the optimizer. Merging it
    # into half-precision weights would round most of its contribution away.
    dtype = None if not (lora.use_lora and training.bf16) else torch.float32 if merged else torch.bfloat16
    model.save_pretrained(training.output_dir, merge_adapter=merged, dtype=dtype)
    if push:
        commit = model.push_to_hub(
            training.hub_model_id,
            private=training.hub_private_repo,
            token=training.hub_token,
            revision=training.hub_revision,
            merge_adapter=merged,
            dtype=dtype,
        )
        print(f"pushed: {commit.commit_url}", flush=True)


if __name__ == "__main__":
    keep_freed_memory()  # applies to the whole process, so it is not set in `main`
    start(main, reported=ArgumentError)
