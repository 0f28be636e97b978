"""Evaluate a model with sums over tokens that can be added up over batches and processes.

Every evaluation corrupts rows identically, and only `loss` depends on the loss weights, so that curves of different
runs and steps can be compared.

Shapes: B rows, S tokens in a row, K token objectives.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from tqdm.auto import tqdm

from modeling_magnet.losses_magnet import IGNORE_INDEX

from .corruption import CorruptionSettings
from .data_collator import DataCollatorForMagnet, DataCollatorForPairs
from .distributed import sum_over_processes
from .metrics import perplexity
from .objectives import (
    OBJECTIVES,
    TargetLosses,
    count_items,
    forward_targets,
    pair_losses,
    pair_objectives,
    token_labels,
)
from .samplers import even_dataloader
from .sources import RowSource
from .training_args import MagnetTrainingArguments

Sums = dict[str, float]

EVALUATION_SEED = 0  # of masks and spans
# The corruption of rows for the infilling perplexity: spans without masking.
INFILLING_SETTINGS = CorruptionSettings(mask_ratio=0.0, max_spans=3, min_span_tokens=8, max_span_tokens=32)
_MAX_LOGITS = 2**22  # held at a time while tokens are predicted


class EvaluationCollator:
    """Corrupt each row twice: as in training, and with missing spans but without masking.

    An empty list gives a batch of one token without labels, so that all processes run the same number of batches.
    """

    def __init__(self, training: DataCollatorForMagnet) -> None:
        self.corruption = dataclasses.replace(training, seed=EVALUATION_SEED)
        self.infilling = dataclasses.replace(self.corruption, settings=INFILLING_SETTINGS)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        rows = rows or [{"input_ids": [0], "row_id": 0, "epoch": 0}]
        corrupted, infilling = self.corruption(rows), self.infilling(rows)
        # transformers reads `input_ids` if `include_for_metrics` contains "inputs".
        return {"corrupted": corrupted, "infilling": infilling, "input_ids": corrupted["input_ids"]}


@dataclass
class PairEvaluationCollator:
    """Collate pairs; an empty list gives a full batch of empty texts that counts as 0 pairs.

    All processes then run the same number of mini-batches. Each forward gathers sharded weights, so a process with
    fewer forwards would block the others.
    """

    pairs: DataCollatorForPairs
    batch_size: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        empty = [{"anchor": "", "positive": ""}] * self.batch_size
        return {"num_pairs": len(rows), "pairs": self.pairs(rows or empty)}


@torch.no_grad()
def language_sums(model: nn.Module, batch: dict[str, Any], *, as_printed: bool) -> tuple[Sums, TargetLosses]:
    """Sum cross entropies and counts of one batch of text.

    Args:
        model (`nn.Module`): The model in evaluation mode.
        batch (`dict`): Output of `EvaluationCollator`, on the model's device.
        as_printed (`bool`): See `count_items`.

    Returns:
        `tuple`: sums in nats and counts for `language_metrics`, and the `TargetLosses` of the corrupted rows.
    """
    corrupted, infilling = batch["corrupted"], batch["infilling"]
    items = count_items(corrupted, as_printed=as_printed)
    outputs, fills = forward_targets(model, corrupted), forward_targets(model, infilling)
    assert outputs.hits is not None
    # The single token of an empty batch does not count.
    is_real = float(corrupted["input_ids"].numel() > 1)
    sums: Sums = {}
    for (name, losses), count in zip(outputs.losses.items(), items, strict=True):
        sums |= {f"{name}_loss": losses.sum().item(), f"{name}_items": count.item() * is_real}
    return {
        **sums,
        "mntp_tokens": (corrupted["mntp_labels"] != IGNORE_INDEX).sum().item(),
        "mntp_hits": outputs.hits["mntp"].sum().item(),
        "infilling_loss": fills.losses["msg"].sum().item(),
        "span_tokens": (infilling["msg_labels"] != IGNORE_INDEX).sum().item(),
        **_causal_sums(model, infilling),
    }, outputs


def _causal_sums(model: nn.Module, batch: dict[str, Tensor]) -> Sums:
    """Sum the cross entropies of all tokens and of the span tokens in causal mode, without corruption."""
    input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
    targets = torch.full_like(input_ids, IGNORE_INDEX)
    targets[:, :-1] = input_ids[:, 1:].where(attention_mask[:, 1:].bool(), IGNORE_INDEX)  # (B, S)
    outputs: Any = model(
        input_ids=input_ids, attention_mask=attention_mask, mode="causal", target_ids=targets, use_cache=False
    )
    is_missing = batch["msg_labels"] != IGNORE_INDEX
    return {
        "left_to_right_loss": outputs.token_losses[is_missing].sum().item(),
        "causal_loss": outputs.token_losses.sum().item(),
        "causal_tokens": (targets != IGNORE_INDEX).sum().item(),
    }


def language_metrics(sums: Sums) -> dict[str, float]:
    """Convert sums over all batches and processes to metrics; omit metrics without a token.

    Example:
        >>> language_metrics({"mntp_loss": 6.0, "mntp_items": 3, "mntp_tokens": 3, "mntp_hits": 1, "msg_items": 0,
        ...     "span_tokens": 0, "causal_tokens": 0})
        {'loss_mntp': 2.0, 'masked_accuracy': 0.3333333333333333}
    """
    metrics = {
        f"loss_{name}": sums[f"{name}_loss"] / sums[f"{name}_items"]
        for name in OBJECTIVES
        if sums.get(f"{name}_items")
    }
    if sums["mntp_tokens"]:
        metrics["masked_accuracy"] = sums["mntp_hits"] / sums["mntp_tokens"]
    if sums["span_tokens"]:
        metrics["infilling_perplexity"] = perplexity(sums["infilling_loss"], int(sums["span_tokens"]))
        metrics["left_to_right_perplexity"] = perplexity(sums["left_to_right_loss"], int(sums["span_tokens"]))
    if sums["causal_tokens"]:
        metrics["causal_perplexity"] = perplexity(sums["causal_loss"], int(sums["causal_tokens"]))
    return metrics


@torch.no_grad()
def pair_metrics(
    model: nn.Module,
    pairs: RowSource,
    *,
    head: nn.Module,
    collator: DataCollatorForPairs,
    args: MagnetTrainingArguments,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Return the losses of the pair objectives over held-out pairs.

    With any number of processes, batches have the size of training batches, and negatives come from the same batch.
    """
    size = args.contrastive_batch_size
    # A smaller last batch would have fewer negatives and thus a lower loss.
    num_pairs = len(pairs) - len(pairs) % size or len(pairs)
    even_collator = PairEvaluationCollator(collator, min(size, num_pairs))
    loader = even_dataloader(pairs, even_collator, batch_size=size, args=args, num_rows=num_pairs)
    hide = args.disable_tqdm or not accelerator.is_local_main_process
    sums = {"pairs": 0.0, **dict.fromkeys(pair_objectives(), 0.0)}
    for batch in tqdm(loader, desc="Held-out pairs", unit="batch", leave=False, disable=hide, delay=1):
        inputs = send_to_device(batch["pairs"], accelerator.device)
        for name, loss in pair_losses(model, inputs, head=head, settings=args.contrastive_settings).items():
            sums[name] += loss.item() * batch["num_pairs"]
        sums["pairs"] += batch["num_pairs"]
    sums = sum_over_processes(sums, accelerator)
    return {f"loss_{name}": sums[name] / sums["pairs"] for name in pair_objectives()}


