"""Losses against explicit loops, phases in both spellings, and a fourth objective in one file and one entry."""

import copy
import importlib
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.objectives import (
    OBJECTIVES,
    LossPhase,
    Objective,
    count_items,
    pair_steps_before,
    parse_phases,
    sscl_loss,
    token_labels,
    token_loss,
)

from .tiny import tiny_args, tiny_rows, tiny_trainer


@pytest.fixture
def mtp():
    """Register the objective of `two_ahead.py` for one test."""
    before = dict(OBJECTIVES)
    importlib.reload(importlib.import_module("tests.trainer.two_ahead"))
    yield OBJECTIVES["mtp"]
    OBJECTIVES.clear()
    OBJECTIVES.update(before)


def test_a_fourth_objective_is_trained_logged_and_evaluated(tmp_path, mtp):
    args = tiny_args(tmp_path, loss_phases=["2: msg=1 mtp=0.5"], gradient_accumulation_steps=2)
    trainer = tiny_trainer(args, eval_dataset=tiny_rows(6))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    for log in logs:
        assert 0 < log["loss_mtp"] < 10 and log["loss_mtp"] != log["loss_msg"]
        assert log["loss"] == pytest.approx(log["loss_msg"] + 0.5 * log["loss_mtp"], rel=1e-5)
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss_mtp"])
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_loss_msg"] + 0.5 * metrics["eval_loss_mtp"])


