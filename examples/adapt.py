"""Adapt a Llama to MAGNET: any decoder, any text, one checkpoint that generates, encodes and infills.

    python examples/adapt.py examples/configs/llama2_7b_paper.json
    python examples/adapt.py --model_name_or_path DIR --train_texts corpus.jsonl.xz --output_dir outputs/mine
    accelerate launch examples/adapt.py CONFIG.json

The checkpoint stands in `output_dir` when the run is over, adapters merged; `adapt.json` beside it tells what was
measured before, during and after.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.configuration_magnet import resolve_mask_token
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.masking_magnet import MASKED_BACKENDS
from modeling_magnet.prompts_magnet import join_prompt
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
from trainer.checkpoints import last_complete_checkpoint
from trainer.checks import check_run

DTYPES = ("float32", "bfloat16")


@dataclass
class AdaptArguments:
    """Which model and which texts."""

    model_name_or_path: str = field(metadata={"help": "Directory or Hub id of a plain Llama or a MAGNET checkpoint."})
    train_texts: list[str] = field(
        metadata={"help": "Files (.txt, .jsonl, .parquet, also .gz and .xz), directories, globs, or one Hub id."}
    )
    mask_token: str | None = field(default=None, metadata={"help": "Overrides the choice of the mask token."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "eager, sdpa or flex_attention."})
    dtype: str = field(default="float32", metadata={"help": "Dtype in which the weights are held."})
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


def check_arguments(adapt: AdaptArguments, training: MagnetTrainingArguments) -> None:
    """Refuse values out of range and contradictions between the argument groups before anything is read.

    Raises:
        ValueError: listing them.
    """
    complaints = [*_about_model(adapt, training), *_about_pairs(adapt, training), *_about_output(training)]
    if adapt.eval_limit is not None and adapt.eval_limit < 1:
        complaints.append(f"`eval_limit` is {adapt.eval_limit}; pass 1 or more, or leave it out.")
    if adapt.eval_texts is None and training.eval_strategy != "no":
        complaints.append(
            "`eval_strategy` asks for evaluations, but there are no `eval_texts`. Name some, or set it to 'no'."
        )
    if complaints:
        raise ValueError("\n- ".join(["The arguments cannot be used:", *complaints]))


def _about_model(adapt: AdaptArguments, training: MagnetTrainingArguments) -> Iterator[str]:
    """What is wrong with how the model is to be held."""
    if adapt.dtype not in DTYPES:
        yield f"`dtype` is {adapt.dtype!r}; pass one of {list(DTYPES)}."
    if adapt.attn_implementation not in MASKED_BACKENDS:
        yield f"`attn_implementation` is {adapt.attn_implementation!r}; pass one of {list(MASKED_BACKENDS)}."
    elif adapt.attn_implementation == "flex_attention" and training.device.type == "cpu":
        yield "`attn_implementation` is 'flex_attention', which has no backward pass on the CPU. Pass 'sdpa'."


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
    elif resume is None and any(output.glob("checkpoint-*")):
        yield (
            f"`output_dir` {str(output)!r} holds checkpoints of a run. Pass `--resume_from_checkpoint true` to go on "
            "with it, or choose another directory."
        )
    elif resume is True and last_complete_checkpoint(output, num_processes=training.world_size) is None:
        yield (
            f"`resume_from_checkpoint` is true, but `output_dir` {str(output)!r} has no complete checkpoint of "
            f"{training.world_size} process(es). Leave it out to start afresh."
        )
    elif isinstance(resume, str) and not Path(resume).is_dir():
        yield f"`resume_from_checkpoint` is {resume!r}, which is no folder. Name a checkpoint, or pass true."


def resume_point(training: MagnetTrainingArguments) -> str | bool | None:
    """`resume_from_checkpoint` as the trainer takes it: `True` for the newest, a folder, or `None`."""
    wish = training.resume_from_checkpoint
    return {"true": True, "false": None}.get(str(wish).lower(), wish)


def open_tokenizer(adapt: AdaptArguments) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, once it is certain that the two can be adapted; no weights are read.

    Raises:
        ValueError: another architecture, no tokenizer or one that does not fit, no mask token, or rows too long.
    """
    config, tokenizer = open_without_weights(adapt.model_name_or_path)
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
    """Texts to train on, and held-out ones where they are named."""
    read: dict[str, Any] = {"text_column": adapt.text_column, "config_name": adapt.dataset_config}
    texts = load_texts(_source(adapt.train_texts), split=adapt.train_split, limit=adapt.train_limit, **read)
    if not adapt.eval_texts:
        return texts, None
    return texts, load_texts(_source(adapt.eval_texts), split=adapt.eval_split, **read)


def _source(names: list[str]) -> str | list[str]:
    """One name may be a Hub id; several are files."""
    return names[0] if len(names) == 1 else names


