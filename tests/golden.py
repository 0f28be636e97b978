"""Record what the product computes, bit for bit, and compare another commit with the record.

    python -m tests.golden record FILE [--model NAME=DIRECTORY ...]
    python -m tests.golden check FILE

A record holds one digest for each value: hidden states and logits of all modes, embeddings, words, infills greedy and
sampled, scores, the losses and gradients of ten training steps, a resumed run, and saved files. Tiny models of every
family are made from a seed; `--model` adds trained checkpoints, whose directories the record remembers. Digests are
those of one machine and one set of library versions: record at one commit and check at another, on the same machine.
Only the packages' public names are used here, so that one script reads many commits.
"""

import argparse
import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, TrainerCallback
from transformers.utils import logging

from modeling_magnet import FAMILIES, AutoMagnetForCausalLM
from tests.byte_tokenizer import byte_tokenizer
from trainer import LoraArguments, MagnetTrainer, MagnetTrainingArguments, apply_lora

TEXTS = [
    "The river runs through the old town.",
    "She bought bread, cheese and a bottle of milk before the shop closed for the night.",
    "Rain.",
    "In 1912 the station was rebuilt; its clock still stands above the door.",
]
GAPS = [("She bought bread and a bottle of ", " before the shop closed."), ("The ", " runs through the old town.")]
BLANKS = "The [blank] was rebuilt in 1912; its [blank] still stands above the door."
STEPS = 10
# Files whose bytes are prose or code: a rebuilt house writes others.
UNSTABLE_FILES = {".py", ".md"}

Value = Any
Named = Iterator[tuple[str, Value]]


def tiny_model(model_type: str) -> Any:
    """Make a model of two layers with weights that make it sensitive to its input, and its tokenizer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "sliding_window": 8}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    settings = {"mask_token": "_", "mask_token_id": byte_tokenizer().convert_tokens_to_ids("_")}
    config = CONFIG_MAPPING[model_type](**sizes, **tokens, initializer_range=0.2, magnet=settings)
    model = FAMILIES[model_type](config).eval()
    model.tokenizer = byte_tokenizer()
    return model


def forward_values(model: Any) -> Named:
    """Return hidden states and logits of the three modes, with the batch padded on either side."""
    tokenizer = model.tokenizer
    for side in ("left", "right"):
        batch = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)
        spans = torch.zeros_like(batch["input_ids"])
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            first = spans.shape[1] - length if side == "left" else 0
            spans[row, first + length // 3 : first + length // 2] = 1
            spans[row, first + 2 * length // 3 : first + length - 1] = 2
        for mode in ("causal", "bidirectional", "infill"):
            segments = {"segment_ids": spans} if mode == "infill" else {}
            with torch.no_grad():
                output = model(**batch, mode=mode, output_hidden_states=True, **segments)
            is_token = batch["attention_mask"].bool()
            yield f"{mode}/{side}/logits", output.logits[is_token]
            yield f"{mode}/{side}/hidden_states", output.hidden_states[-1][is_token]


def embedding_values(model: Any) -> Named:
    """Return vectors of texts, tokens and words."""
    yield "encode", model.encode(TEXTS)
    yield "encode/prompt", model.encode(TEXTS[:2], prompt="query: ", normalize_embeddings=True)
    yield "encode/mean", model.encode(TEXTS, pooling="mean")
    yield "encode/tokens", model.encode(TEXTS[:2], output_value="token_embeddings")
    yield "encode_words", model.encode_words(TEXTS[:2])


def infill_values(model: Any) -> Named:
    """Return fills and their scores."""
    prefixes, suffixes = (list(side) for side in zip(*GAPS, strict=True))
    greedy = {"max_new_tokens": 6, "do_sample": False}
    yield "infill/greedy", model.infill(prefixes, suffixes, **greedy)
    torch.manual_seed(0)
    yield "infill/sampled", model.infill(prefixes, suffixes, max_new_tokens=6, num_return_sequences=3, top_p=0.9)
    yield "infill_blanks", model.infill_blanks(BLANKS, **greedy)
    yield "infill/lengths", model.infill(*GAPS[0], do_sample=False, num_tokens=[1, 3, 5])
    found = model.infill(prefixes, suffixes, **greedy, return_dict_in_generate=True)
    yield "infill/output", [[fill.token_ids, fill.logprobs] for row in found.fills for gap in row for fill in gap]
    yield "infill/embeddings", found.embeddings
    scored = model.score_infill(prefixes, [["milk", "cold water"]] * 2, suffixes)
    yield "score_infill", [[fill.text, fill.token_ids, fill.logprobs] for fills in scored for fill in fills]
    ids = model.tokenizer(TEXTS[0], return_tensors="pt")
    yield "generate", model.generate(**ids, max_new_tokens=6, do_sample=False)


class KeepGradients(TrainerCallback):
    """Keep the gradients of each step, by parameter."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        named = model.named_parameters()
        self.steps.append({name: each.grad.clone() for name, each in named if each.grad is not None})