def test_a_fourth_objective_s_loss_equals_an_explicit_loop(tmp_path, mtp):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["1: mtp=2"]))
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    logits = trainer.model(
        batch["input_ids"], attention_mask=batch["attention_mask"], mode="infill", segment_ids=batch["segment_ids"]
    ).logits
    labels = token_labels(batch)["mtp"]
    assert batch["num_labels"] == sum(int((each != -100).sum()) for each in token_labels(batch).values())
    for row, position in (labels != -100).nonzero().tolist():
        assert labels[row, position] == batch["input_ids"][row, position + 2]
    torch.testing.assert_close(loss, 2 * F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_unregistered_objective_raises(tmp_path):
    with pytest.raises(ValueError, match="'mtp' is not an objective"):
        tiny_args(tmp_path, loss_phases=["2: msg=1 mtp=0.5"])


def test_objective_with_own_count_and_remedy(tmp_path, monkeypatch):
    rare = Objective(
        labels=lambda batch: batch["msg_labels"],
        count=lambda labels, batch, normalization: torch.tensor(3 if normalization == "three" else 4),
        remedy=lambda settings: "Lower `mask_ratio`" if settings.mask_ratio > 0.5 else None,
    )
    monkeypatch.setitem(OBJECTIVES, "rare", rare)
    batch = {name: torch.ones(1, 2, dtype=torch.long) for name in ("attention_mask", "mntp_labels", "msg_labels")}
    assert count_items(batch, normalization={"rare": "three"}).tolist() == [2, 2, 3]
    assert count_items(batch, normalization={}).tolist() == [2, 2, 4]
    with pytest.raises(ValueError, match="weight rare, .* Lower `mask_ratio`, or set its weight to 0"):
        tiny_args(tmp_path, loss_phases=["2: rare=1"], mask_ratio=0.6)


# ---- Phases ----

PAPER = ["3400: mntp=1 msg=1", "800: mntp=1 sscl=9 msg=1"]

phases = st.lists(
    st.builds(
        LossPhase,
        steps=st.integers(1, 6),
        mntp=st.sampled_from([0.0, 1.0]),
        sscl=st.sampled_from([0.0, 9.0]),
        msg=st.just(1.0),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize(
    ("named", "short"),
    [
        ("3400: mntp=1 msg=1", "3400:1,0,1"),
        ("800: msg=.1 sscl=9 mntp=1", "800:1,9,.1"),
        ("5:sscl=2", " 5 : 0, 2, 0e0 "),
        ("5: mntp=1 msg=0", "5:1,0,0"),
    ],
)
def test_both_spellings_give_the_same_phase(named, short):
    assert parse_phases([named]) == parse_phases([short])


def test_a_phase_has_a_weight_for_every_objective():
    phase = parse_phases(PAPER)[0]
    assert phase == LossPhase(3400, mntp=1, sscl=0, msg=1.0) == copy.deepcopy(pickle.loads(pickle.dumps(phase)))
    assert phase.weights == {"mntp": 1.0, "msg": 1.0}
    assert phase.uses_tokens and not phase.uses_pairs


@pytest.mark.parametrize(
    "entry",
    ["", "800", "1,9,1", "800:1,9", "800:1,9,1,1", "800.5:1,9,1", "800:1;9;1", "8:1:1", 800, ["8"], "8: mntp"]
    + ["8: mntp=1 1", "8: mntp=1 mntp=2", "8: mntp=x", "8: steps=1", "8: mntp=1, msg=1", "8: mntp = 1"],
)
def test_malformed_entry_raises(entry):
    with pytest.raises(ValueError) as error:
        parse_phases([*PAPER, entry])
    assert f"phase 3, {entry!r}: write it as '800: mntp=1 sscl=9 msg=1'" in str(error.value)


def test_invalid_arguments_raise_in_one_error():
    with pytest.raises(ValueError) as error:
        parse_phases(["0:1,0,1", "oops", "10:nan,-9,inf", "10:1,0,1", "-5:0,0,0", "9: mtp=1", "9" * 400 + ":1,0,1"])
    lines = str(error.value).splitlines()[1:]
    expected = [
        ("phase 1", "0 steps"),
        ("phase 2", "'oops'"),
        ("phase 3", "mntp is nan"),
        ("phase 3", "sscl is -9.0"),
        ("phase 3", "msg is inf"),
        ("phase 5", "-5 steps"),
        ("phase 5", "all weights are 0"),
        ("phase 6", "'mtp' is not an objective"),
        ("phase 7", "400 digits of steps"),
    ]
    assert len(lines) == len(expected)
    for line, parts in zip(lines, expected, strict=True):
        assert all(part in line for part in parts)


@pytest.mark.parametrize("entries", [[], "3400:1,0,1", 3400, None, {"3400": "1,0,1"}])
def test_empty_or_single_string_phases_raise(entries):
    with pytest.raises(ValueError, match="pass a list"):
        parse_phases(entries)


@pytest.mark.parametrize(("step", "count"), [(0, 0), (3400, 0), (3401, 1), (4200, 800), (4300, 900)])
def test_contrastive_steps_of_the_paper_s_schedule(step, count):
    assert pair_steps_before(parse_phases(PAPER), step) == count


@given(phases, st.integers(0, 40))
def test_pair_steps_are_those_whose_phase_has_the_weight(schedule, step):
    unrolled = [phase for phase in schedule for _ in range(phase.steps)] + [schedule[-1]] * 40
    assert pair_steps_before(schedule, step) == sum("sscl" in phase.weights for phase in unrolled[:step])


def test_each_phase_lasts_for_its_steps_and_the_last_does_not_end(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["2: mntp=1", "1: msg=1", "3: mntp=1 msg=2"]))
    found = []
    for trainer.state.global_step in range(8):
        found.append(trainer.phases.index(trainer._phase))
    assert found == [0, 0, 1, 2, 2, 2, 2, 2]


# ---- Losses ----


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def value_and_gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def looped_info_nce(
    anchors: Tensor, positives: Tensor, targets: list[int], temperature: float, cosine: bool
) -> Tensor:
    total = anchors.sum() * 0
    for anchor, target in zip(anchors, targets, strict=True):
        scores = []
        for positive in positives:
            score = sum(a * b for a, b in zip(anchor, positive, strict=True))
            if cosine:
                score = score / (sum(a * a for a in anchor) * sum(b * b for b in positive)).sqrt()
            scores.append((score / temperature).exp())
        total = total - (scores[target] / sum(scores)).log()
    return total / len(anchors)


# --- Token losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_items", [4, 2.5, torch.tensor(9)], ids=["int", "float", "tensor"])
def test_token_losses_are_summed_and_divided(num_items):
    losses = draw(2, 5)
    value, gradient = value_and_gradients(token_loss(losses, num_items=num_items), losses)
    assert value.shape == () and value.item() == pytest.approx(sum(losses.flatten().tolist()) / float(num_items))
    torch.testing.assert_close(gradient, torch.full_like(losses, 1 / float(num_items)))


def test_parts_of_a_batch_add_up_to_the_whole():
    losses = draw(7)
    parts = sum(token_loss(part, num_items=6) for part in losses.split([2, 5]))
    torch.testing.assert_close(parts, token_loss(losses, num_items=6))


@pytest.mark.parametrize("num_items", [0, torch.tensor(0), 5], ids=["int 0", "tensor 0", "items elsewhere"])
@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_no_label_gives_zero_that_can_be_back_propagated(num_items, shape):
    losses = torch.zeros(shape, requires_grad=True)
    value, gradient = value_and_gradients(token_loss(losses, num_items=num_items), losses)
    assert value.item() == 0 and value.shape == ()
    assert gradient.shape == losses.shape and gradient.isfinite().all()


# --- SSCL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("targets", [None, [0, 1, 2], [4, 0, 2]], ids=["default", "diagonal", "elsewhere"])
def test_sscl_loss_equals_the_explicit_double_loop(similarity, targets):
    anchors, positives = draw(3, 4), draw(5, 4, seed=1)
    loss = sscl_loss(
        anchors,
        positives,
        temperature=0.5,
        similarity=similarity,
        targets=None if targets is None else torch.tensor(targets),
    )
    expected = looped_info_nce(
        anchors, positives, targets or [0, 1, 2], temperature=0.5, cosine=similarity == "cosine"
    )
    torch.testing.assert_close(
        value_and_gradients(loss, anchors, positives), value_and_gradients(expected, anchors, positives)
    )


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-3])
def test_sscl_loss_survives_a_batch_of_identical_pairs(similarity, temperature):
    text = draw(1, 8).detach()
    anchors, positives = text.repeat(6, 1).requires_grad_(), text.repeat(6, 1).requires_grad_()
    loss = sscl_loss(anchors, positives, temperature=temperature, similarity=similarity)
    value, *gradients = value_and_gradients(loss, anchors, positives)
    assert value.item() == pytest.approx(math.log(6), rel=1e-3)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_processes_with_their_own_targets_average_to_the_whole_batch():
    anchors, positives = draw(4, 8), draw(4, 8, seed=1)
    whole = sscl_loss(anchors, positives, temperature=0.1)
    parts = [
        sscl_loss(anchors[rows], positives, temperature=0.1, targets=torch.tensor(rows)) for rows in ([0, 1], [2, 3])
    ]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)


@pytest.mark.parametrize("num_positives", [0, 3])
def test_no_anchor_gives_zero_that_can_be_back_propagated(num_positives):
    anchors, positives = draw(0, 4), draw(num_positives, 4)
    value, *gradients = value_and_gradients(sscl_loss(anchors, positives, temperature=0.1), anchors, positives)
    assert value.item() == 0 and value.shape == ()
    assert all(not gradient.any() for gradient in gradients)
