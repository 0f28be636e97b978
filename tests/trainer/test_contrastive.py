"""Mini-batches of pairs equal whole batches: embeddings, gradients, forwards, padding and saved tensors."""

from tempfile import gettempdir
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modeling_magnet.configuration_magnet import POOLINGS
from trainer.data_collator import DataCollatorForPairs
from trainer.evaluation import PairEvaluationCollator
from trainer.objectives import contrastive_embeddings, forward_targets, sscl_loss, token_loss

from .tiny import tiny_args, tiny_model, tiny_rows, tiny_tokenizer, tiny_trainer

MAX_LENGTH = 12


def collate(pairs: list[dict[str, str]], *, mini_batch_tokens: int | None) -> dict[str, Any]:
    collator = DataCollatorForPairs(
        tiny_tokenizer(), prompt=None, max_length=MAX_LENGTH, pad_token_id=2, mini_batch_tokens=mini_batch_tokens
    )
    return collator(pairs)


def pairs_of(lengths: list[int]) -> list[dict[str, str]]:
    """Return pairs whose anchors have these numbers of words, and positives one more."""
    words = [f"w{number}" for number in range(40)]
    return [
        {"anchor": " ".join(words[n : n + length]), "positive": " ".join(words[n : n + length + 1])}
        for n, length in enumerate(lengths)
    ]


@given(lengths=st.lists(st.integers(1, 15), min_size=1, max_size=12), budget=st.integers(MAX_LENGTH, 80))
@settings(max_examples=60, deadline=None)
def test_mini_batches_hold_every_text_once_within_the_limit(lengths, budget):
    batch, whole = (collate(pairs_of(lengths), mini_batch_tokens=limit) for limit in (budget, None))
    assert torch.equal(batch["input_ids"], whole["input_ids"]) and not {"order", "mini_batches"} & whole.keys()
    assert sorted(batch["order"].tolist()) == list(range(2 * len(lengths)))
    start = 0
    for num_rows, width in batch["mini_batches"]:
        rows = batch["order"][start : start + num_rows]
        start += num_rows
        assert num_rows * width <= budget
        assert width == batch["attention_mask"][rows].sum(1).max(), "no column of only padding"
    assert start == 2 * len(lengths)
    longest = pairs_of([15] * len(lengths))
    assert len(collate(longest, mini_batch_tokens=budget)["mini_batches"]) == len(batch["mini_batches"])


def test_process_without_pairs_runs_the_same_number_of_mini_batches():
    collator = DataCollatorForPairs(
        tiny_tokenizer(), prompt=None, max_length=MAX_LENGTH, pad_token_id=2, mini_batch_tokens=2 * MAX_LENGTH
    )
    evaluation = PairEvaluationCollator(collator, batch_size=3)
    full, empty = evaluation(pairs_of([4, 9, 2])), evaluation([])
    assert (full["num_pairs"], empty["num_pairs"]) == (3, 0)
    assert len(full["pairs"]["mini_batches"]) == len(empty["pairs"]["mini_batches"]) == 3
    assert empty["pairs"]["input_ids"].shape[1] <= 2


def losses_and_gradients(
    batch: dict[str, Any], *, dropout: float = 0.0, recompute: bool = False
) -> list[torch.Tensor]:
    trainer = tiny_trainer(tiny_args(gettempdir(), loss_phases=["1:0,1,0"]))
    model = trainer.model.train()
    torch.manual_seed(1)
    anchors, positives = contrastive_embeddings(model, batch, head=trainer.head, dropout=dropout, recompute=recompute)
    loss = sscl_loss(anchors, positives, temperature=0.5)
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("budget", [MAX_LENGTH, 30, 1000])
def test_mini_batches_give_the_loss_and_gradients_of_the_whole(budget, recompute):
    pairs = pairs_of([3, 9, 1, 5, 5])
    expected = losses_and_gradients(collate(pairs, mini_batch_tokens=None))
    found = losses_and_gradients(collate(pairs, mini_batch_tokens=budget), recompute=recompute)
    assert len(found) == len(expected) > 10
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("prompt", [None, "w1 w2: "])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_training_pools_as_encode_does(pooling, prompt, tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["1:0,1,0"], contrastive_pooling=pooling))
    model, pairs = trainer.model.eval(), pairs_of([3, 9, 1, 5])
    assert model.magnet_settings.pooling == pooling, "`encode` of the trained model uses it, too"
    model.tokenizer = tiny_tokenizer()
    collator = DataCollatorForPairs(model.tokenizer, prompt=prompt, max_length=20, pad_token_id=2)
    embeddings = contrastive_embeddings(model, collator(pairs), head=nn.Identity(), pooling=pooling)
    for side, found in zip(("anchor", "positive"), embeddings, strict=True):
        expected = model.encode([pair[side] for pair in pairs], prompt=prompt or "", convert_to_tensor=True)
        torch.testing.assert_close(found, expected)


