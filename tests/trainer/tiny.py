"""Tiny models, tokenizers, data and trainers, built without a network; subprocesses of tests import them, too."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from modeling_magnet import MagnetLlamaForCausalLM
from trainer.magnet_trainer import MagnetTrainer
from trainer.training_args import MagnetTrainingArguments

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "_"]
WORDS = [f"w{number}" for number in range(40)]
MASK_TOKEN_ID = 3


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of one token per word."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL_TOKENS + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def tiny_model(**changes: Any) -> MagnetLlamaForCausalLM:
    """Make a model of two layers of width 16 with fixed weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": len(SPECIAL_TOKENS + WORDS),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,  # the usual 0.02 would leave so narrow a model blind to its input
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "magnet": {"mask_token": "_", "mask_token_id": MASK_TOKEN_ID},
            **changes,
        }
    )
    return MagnetLlamaForCausalLM(config)


def tiny_rows(num_rows: int = 24, *, seed: int = 0) -> list[dict[str, list[int]]]:
    """Make rows of 8 to 20 tokens with BOS."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(8, 21, (num_rows,), generator=generator).tolist()
    rows = [torch.randint(4, 44, (length - 1,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": [1, *row]} for row in rows]


def tiny_pairs(num_pairs: int = 20) -> list[dict[str, str]]:
    """Make pairs that share two of three words."""
    return [
        {"anchor": f"w{n} w{n + 1} w{n + 2}", "positive": f"w{n} w{n + 1} w{(n + 9) % 40}"} for n in range(num_pairs)
    ]


def tiny_args(output_dir: str | Path, **changes: Any) -> MagnetTrainingArguments:
    """Make arguments for four joint steps and four with the contrastive loss, without logs and checkpoints."""
    return MagnetTrainingArguments(
        **{
            "output_dir": str(output_dir),
            "loss_phases": ["4:1,0,1", "4:1,9,1"],
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-2,
            "min_span_tokens": 2,
            "max_span_tokens": 4,
            "contrastive_batch_size": 4,
            "contrastive_max_length": 24,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **changes,
        }
    )


def tiny_trainer(args: MagnetTrainingArguments, **changes: Any) -> MagnetTrainer:
    """Make a trainer of tiny parts; arguments replace them."""
    return MagnetTrainer(
        **{
            "model": tiny_model(),
            "args": args,
            "train_dataset": tiny_rows(),
            "pair_dataset": tiny_pairs() if args.uses_contrastive_loss else None,
            "processing_class": tiny_tokenizer(),
            **changes,
        }
    )