@torch.no_grad()
def predict_tokens(outputs: TargetLosses, batch: dict[str, Tensor], *, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Predict the most likely token at each position with a label, in chunks of positions.

    Args:
        outputs (`TargetLosses`): Losses of the batch, with the input of the LM head.
        batch (`dict`): A collated batch.
        head (`nn.Module`): The LM head. Transformations of its logits, such as a soft cap, keep their order.

    Returns:
        `tuple[Tensor, Tensor]`: predicted and correct tokens, `(B, S, K)` each; -100 at positions without a label.
    """
    labels = torch.stack(list(token_labels(batch).values()), dim=-1)  # (B, S, K)
    has_label = (labels != IGNORE_INDEX).any(-1)  # (B, S)
    assert outputs.hidden_states is not None
    states = outputs.hidden_states[has_label]  # (N, H)
    weight: Any = head.weight
    size = max(1, _MAX_LOGITS // len(weight))
    parts = states.to(weight.dtype).split(size)  # accelerate returns float32 states for any dtype of the model
    tokens = torch.cat([head(part).argmax(-1) for part in parts]) if len(states) else labels.new_zeros(0)
    predictions = torch.full_like(labels[..., 0], IGNORE_INDEX).masked_scatter(has_label, tokens)  # (B, S)
    return predictions[..., None].where(labels != IGNORE_INDEX, IGNORE_INDEX), labels
