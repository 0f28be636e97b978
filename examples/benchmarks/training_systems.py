"""What the training benchmarks compare: a step of the trainer, the same written naively, and the least work."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from examples.command_line import at_least
from modeling_magnet.pooling_magnet import last_token_states
from trainer import DataCollatorForMagnet, MagnetTrainer, MagnetTrainingArguments, load_pairs, load_texts
from trainer.corruption import IGNORE_INDEX
from trainer.distributed import compiled
from trainer.lora import adapter_layers, adapters_under_autocast
from trainer.objectives import LossPhase, sscl_loss


def naive_loss(
    model: nn.Module, batch: dict[str, Any], *, head: nn.Module, weights: LossPhase, temperature: float, length: int
) -> Tensor:
    """Return the weighted sum of MNTP, MSG and SSCL of one micro-batch, as the trainer's `compute_loss` has it.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    loss = torch.zeros((), device=batch["input_ids"].device)
    for weight, name in ((weights.mntp, "mntp_labels"), (weights.msg, "msg_labels")):
        if weight:
            loss = loss + weight * language_loss(model, batch, labels=batch[name])
    if weights.sscl:
        sides = zip(*(batch["pairs"][name].chunk(2) for name in ("input_ids", "attention_mask")), strict=True)
        vectors = []
        for ids, mask in sides:
            ids, mask = (F.pad(tensor, (0, length - tensor.shape[1])) for tensor in (ids, mask))
            states: Any = model(input_ids=ids, attention_mask=mask, mode="bidirectional").last_hidden_state
            vectors.append(head(last_token_states(states, mask)))
        loss = loss + weights.sscl * sscl_loss(vectors[0], vectors[1], temperature=temperature)
    return loss


def language_loss(model: nn.Module, batch: dict[str, Any], *, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of one objective's labels, from the logits of all positions in float32."""
    outputs: Any = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        segment_ids=batch["segment_ids"],
        mode="infill",
    )
    logits = outputs.logits.float()  # (B, S, V)
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


JOINT, ROWS, MNTP, PAIRS = "joint", "MNTP and MSG", "MNTP alone", "pairs alone"
NAIVE, PADDED, FULL = "naive, the same rows", "naive, padded rows", "MNTP, all logits"
NAIVE_ROWS = "naive, MNTP and MSG"
# The run that the trainer is made for has a step of each kind, in this order.
PHASES = {MNTP: "1:1,0,0", ROWS: "1:0.5,0,1", JOINT: "1:0.5,1,1", PAIRS: "1:0,1,0"}
KINDS = {JOINT: JOINT, ROWS: ROWS, MNTP: MNTP, NAIVE: JOINT, PADDED: JOINT, FULL: MNTP, NAIVE_ROWS: ROWS}
COMPILED = ", compiled"  # after the name of a system


def add_arguments(parser: argparse.ArgumentParser, *, batch_size: int, pairs_a_step: int) -> None:
    """Add the options of a step."""
    parser.add_argument("--texts", nargs="+", required=True, help="texts to train on")
    parser.add_argument("--pairs", required=True, help="pairs of texts")
    parser.add_argument("--pair_label_column", help="1 where the two are paraphrases")
    parser.add_argument("--lora_r", type=at_least(0), default=16, help="rank of the adapters; 0 trains all weights")
    parser.add_argument("--batch_size", type=at_least(), default=batch_size, help="rows a step")
    parser.add_argument("--max_length", type=at_least(), default=512, help="tokens a row")
    parser.add_argument("--pairs_a_step", type=at_least(), default=pairs_a_step, help="pairs a step")
    parser.add_argument(
        "--pair_length", type=at_least(), default=64, help="tokens a side, to which the naive step pads"
    )
    parser.add_argument(
        "--mini_batch_tokens", type=at_least(), default=2048, help="of the pairs, in the trainer's step"
    )
    parser.add_argument("--autocast", action="store_true", help="products in bfloat16")
    parser.add_argument("--recompute", action="store_true", help="pairs in the memory of one mini-batch (GradCache)")
    parser.add_argument("--compiler", help="every system with compiled layers as well, by inductor or another")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="where the JSON goes")


