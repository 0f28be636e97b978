"""Pretrain a plain Llama of about 28 million parameters, the base of a study where there is a GPU.

    python examples/evaluate/pretrain.py --tokenizer DIR --texts wikipedia/*.jsonl.xz --output_dir outputs/llama-28m \
        --steps 6000 --minutes 9

Hidden size 512, 8 layers, bfloat16, rows of 1,024 tokens, AdamW with a cosine schedule over `--steps`. With
`--minutes` it stops in time and writes a checkpoint; the same command goes on there, for a machine that is lent for
minutes. The result is a stock Llama in shards small enough to carry; `perplexity.json` beside it has the perplexity of
some held-out rows over the steps.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from examples.command_line import OneLineParser, add_output_dir, at_least, start
from examples.corpus.writing import whole_file
from trainer import load_texts, texts_to_blocks
from trainer.checkpoints import last_complete_checkpoint

SHARD = "15MB"
# Held-out rows: enough for a curve, few enough that asking twenty times takes no notable part of a run on a CPU.
EVAL_ROWS = 64
# Width of the model -> the other sizes: of a GPU, of a CPU, of the tests.
SHAPES = {
    512: {"layers": 8, "heads": 8, "mlp": 1376},
    128: {"layers": 4, "heads": 4, "mlp": 352},
    16: {"layers": 2, "heads": 2, "mlp": 24},
}


_INPUTS = ("input_ids", "labels")


class StopInTime(TrainerCallback):
    """Saves and stops when the minutes are over."""

    def __init__(self, minutes: float | None) -> None:
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        if time.monotonic() > self.deadline and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


def new_llama(tokenizer: Any, *, hidden_size: int, max_length: int) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings for a tokenizer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Its size and special tokens.
        hidden_size (`int`): One of `SHAPES`.
        max_length (`int`): Positions.
    """
    shape = SHAPES[hidden_size]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=shape["mlp"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            max_position_embeddings=max_length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ValueError: an output that holds a finished model.
    """
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True, help="directory or Hub id of a tokenizer")
    parser.add_argument("--texts", nargs="+", required=True, help="texts to train on, as `load_texts` takes them")
    parser.add_argument("--eval_texts", nargs="+", help="held-out texts")
    add_output_dir(parser, required=True, help="folder of checkpoints and result")
    parser.add_argument("--steps", type=at_least(), default=6000, help="updates in all")
    parser.add_argument("--minutes", type=float, help="stop and save after so long")
    parser.add_argument("--batch_size", type=at_least(), default=64, help="rows of an update")
    parser.add_argument("--max_length", type=at_least(2), default=1024, help="tokens of a row")
    parser.add_argument("--hidden_size", type=int, default=512, choices=sorted(SHAPES), help="width of the model")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="highest rate")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of weights and order")
    args = parser.parse_args(arguments)
    if (args.output / "config.json").exists():
        raise ValueError(f"`--output_dir` {str(args.output)!r} holds a finished model. Choose another folder.")
    return args


def make_trainer(args: argparse.Namespace, tokenizer: Any) -> Trainer:
    """A stock Trainer on rows of text, joined and cut to one length."""
    rows = _full_rows(args.texts, tokenizer, max_length=args.max_length)
    held_out = None
    if args.eval_texts is not None:
        held_out = _full_rows(args.eval_texts, tokenizer, max_length=args.max_length)
        held_out = held_out.select(range(min(EVAL_ROWS, len(held_out))))
    is_gpu = torch.cuda.is_available()
    every = max(1, args.steps // 20)
    settings = TrainingArguments(
        output_dir=str(args.output),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.02,
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not is_gpu,
        dataloader_num_workers=4 if is_gpu else 0,
        logging_steps=every,
        eval_strategy="no" if held_out is None else "steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=1,
        prediction_loss_only=True,
        report_to="none",
        seed=args.seed,
    )
    model = new_llama(tokenizer, hidden_size=args.hidden_size, max_length=args.max_length)
    return Trainer(
        model,
        settings,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=lambda batch: {name: torch.tensor([row["input_ids"] for row in batch]) for name in _INPUTS},
        callbacks=[StopInTime(args.minutes)],
    )


def _full_rows(texts: list[str], tokenizer: Any, *, max_length: int) -> Dataset:
    """Texts joined and cut to rows of one length, so that nothing is padded; what is left over is dropped."""
    rows = texts_to_blocks(load_texts(texts), tokenizer, max_length=max_length, concatenate=True)
    return rows.filter(lambda ids: len(ids) == max_length, input_columns="input_ids").select_columns("input_ids")


def main(arguments: list[str] | None = None) -> int:
    """Pretrain, or go on with it.

    Returns:
        `int`: the step that was reached.
    """
    args = parse_arguments(arguments)
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, trust_remote_code=False)
    trainer = make_trainer(args, tokenizer)
    model: Any = trainer.model
    print(f"{model.num_parameters():,} parameters, {len(trainer.train_dataset):,} rows", flush=True)  # type: ignore[arg-type]
    checkpoint = last_complete_checkpoint(args.output)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    step = trainer.state.global_step
    if step < args.steps:
        print(f"pretrain: stopped at step {step} of {args.steps}; the same command goes on", flush=True)
        return step
    losses = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    tokenizer.save_pretrained(str(args.output))
    with whole_file(args.output / "perplexity.json") as file:
        file.write(json.dumps({step: math.exp(loss) for step, loss in losses.items()}, indent=1).encode())
    model.config.use_cache = True  # the trainer turns it off
    model.to(torch.bfloat16).save_pretrained(args.output, max_shard_size=SHARD)
    print(f"pretrain: OK ({args.output}; {step} steps)", flush=True)
    return step


if __name__ == "__main__":
    start(main)