def read_pairs(adapt: AdaptArguments, training: MagnetTrainingArguments, texts: Dataset) -> Dataset | None:
    """The contrastive pairs the arguments ask for; none where no phase uses them.

    For paraphrases these are the lines that will be paraphrased, paired with themselves: as many as there will be.
    """
    if not training.uses_contrastive_loss:
        return None
    if adapt.pairs in ("dropout", "paraphrase"):
        return dropout_pairs(texts, min_words=adapt.pair_min_words, limit=adapt.pair_limit)
    columns = None if adapt.pair_columns is None else (adapt.pair_columns[0], adapt.pair_columns[1])
    return load_pairs(
        adapt.pairs,
        columns=columns,
        label_column=adapt.pair_label_column,
        config_name=adapt.pair_config,
        limit=adapt.pair_limit,
    )


def write_paraphrases(adapt: AdaptArguments, training: MagnetTrainingArguments, texts: Dataset) -> Dataset:
    """Paraphrase the lines; a killed run goes on where it was."""
    return paraphrase_pairs(
        texts,
        model_id=adapt.paraphraser,
        output_path=Path(str(training.output_dir)) / "paraphrases.jsonl",
        min_words=adapt.pair_min_words,
        limit=adapt.pair_limit,
    )


def remember_prompt(model: PreTrainedModel, prompt: str) -> None:
    """Make the prompt of the contrastive training the one that `encode` and sentence-transformers use by default."""
    if prompt:
        model.config.magnet["prompts"]["sentence"] = join_prompt(prompt, "")
    model.config.magnet["default_prompt_name"] = "sentence" if prompt else None


def parse_arguments(arguments: list[str]) -> tuple[AdaptArguments, LoraArguments, MagnetTrainingArguments]:
    """From one JSON file, JSON and overriding options behind it, or options alone."""
    parser = HfArgumentParser((AdaptArguments, LoraArguments, MagnetTrainingArguments))  # type: ignore[arg-type]
    if arguments and arguments[0].endswith(".json"):
        arguments = [*_flags_of(Path(arguments[0])), *arguments[1:]]
    return parser.parse_args_into_dataclasses(arguments)  # type: ignore[return-value]


def _flags_of(recipe: Path) -> list[str]:
    """A JSON file as options; keys with an underscore in front are comments.

    Raises:
        ValueError: the file is not there or is not a JSON object.
    """
    try:
        values = json.loads(recipe.read_text(encoding="utf-8"))
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


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run an adaptation.

    Returns:
        `dict`: what `adapt.json` holds.
    """
    adapt, lora, training = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    check_arguments(adapt, training)
    set_seed(training.seed)
    started = time.perf_counter()
    trainer = build_trainer(adapt, lora, training)
    rows, pairs = len(trainer.train_dataset), len(trainer.pair_dataset or ())
    if training.should_save:
        print(f"{rows:,} rows of up to {adapt.max_length} tokens, {pairs:,} pairs", flush=True)
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
    if training.should_save:
        finished = trainer.accelerator.unwrap_model(trainer.model)
        if lora.use_lora:
            finished = finished.merge_and_unload()
        finished.save_pretrained(training.output_dir)
        scratch = Path(str(training.output_dir)) / ".adapt.json"
        scratch.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, scratch.with_name("adapt.json"))
        print(f"adapt: OK ({training.output_dir}; {report['seconds']:.0f} s)", flush=True)
    return report


def build_trainer(adapt: AdaptArguments, lora: LoraArguments, training: MagnetTrainingArguments) -> MagnetTrainer:
    """Read everything a run needs, cheap things first, so that what cannot work is refused early."""
    tokenizer = open_tokenizer(adapt)
    cut: dict[str, Any] = {"max_length": adapt.max_length, "concatenate": adapt.concatenate_texts}
    # One process fills the cache of the data sets, the others read it.
    with training.main_process_first(desc="reading texts"):
        texts, eval_texts = read_texts(adapt)
        pairs = read_pairs(adapt, training, texts)
        eval_blocks = None if eval_texts is None else texts_to_blocks(eval_texts, tokenizer, **cut)
        if eval_blocks is not None and adapt.eval_limit is not None:
            eval_blocks = eval_blocks.select(range(min(len(eval_blocks), adapt.eval_limit)))
        blocks = texts_to_blocks(texts, tokenizer, **cut)
    model = AutoMagnetForCausalLM.from_pretrained(
        adapt.model_name_or_path,
        mask_token=adapt.mask_token,
        attn_implementation=adapt.attn_implementation,
        dtype=getattr(torch, adapt.dtype),
    )
    model.tokenizer = tokenizer
    if training.uses_contrastive_loss:
        remember_prompt(model, training.contrastive_prompt)
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
    eval_pairs = None
    if pairs is not None and adapt.eval_pairs:
        held_out = range(len(pairs))[-adapt.eval_pairs :]
        pairs, eval_pairs = pairs.select(range(held_out.start)), pairs.select(held_out)
    # The first evaluation is what the base can do; a resumed run has it in its history.
    training.eval_on_start = eval_blocks is not None and resume_point(training) is None
    return MagnetTrainer(
        model=apply_lora(model, lora),
        args=training,
        train_dataset=blocks,
        eval_dataset=eval_blocks,
        pair_dataset=pairs,
        eval_pair_dataset=eval_pairs,
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    main()
