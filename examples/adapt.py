"""Adapt a Llama to MAGNET: any decoder, any text, one checkpoint that generates, encodes and infills.

    python examples/adapt.py examples/configs/llama2_7b_paper.json
    python examples/adapt.py --model_name_or_path DIR --train_texts corpus.jsonl.xz --output_dir outputs/mine
    accelerate launch examples/adapt.py CONFIG.json

The checkpoint stands in `output_dir` when the run is over, adapters merged unless `--merge_adapter false`, with its
model card; `adapt.json` beside it tells what was measured before, during and after, and `curves.png` shows the loss of
each objective, where matplotlib is installed.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import examples.quiet_imports  # noqa: F401 - before anything imports transformers

# isort: split
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_utils import unwrap_peft_model

from examples.adapt_arguments import (
    AdaptArguments,
    check_arguments,
    parse_arguments,
    refusing,
    resume_point,
    run_script,
)
from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.configuration_magnet import resolve_mask_token
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.prompts_magnet import join_prompt
from modeling_magnet.texts_magnet import context_length
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
from trainer.checkpoints import remove_checkpoints
from trainer.checks import check_run
from trainer.contrastive import HEAD_NAME, attach_contrastive_head
from trainer.lora import LARGEST_MODEL, adapter_cost
from trainer.memory import keep_freed_memory
from trainer.model_card import describe_data as told_data

try:
    from examples.plots import draw_objectives
except ImportError:  # of matplotlib, in the extra `plots`
    draw_objectives = None  # type: ignore[assignment]

# What the cost of an unmerged adapter is measured on.
COST_TEXTS, COST_TOKENS = 32, 32


def open_tokenizer(adapt: AdaptArguments) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, once it is certain that the two can be adapted; no weights are read.

    Raises:
        ValueError: another architecture, no tokenizer or one that does not fit, no mask token, or rows too long.
    """
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


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run an adaptation.

    Returns:
        `dict`: what `adapt.json` holds.

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
        scratch = Path(str(training.output_dir)) / ".adapt.json"
        scratch.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, scratch.with_name("adapt.json"))
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
        language=adapt.language or (),
        license=adapt.license,
        notes=notes,
        recipe={
            "max_length": adapt.max_length,
            "pairs": told_data([adapt.pairs]) if training.uses_contrastive_loss else "none",
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
    """What the unmerged adapter costs in time, as a sentence of the card; what goes wrong is no reason to save less.

    Args:
        model: One of our models, with an adapter.
        blocks (`Dataset`): Rows that the run trained on.
    """
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
    """The model to adapt, with its tokenizer and the prompt of its training."""
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
    """The dtype to hold weights in: bfloat16 where that loses nothing and saves converting them in each product."""
    config, _ = open_without_weights(adapt.model_name_or_path, gguf_file=adapt.gguf_file)
    is_half = str(getattr(config, "dtype", None)).endswith("bfloat16")
    return "bfloat16" if training.bf16 and lora.use_lora and is_half else "float32"


def whole_model(trainer: MagnetTrainer, adapt: AdaptArguments, lora: LoraArguments) -> Any:
    """The adapted model with all its weights; where processes have shared them, in the first one's memory alone.

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
    model.config.magnet = trained.config.magnet
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
    eval_pairs = None
    if pairs is not None and adapt.eval_pairs:
        held_out = range(len(pairs))[-adapt.eval_pairs :]
        pairs, eval_pairs = pairs.select(range(held_out.start)), pairs.select(held_out)
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
        eval_pair_dataset=eval_pairs,
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    keep_freed_memory()  # of the whole process, so not in `main`
    run_script(main)
