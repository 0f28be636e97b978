"""Write the results of library functions; run as a script with MODEL, PARAPHRASER, TEXTS and OUTPUT."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from modeling_magnet import AutoMagnetForCausalLM
from tests.trainer.tiny import tiny_args, tiny_pairs, tiny_rows, tiny_trainer
from trainer import LoraArguments, apply_lora, load_texts, texts_to_blocks
from trainer.pairs import dropout_pairs, paraphrase_pairs

TEXTS = ["The cat sat on the mat.", "She ate.", "There was a little girl who lived in the forest.", "Bread."]
BLANKS = ["The cat [blank] on the [blank].", "She ate [blank] for lunch."]
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "num_return_sequences": 2}


def encode(model: Any, output: Path) -> None:
    """Write vectors of texts and words."""
    np.save(output / "texts.npy", model.encode(TEXTS, batch_tokens=32))
    words, places = model.encode_words(TEXTS[0])
    np.save(output / "words.npy", words)
    np.save(output / "places.npy", places)


def infill(model: Any, output: Path) -> None:
    """Write fills, greedy and sampled, with their scores."""
    found: dict[str, Any] = {}
    for name, options in (("greedy", {"num_return_sequences": 2}), ("sampled", SAMPLED)):
        set_seed(5)
        found[f"{name}, one gap"] = model.infill("She ate", " for lunch.", max_new_tokens=6, **options)
        blanks = model.infill_blanks(BLANKS, num_tokens=[2, 4], return_dict_in_generate=True, **options)
        found[f"{name}, blanks"] = repr(blanks.fills)
    found["scores"] = repr(model.score_infill("She ate", [" an apple", " bread", " the mat"], " for lunch."))
    (output / "fills.json").write_text(json.dumps(found, indent=1))


def generate(model: Any, output: Path) -> None:
    """Write generated text."""
    set_seed(5)
    inputs = model.tokenizer(TEXTS[:1], return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=True)
    (output / "generated.json").write_text(json.dumps(ids.tolist()))


def pairs(texts: Path, paraphraser: Path, output: Path) -> None:
    """Write pairs from dropout and from a paraphraser."""
    lines = load_texts(str(texts))
    paraphrase_pairs(lines, model_id=str(paraphraser), output_path=output / "pairs.jsonl", limit=6, batch_size=4)
    (output / "dropout.json").write_text(json.dumps(dropout_pairs(lines)[:]))


def train(output: Path, *, name: str, **changes: Any) -> None:
    """Train with all objectives; write the losses and the saved files."""
    fixed = {"save_strategy": "steps", "save_steps": 8, "view_dropout": 0.1}
    args = tiny_args(output / name, **{**fixed, **changes})
    set_seed(args.seed)
    trainer = tiny_trainer(args, eval_dataset=tiny_rows(5, seed=3), eval_pair_dataset=tiny_pairs(8))
    trainer.train()
    torch.save({key: value.clone() for key, value in trainer.model.state_dict().items()}, output / f"{name}.pt")
    losses = [
        {key: log[key] for key in log if "loss" in key or key == "grad_norm"} for log in trainer.state.log_history
    ]
    (output / f"{name}.json").write_text(json.dumps([*losses, trainer.evaluate()["eval_loss"]]))


def save(path: Path, texts: Path, output: Path) -> None:
    """Save a checkpoint, an adapter, and a merged model."""
    model = AutoMagnetForCausalLM.from_pretrained(path)
    model.save_pretrained(output / "whole")
    set_seed(5)
    adapted = apply_lora(model, LoraArguments(lora_r=2)).get_base_model()
    adapted.save_pretrained(output / "adapter")
    adapted.save_pretrained(output / "merged", merge_adapter=True)
    blocks = texts_to_blocks(load_texts(str(texts)), model.tokenizer, max_length=64)
    (output / "blocks.json").write_text(json.dumps(blocks["input_ids"][:]))


def main(path: Path, paraphraser: Path, texts: Path, output: Path) -> None:
    """Run all calls in order."""
    model = AutoMagnetForCausalLM.from_pretrained(path).eval()
    encode(model, output)
    infill(model, output)
    generate(model, output)
    pairs(texts, paraphraser, output)
    save(path, texts, output)
    train(output, name="plainly")
    train(output, name="accumulating", gradient_accumulation_steps=2, dataloader_num_workers=2, bf16=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
