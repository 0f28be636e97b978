"""Test that visible labels raise, and that hidden labels give the loss of the stock class."""

import pytest
import torch
import torch.nn.functional as F

from .test_modeling_magnet import IDS, MIXED_SEGMENTS

MASK = 5


def loss_by_loop(logits, labels):
    """Compute the mean cross entropy of labels, each predicted by the position before it."""
    cells = [(row, place) for row, place in (labels != -100).nonzero().tolist() if place]
    losses = [F.cross_entropy(logits[row, place - 1], labels[row, place]) for row, place in cells]
    return torch.stack(losses).mean()


def masked(places):
    """Mask some positions of each row, and return ids and labels."""
    ids, labels = IDS.clone(), torch.full_like(IDS, -100)
    ids[:, places], labels[:, places] = MASK, IDS[:, places]
    return ids, labels


@pytest.mark.parametrize(
    "call",
    [
        {"mode": "bidirectional"},
        {"is_causal": False},
        {"mode": "infill", "segment_ids": MIXED_SEGMENTS},
        {"mode": "infill", "segment_ids": torch.zeros_like(IDS)},
        {"mode": "bidirectional", "attention_mask": torch.ones_like(IDS)},
    ],
    ids=["bidirectional", "is_causal", "infill", "no-span", "padded"],
)
@pytest.mark.parametrize("given", ["input_ids", "inputs_embeds"])
def test_visible_labels_raise(tiny_model, call, given):
    inputs = {given: IDS if given == "input_ids" else tiny_model.get_input_embeddings()(IDS)}
    with pytest.raises(ValueError, match=r"\d+ labeled tokens of `labels`"):
        tiny_model(**inputs, labels=IDS, **call)
    prompt = IDS.clone()
    prompt[:, :6] = -100
    with pytest.raises(ValueError, match="tokens of `labels`"):
        tiny_model(**inputs, labels=prompt, **call)


def test_labels_of_all_tokens_with_few_masked_raise(tiny_model):
    ids, _ = masked([4])
    with pytest.raises(ValueError, match="tokens of `labels`"):
        tiny_model(ids, mode="bidirectional", labels=IDS)
    with pytest.raises(ValueError, match="tokens of `labels`"):
        tiny_model(IDS, mode="bidirectional", labels=IDS, shift_labels=F.pad(IDS[:, 1:], (0, 1), value=-100))


def test_visible_labels_raise_in_a_model_opened_as_an_encoder(tiny_model):
    tiny_model.default_mode = "bidirectional"
    with pytest.raises(ValueError, match="mode='bidirectional'"):
        tiny_model(IDS, labels=IDS)
    assert tiny_model(IDS, labels=IDS, is_causal=True).loss.isfinite()


@torch.no_grad()
@pytest.mark.parametrize("given", ["input_ids", "inputs_embeds"])
def test_labels_of_masked_tokens_are_scored(tiny_model, given):
    ids, labels = masked([4, 7, 9])
    inputs = {given: ids if given == "input_ids" else tiny_model.get_input_embeddings()(ids)}
    output = tiny_model(**inputs, mode="bidirectional", labels=labels)
    torch.testing.assert_close(output.loss, loss_by_loop(output.logits, labels))


@torch.no_grad()
def test_tokens_kept_by_bert_corruption_are_scored(tiny_model):
    ids, labels = masked([2, 4, 6, 8, 10])
    ids[0, 4] = IDS[0, 4]
    output = tiny_model(ids, mode="bidirectional", labels=labels)
    torch.testing.assert_close(output.loss, loss_by_loop(output.logits, labels))


@torch.no_grad()
def test_a_masked_mask_token_is_hidden(tiny_model):
    tiny_model.config.magnet["mask_token_id"] = MASK
    ids = IDS.clone()
    ids[:, 4] = MASK
    labels = torch.full_like(IDS, -100)
    labels[:, 4] = MASK
    assert tiny_model(ids, mode="bidirectional", labels=labels).loss.isfinite()


@torch.no_grad()
def test_labels_of_span_tokens_are_scored(tiny_model):
    labels = IDS.where(MIXED_SEGMENTS > 0, -100)
    output = tiny_model(IDS, mode="infill", segment_ids=MIXED_SEGMENTS, labels=labels)
    torch.testing.assert_close(output.loss, loss_by_loop(output.logits, labels))


@torch.no_grad()
def test_labels_that_are_all_ignored_do_not_raise(tiny_model):
    tiny_model(IDS, mode="bidirectional", labels=torch.full_like(IDS, -100))
