"""Provide the systems that `training_step.py` compares: the trainer's step, a naive one, and the least arithmetic."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_magnet.losses_magnet import IGNORE_INDEX
from modeling_magnet.pooling_magnet import last_token_states
from trainer import DataCollatorForMagnet, MagnetTrainer, MagnetTrainingArguments
from trainer.compilation import compiled
from trainer.fused_adapters import adapters_under_autocast, casting_layers
from trainer.loss_phases import LossPhase
from trainer.objectives import sscl_loss

JOINT, ROWS, MNTP = "joint", "MNTP and MSG", "MNTP alone"
NAIVE, NAIVE_ROWS, FULL = "naive, the same rows", "naive, MNTP and MSG", "MNTP, all logits"
# The trainer is made for a run that has a step of each kind, in this order.
PHASES = {MNTP: "1:1,0,0", ROWS: "1:0.5,0,1", JOINT: "1:0.5,1,1"}
KINDS = {JOINT: JOINT, ROWS: ROWS, MNTP: MNTP, NAIVE: JOINT, FULL: MNTP, NAIVE_ROWS: ROWS}
COMPILED = ", compiled"  # appended to the name of a system


def naive_loss(
    model: nn.Module, batch: dict[str, Any], *, head: nn.Module, phase: LossPhase, temperature: float, length: int
) -> Tensor:
    """Return the weighted sum of MNTP, MSG and SSCL of one micro-batch, as the trainer's `compute_loss` defines it.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    loss = torch.zeros((), device=batch["input_ids"].device)
    for objective, name in (("mntp", "mntp_labels"), ("msg", "msg_labels")):
        if weight := phase.weights.get(objective):
            loss = loss + weight * language_loss(model, batch, labels=batch[name])
    if weight := phase.weights.get("sscl"):
        sides = zip(*(batch["pairs"][name].chunk(2) for name in ("input_ids", "attention_mask")), strict=True)
        vectors = []
        for ids, mask in sides:
            ids, mask = (F.pad(tensor, (0, length - tensor.shape[1])) for tensor in (ids, mask))
            states: Any = model(input_ids=ids, attention_mask=mask, mode="bidirectional").last_hidden_state
            vectors.append(head(last_token_states(states, mask)))
        loss = loss + weight * sscl_loss(vectors[0], vectors[1], temperature=temperature)
    return loss


def language_loss(model: nn.Module, batch: dict[str, Any], *, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of one objective, from float32 logits of all positions."""
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


def make_trainer(model: Any, args: argparse.Namespace, rows: Any, pairs: Any, folder: str) -> MagnetTrainer:
    """Make a trainer whose losses are computed step by step, without training."""
    training = MagnetTrainingArguments(
        output_dir=folder,
        loss_phases=list(PHASES.values()),
        per_device_train_batch_size=args.batch_size,
        contrastive_batch_size=args.contrastive_batch_size,
        contrastive_max_length=args.contrastive_max_length,
        contrastive_mini_batch_tokens=args.contrastive_mini_batch_tokens,
        contrastive_recompute=args.contrastive_recompute,
        max_spans=8,
        min_span_tokens=4,
        max_span_tokens=40,
        use_cpu=args.device == "cpu",
        bf16=args.bf16,
        torch_compile_backend=args.torch_compile_backend,
        report_to="none",
    )
    return MagnetTrainer(
        model=model, args=training, train_dataset=rows, pair_dataset=pairs, processing_class=model.tokenizer
    )


def collate(trainer: MagnetTrainer, rows: Any, *, kind: str, size: int | None = None) -> dict[str, Any]:
    """Collate the first rows for one kind of step: without spans for MNTP only, with pairs for a joint step."""
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


def compare(
    trainer: MagnetTrainer, batch: dict[str, Any], *, kind: str, with_compiled: bool, autocast: bool
) -> dict[str, float]:
    """Return the differences of loss and gradients between trainer and naive step, relative to the largest."""
    results = []
    for system in (kind, NAIVE if kind == JOINT else NAIVE_ROWS):
        trainer.model.zero_grad()
        with layers_of(system, trainer, with_compiled=with_compiled and system == kind, autocast=autocast):
            with torch.autocast(trainer.args.device.type, dtype=torch.bfloat16, enabled=autocast):
                loss = loss_of(system, trainer, batch)
            loss.backward()
        gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
        results.append((loss.item(), gradients))
    (ours, our_gradients), (theirs, their_gradients) = results
    largest = max(gradient.abs().max().item() for gradient in their_gradients.values())
    apart = max((our_gradients[name] - their_gradients[name]).abs().max().item() for name in their_gradients)
    return {"loss": abs(ours - theirs) / theirs, "gradients": apart / largest}


def phase_of(trainer: MagnetTrainer, system: str) -> LossPhase:
    """Return the weights of a system's step."""
    return trainer.phases[list(PHASES).index(KINDS[system])]


def loss_of(system: str, trainer: MagnetTrainer, batch: dict[str, Any]) -> torch.Tensor:
    """Return the loss of one step: the trainer's, or that of the naive implementation."""
    if system in PHASES:
        trainer.state.global_step = list(PHASES).index(system)
        return trainer.compute_loss(trainer.model, batch)
    if system == FULL:
        return language_loss(trainer.model, batch, labels=batch["mntp_labels"])
    return naive_loss(
        trainer.model,
        batch,
        head=trainer.head,
        phase=phase_of(trainer, system),
        temperature=trainer.args.temperature,
        length=trainer.args.contrastive_max_length,
    )


@contextmanager
def layers_of(system: str, trainer: MagnetTrainer, *, with_compiled: bool, autocast: bool) -> Iterator[None]:
    """Run layers as a system does: as the trainer runs them, or compiled."""
    adapted = casting_layers(trainer.model) if system in PHASES and autocast else []
    with adapters_under_autocast(adapted), compiled(trainer.compiled_layers if with_compiled else []):
        yield


def step_operations(model: Any, batch: dict[str, Any], *, phase: LossPhase) -> float:
    """Count the floating-point operations that a step needs at least."""
    config = model.config
    head = model.get_output_embeddings().weight
    layers = [parameter for name, parameter in model.named_parameters() if parameter.dim() == 2 and ".layers." in name]
    of_token = sum((6 if parameter.requires_grad else 4) * parameter.numel() for parameter in layers)
    scores = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    rows = [batch["attention_mask"].sum(1)] if phase.uses_tokens else []
    labels = sum(
        int((batch[name] != IGNORE_INDEX).sum())
        for objective, name in (("mntp", "mntp_labels"), ("msg", "msg_labels"))
        if objective in phase.weights
    )
    rows += [batch["pairs"]["attention_mask"].sum(1)] if phase.uses_pairs else []
    lengths = torch.cat(rows).double()
    of_label = (6 if head.requires_grad else 4) * head.numel()
    return float(of_token * lengths.sum() + scores * lengths.square().sum() + of_label * labels)
