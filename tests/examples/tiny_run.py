"""Save a tiny Llama and texts to adapt it to; the documentation's examples also run on them."""

import json
import lzma
import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "the a small old red girl boy dog cat house tree river ran saw ate sat and then there was by in of".split()


def save_plain_llama(directory: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Save a stock Llama with random weights and its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(str(directory))
    return directory


def write_corpus(path: Path, *, num_texts: int, seed: int) -> Path:
    """Write sentences of 24 to 40 words as `.jsonl.xz`."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(24, 40))) + "." for _ in range(num_texts)]
    path.write_bytes(lzma.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    return path


def tiny_options(directory: Path, *, model: Path) -> list[str]:
    """Return `adapt.py` options for a run of six steps, the last two with dropout pairs."""
    train = write_corpus(directory / "train.jsonl.xz", num_texts=40, seed=0)
    held_out = write_corpus(directory / "held_out.jsonl.xz", num_texts=6, seed=1)
    return [
        f"--model_name_or_path={model}",
        f"--train_texts={train}",
        f"--eval_texts={held_out}",
        f"--output_dir={directory / 'run'}",
        *("--loss_phases", "4:1,0,1", "2:1,9,1"),
        *("--pairs=dropout", "--view_dropout=0.3", "--contrastive_batch_size=4", "--contrastive_max_length=96"),
        *("--max_length=64", "--max_span_tokens=8"),
        *("--per_device_train_batch_size=4", "--learning_rate=1e-3", "--logging_steps=2", "--save_strategy=no"),
        *("--report_to=none", "--use_cpu", "--disable_tqdm=true"),
    ]