def training_values(model_type: str, *, lora: bool) -> Named:
    """Return losses, gradients and weights of ten steps, and the weights of a run resumed in their midst."""
    with tempfile.TemporaryDirectory() as folder:
        keep = KeepGradients()
        whole = _trainer(model_type, folder, lora=lora, callbacks=[keep])
        whole.train()
        yield "losses", [log for log in map(_losses_of, whole.state.log_history) if log]
        yield "gradients", keep.steps
        yield "weights", whole.model.state_dict()
        resumed = _trainer(model_type, folder, lora=lora)
        resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{STEPS // 2}")
        yield "weights, resumed", resumed.model.state_dict()


def _trainer(model_type: str, folder: str, *, lora: bool, callbacks: Any = None) -> MagnetTrainer:
    """Make a trainer of ten steps, the last six of them with a contrastive loss, on rows drawn from a seed."""
    model = tiny_model(model_type).train()
    tokenizer = model.tokenizer
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": [1, *torch.randint(3, 300, (30,), generator=generator).tolist()]} for _ in range(24)]
    pairs = [{"anchor": one, "positive": other} for one in TEXTS for other in TEXTS if one != other]
    torch.manual_seed(1)  # of the adapters
    return MagnetTrainer(
        model=apply_lora(model, LoraArguments(lora_r=4)) if lora else model,
        args=MagnetTrainingArguments(
            output_dir=folder,
            loss_phases=["4:1,0,1", "6:1,3,1"],
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            contrastive_batch_size=4,
            contrastive_max_length=32,
            min_span_tokens=2,
            max_span_tokens=6,
            learning_rate=1e-3,
            logging_steps=1,
            save_steps=STEPS // 2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
        pair_dataset=pairs,
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def _losses_of(log: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in log.items() if name.startswith("loss") or name == "grad_norm"}


def saved_values(model: Any) -> Named:
    """Return the bytes of a saved checkpoint's files."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and path.suffix not in UNSTABLE_FILES:
                yield f"saved/{path.relative_to(folder).as_posix()}", path.read_bytes()


def all_values(models: dict[str, str], families: Iterable[str] = FAMILIES) -> Named:
    """Return every value of a record, in order: tiny models first."""
    for model_type in families:
        model = tiny_model(model_type)
        for part in (forward_values, embedding_values, infill_values, saved_values):
            for name, value in part(model):
                yield f"tiny {model_type}/{name}", value
        for lora in (False, True):
            for name, value in training_values(model_type, lora=lora):
                yield f"tiny {model_type}/training{', LoRA' if lora else ''}/{name}", value
    for called, directory in models.items():
        model = AutoMagnetForCausalLM.from_pretrained(directory).eval()
        for part in (forward_values, embedding_values, infill_values):
            for name, value in part(model):
                yield f"{called}/{name}", value


def digest(value: Value) -> str:
    """Return the SHA-256 of a value: tensors and arrays by dtype, shape and bytes, the rest by what they hold."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()[:32]


def _feed(found: Any, value: Value) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().cpu()
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.view(torch.uint8).numpy().tobytes() if value.dim() else str(value.item()).encode())
    elif isinstance(value, np.ndarray):
        _feed(found, torch.from_numpy(value))
    elif isinstance(value, bytes):
        found.update(value)
    elif isinstance(value, dict):
        for name in sorted(value):
            found.update(name.encode())
            _feed(found, value[name])
    elif isinstance(value, list | tuple):
        found.update(f"[{len(value)}".encode())
        for each in value:
            _feed(found, each)
    else:
        found.update(repr(value).encode())


def main(arguments: list[str] | None = None) -> None:
    """Record, or check and exit with an error where a digest changed, vanished or is new."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "check"])
    parser.add_argument("file", type=Path, help="the record, in JSON")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=DIRECTORY", help="a trained checkpoint")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only tiny models of this family")
    args = parser.parse_args(arguments)
    logging.set_verbosity_error()
    recorded = json.loads(args.file.read_text()) if args.action == "check" else {}
    models = recorded.get("models") or dict(each.split("=", 1) for each in args.model)
    found = {}
    for name, value in all_values(models, args.family or FAMILIES):
        found[name] = digest(value)
        print(f"{found[name][:12]}  {name}", flush=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions["python"] = platform.python_version()
    if args.action == "record":
        args.file.write_text(json.dumps({"versions": versions, "models": models, "digests": found}, indent=1) + "\n")
        return
    if versions != recorded["versions"]:
        print(f"Recorded with {recorded['versions']}, checked with {versions}: bits may differ.", file=sys.stderr)
    before = recorded["digests"]
    changed = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
    for name in changed:
        print(f"CHANGED  {name}", file=sys.stderr)
    print(f"{len(found) - len(changed)} of {len(before)} values are as recorded.")
    if changed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
