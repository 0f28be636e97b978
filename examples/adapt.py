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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import HfArgumentParser, set_seed
from transformers.utils import logging

from modeling_magnet import MagnetLlamaForCausalLM
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

logger = logging.get_logger(__name__)


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
    train_limit: int | None = field(default=None, metadata={"help": "Use this many texts at most."})
    eval_texts: list[str] | None = field(default=None, metadata={"help": "Held-out texts, as for training."})
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
    paraphraser: str = field(
        default="prithivida/parrot_paraphraser_on_T5", metadata={"help": "Sequence-to-sequence model for paraphrases."}
    )


def check_arguments(adapt: AdaptArguments, training: MagnetTrainingArguments) -> None:
    """Refuse contradictions between the argument groups before anything is read.

    Raises:
        ValueError: listing them.
    """
    complaints = []
    if adapt.pairs == "dropout" and training.uses_contrastive_loss and training.view_dropout == 0:
        complaints.append(
            "`pairs` is 'dropout', but `view_dropout` is 0: both views would be the same. Set it, e.g. to 0.3."
        )
    if adapt.pair_columns is not None and len(adapt.pair_columns) != 2:
        complaints.append(f"`pair_columns` is {adapt.pair_columns}; name two columns.")
    if adapt.pairs in ("dropout", "paraphrase") and (adapt.pair_columns or adapt.pair_label_column):
        complaints.append(
            f"`pairs` is {adapt.pairs!r}, which makes its own pairs, but pair columns are given. Drop one of them."
        )
    output = Path(str(training.output_dir))
    if training.resume_from_checkpoint is None and (output / "adapt.json").exists():
        complaints.append(f"`output_dir` {str(output)!r} holds a finished run. Choose another directory.")
    elif training.resume_from_checkpoint is None and any(output.glob("checkpoint-*")):
        complaints.append(
            f"`output_dir` {str(output)!r} holds checkpoints of a run. Pass `--resume_from_checkpoint true` to go on "
            "with it, or choose another directory."
        )
    if complaints:
        raise ValueError("\n- ".join(["The arguments cannot be used:", *complaints]))


def read_pairs(adapt: AdaptArguments, training: MagnetTrainingArguments, texts: Dataset) -> Dataset | None:
    """The contrastive pairs the arguments ask for; none where no phase uses them."""
    if not training.uses_contrastive_loss:
        return None
    if adapt.pairs == "dropout":
        return dropout_pairs(texts, limit=adapt.pair_limit)
    if adapt.pairs == "paraphrase":
        return paraphrase_pairs(
            texts,
            model_id=adapt.paraphraser,
            output_path=Path(str(training.output_dir)) / "paraphrases.jsonl",
            limit=adapt.pair_limit,
        )
    columns = None if adapt.pair_columns is None else (adapt.pair_columns[0], adapt.pair_columns[1])
    return load_pairs(
        adapt.pairs, columns=columns, label_column=adapt.pair_label_column, limit=adapt.pair_limit
    )


def parse_arguments(arguments: list[str]) -> tuple[AdaptArguments, LoraArguments, MagnetTrainingArguments]:
    """From one JSON file, JSON and overriding options behind it, or options alone."""
    parser = HfArgumentParser((AdaptArguments, LoraArguments, MagnetTrainingArguments))  # type: ignore[arg-type]
    if arguments and arguments[0].endswith(".json"):
        values = {k: v for k, v in json.loads(Path(arguments[0]).read_text()).items() if not k.startswith("_")}
        flags: list[str] = []
        for name, value in values.items():
            if value is None:
                continue
            items = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            flags += [f"--{name}", *map(str, items)]
        arguments = flags + arguments[1:]
    return parser.parse_args_into_dataclasses(arguments)  # type: ignore[return-value]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run an adaptation.

    Returns:
        `dict`: what `adapt.json` holds.
    """
    adapt, lora, training = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    check_arguments(adapt, training)
    set_seed(training.seed)
    started = time.perf_counter()
    model = MagnetLlamaForCausalLM.from_pretrained(
        adapt.model_name_or_path,
        mask_token=adapt.mask_token,
        attn_implementation=adapt.attn_implementation,
        dtype=getattr(torch, adapt.dtype),
    )
    tokenizer = model.tokenizer
    with training.main_process_first(desc="reading texts"):
        read = {"text_column": adapt.text_column, "config_name": adapt.dataset_config}
        texts = load_texts(adapt.train_texts, limit=adapt.train_limit, **read)
        cut = {"max_length": adapt.max_length, "concatenate": adapt.concatenate_texts}
        blocks = texts_to_blocks(texts, tokenizer, **cut)
        eval_blocks = None
        if adapt.eval_texts:
            eval_blocks = texts_to_blocks(load_texts(adapt.eval_texts, **read), tokenizer, **cut)
            eval_blocks = eval_blocks.select(range(min(len(eval_blocks), adapt.eval_limit or len(eval_blocks))))
        pairs = read_pairs(adapt, training, texts)
    print(f"{len(blocks):,} rows of up to {adapt.max_length} tokens, {len(pairs or ()):,} pairs", flush=True)
    trainer = MagnetTrainer(
        model=apply_lora(model, lora),
        args=training,
        train_dataset=blocks,
        eval_dataset=eval_blocks,
        pair_dataset=pairs,
        processing_class=tokenizer,
    )
    resume = training.resume_from_checkpoint
    if resume is None and eval_blocks is not None:
        trainer.evaluate()
    trainer.train(resume_from_checkpoint=True if resume in ("true", "True") else resume)
    if eval_blocks is not None and "eval_loss" not in trainer.state.log_history[-2]:
        trainer.evaluate()
    report = {
        "arguments": {**vars(adapt), **vars(lora), "loss_phases": training.loss_phases},
        "log_history": trainer.state.log_history,
        "rows": len(blocks),
        "pairs": len(pairs or ()),
        "seconds": time.perf_counter() - started,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    finished = trainer.accelerator.unwrap_model(trainer.model)
    if lora.use_lora:
        finished = finished.merge_and_unload()
    finished.save_pretrained(training.output_dir, is_main_process=training.should_save)
    if training.should_save:
        scratch = Path(str(training.output_dir)) / ".adapt.json"
        scratch.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(scratch, scratch.with_name("adapt.json"))
        print(f"adapt: OK ({training.output_dir}; {report['seconds']:.0f} s)")
    return report


if __name__ == "__main__":
    main()