def read_data(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Return texts and pairs, enough for a step."""
    texts = load_texts(args.texts if len(args.texts) > 1 else args.texts[0], limit=60 * args.batch_size)
    return texts, load_pairs(args.pairs, label_column=args.pair_label_column, limit=2 * args.pairs_a_step)


def widened(path: str, *, vocab_size: int, folder: str) -> str:
    """Save a model of the same shape with random weights and a larger vocabulary."""
    tokenizer, config = AutoTokenizer.from_pretrained(path, trust_remote_code=False), LlamaConfig.from_pretrained(path)
    config.vocab_size = max(vocab_size, len(tokenizer))
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_trainer(model: Any, args: argparse.Namespace, rows: Any, pairs: Any, folder: str) -> MagnetTrainer:
    """Return a trainer whose losses are asked for step by step; it does not train."""
    training = MagnetTrainingArguments(
        output_dir=folder,
        loss_phases=list(PHASES.values()),
        per_device_train_batch_size=args.batch_size,
        contrastive_batch_size=args.pairs_a_step,
        contrastive_max_length=args.pair_length,
        contrastive_mini_batch_tokens=args.mini_batch_tokens,
        contrastive_recompute=args.recompute,
        max_spans=8,
        min_span_tokens=4,
        max_span_tokens=40,
        use_cpu=args.device == "cpu",
        bf16=args.autocast,
        torch_compile_backend=args.compiler,
        report_to="none",
    )
    return MagnetTrainer(
        model=model, args=training, train_dataset=rows, pair_dataset=pairs, processing_class=model.tokenizer
    )


def collate(trainer: MagnetTrainer, rows: Any, *, kind: str, size: int | None = None) -> dict[str, Any]:
    """Collate the first rows for a step of a kind: without spans for MNTP only, with pairs for a joint one."""
    size = trainer.args.per_device_train_batch_size if size is None else size
    collator: DataCollatorForMagnet = trainer.data_collator
    if kind == MNTP:
        collator = replace(collator, settings=replace(collator.settings, max_spans=0, causal_ratio=0.0))
    batch = collator([{**rows[index], "row_id": index, "epoch": 0} for index in range(size)])
    if kind == JOINT:
        assert trainer.pair_dataset is not None
        pairs = [trainer.pair_dataset[index] for index in range(trainer.args.contrastive_batch_size)]
        batch["pairs"] = trainer.pair_collator(pairs)
    return batch


def trainers_loss(trainer: MagnetTrainer, batch: dict[str, Any], *, kind: str) -> torch.Tensor:
    """Return our loss of a step."""
    trainer.state.global_step = list(PHASES).index(kind)
    return trainer.compute_loss(trainer.model, batch)


def written_naively(trainer: MagnetTrainer, batch: dict[str, Any], *, system: str) -> torch.Tensor:
    """Return the same loss as one would first write it."""
    return naive_loss(
        trainer.model,
        batch,
        head=trainer.head,
        weights=phase_of(trainer, system),
        temperature=trainer.args.temperature,
        length=trainer.args.contrastive_max_length,
    )


def compare(
    trainer: MagnetTrainer,
    batch: dict[str, Any],
    *,
    kind: str = JOINT,
    with_compiled: bool = False,
    autocast: bool = False,
) -> dict[str, float]:
    """Return how far loss and gradients of the trainer and of the naive step are apart, relative to the largest."""
    found = []
    for system in (kind, NAIVE if kind == JOINT else NAIVE_ROWS):
        trainer.model.zero_grad()
        with layers_of(system, trainer, with_compiled=with_compiled and system == kind, autocast=autocast):
            with torch.autocast(trainer.args.device.type, dtype=torch.bfloat16, enabled=autocast):
                loss = loss_of(system, trainer, batch)
            loss.backward()
        gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
        found.append((loss.item(), gradients))
    (ours, our_gradients), (theirs, their_gradients) = found
    largest = max(gradient.abs().max().item() for gradient in their_gradients.values())
    apart = max((our_gradients[name] - their_gradients[name]).abs().max().item() for name in their_gradients)
    return {"loss": abs(ours - theirs) / theirs, "gradients": apart / largest}


def phase_of(trainer: MagnetTrainer, system: str) -> LossPhase:
    """Return the weights of a system's step."""
    return trainer.phases[list(PHASES).index(KINDS[system])]


def loss_of(system: str, trainer: MagnetTrainer, batch: dict[str, Any]) -> torch.Tensor:
    """Return the loss of one step of a system."""
    if system in PHASES:
        return trainers_loss(trainer, batch, kind=system)
    if system == FULL:
        return language_loss(trainer.model, batch, labels=batch["mntp_labels"])
    return written_naively(trainer, batch, system=system)


def naive_bytes(model: Any, batch: dict[str, Any]) -> int:
    """Return what the logits of a naive step with both token losses take.

    Of each objective all logits in half precision, in float32, their logarithms and their gradient in float32.
    """
    return 2 * batch["input_ids"].numel() * model.config.vocab_size * (2 + 3 * 4)


@contextmanager
def layers_of(system: str, trainer: MagnetTrainer, *, with_compiled: bool, autocast: bool = False) -> Iterator[None]:
    """Run layers as a system does: ours as the trainer runs them, and any compiled."""
    adapted = adapter_layers(trainer.model) if system in PHASES and autocast else []
    with adapters_under_autocast(adapted), compiled(trainer.compiled_layers if with_compiled else []):
        yield


def step_operations(model: Any, batch: dict[str, Any], *, weights: LossPhase) -> float:
    """Count the floating-point operations that a step cannot do without."""
    config = model.config
    head = model.get_output_embeddings().weight
    layers = [parameter for name, parameter in model.named_parameters() if parameter.dim() == 2 and ".layers." in name]
    of_token = sum((6 if parameter.requires_grad else 4) * parameter.numel() for parameter in layers)
    scores = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    rows = [batch["attention_mask"].sum(1)] if weights.mntp or weights.msg else []
    labels = sum(
        int((batch[name] != IGNORE_INDEX).sum())
        for weight, name in ((weights.mntp, "mntp_labels"), (weights.msg, "msg_labels"))
        if weight
    )
    rows += [batch["pairs"]["attention_mask"].sum(1)] if weights.sscl else []
    lengths = torch.cat(rows).double()
    of_label = (6 if head.requires_grad else 4) * head.numel()
    return float(of_token * lengths.sum() + scores * lengths.square().sum() + of_label * labels)


__all__ = [
    "COMPILED", "KINDS", "NAIVE_ROWS", "PHASES", "add_arguments", "collate", "compare", "language_loss",
    "layers_of", "loss_of", "make_trainer", "naive_bytes", "phase_of", "read_data", "step_operations",
    "widened",
]  # fmt: skip