def test_recomputation_drops_the_same_attention_weights():
    batch = collate(pairs_of([3, 9, 1, 5, 5]), mini_batch_tokens=30)
    kept = losses_and_gradients(batch, dropout=0.5)
    again = losses_and_gradients(batch, dropout=0.5, recompute=True)
    assert all(torch.equal(*both) for both in zip(kept, again, strict=True))
    assert not torch.equal(kept[0], losses_and_gradients(batch)[0])


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputing_keeps_no_activations_and_runs_each_mini_batch_twice(recompute):
    batch, model = collate(pairs_of([6] * 8), mini_batch_tokens=4 * MAX_LENGTH), tiny_model()
    calls, sizes = [], []
    model.register_forward_pre_hook(lambda *call: calls.append(call[2]["input_ids"].shape), with_kwargs=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: sizes.append(kept.numel()) or kept, lambda kept: kept):
        anchors, positives = contrastive_embeddings(model, batch, head=torch.nn.Identity(), recompute=recompute)
    assert calls == [(4, 9)] * 2 + [(4, 8)] * 2
    # Only token ids, masks and vectors remain; one layer of one mini-batch has 4 x 8 states of width 16.
    assert (max(sizes) >= 4 * 8 * 16) is not recompute
    sscl_loss(anchors, positives, temperature=0.5).backward()
    assert len(calls) == (8 if recompute else 4)


def test_mini_batches_log_the_same_losses_as_whole_batches(tmp_path):
    logs, reads = [], []
    for changes in ({}, {"contrastive_mini_batch_tokens": 48, "contrastive_recompute": True}):
        trainer, modes = tiny_trainer(tiny_args(tmp_path, loss_phases=["2:1,0,1", "3:1,9,1"], **changes)), []
        trainer.model.register_forward_pre_hook(
            lambda *call, modes=modes: modes.append(call[2]["mode"]), with_kwargs=True
        )
        trainer.train()
        logs.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
        reads.append(modes.count("bidirectional"))
    assert len(logs[0]) == 5
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)
    assert reads == [3, 3 * 4 * 2], "three steps of four pairs, two texts at a time, each read twice"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("budget", [None, 3 * MAX_LENGTH])
def test_forwards_of_a_step_do_not_synchronize(budget, recompute, tmp_path):
    """Run on the meta device, where reading a value raises."""
    model, meta = tiny_model().to("meta").train(), torch.device("meta")
    rows = [{**row, "row_id": number, "epoch": 0} for number, row in enumerate(tiny_rows(3))]
    batch = send_to_device(tiny_trainer(tiny_args(tmp_path)).data_collator(rows), meta)
    pairs = send_to_device(collate(pairs_of([4, 9, 2]), mini_batch_tokens=budget), meta)
    joint = forward_targets(model, batch)
    loss = token_loss(joint.losses["mntp"], num_items=10) + token_loss(joint.losses["msg"], num_items=10)
    anchors, positives = contrastive_embeddings(model, pairs, head=nn.Linear(16, 16, device=meta), recompute=recompute)
    (loss + (anchors * positives).sum()).backward()  # `sscl_loss` turns autocast off, which this device has not
    assert all(weight.grad is not None for weight in model.parameters())
