"""Non-finite losses and gradients stop a run."""

import json

import pytest
import torch
from transformers import TrainerCallback

from trainer import MagnetTrainer
from trainer.nan_guard import NanGuard

from .processes import call_together
from .tiny import tiny_args, tiny_model, tiny_rows, tiny_tokenizer, tiny_trainer

POISON = 43


class CountSteps(TrainerCallback):
    """Count the steps of the optimizer."""

    def __init__(self):
        self.steps = 0

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.steps += 1


def poisoned_model():
    """Make a model in which the embedding of one token is NaN."""
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = torch.nan
    return model


def rows_with(poisoned, *, num_rows=24):
    """Make rows, some of which have the token at every other position, so that a mask does not hide it."""
    rows = [
        {"input_ids": [token if token != POISON else 4 for token in row["input_ids"]]} for row in tiny_rows(num_rows)
    ]
    for row in poisoned:
        rows[row]["input_ids"][1::2] = [POISON] * len(rows[row]["input_ids"][1::2])
    return rows


def no_replacements(**changes):
    """Turn off random replacements, which could be the poisoned token."""
    return {"mask_token_share": 1.0, "random_token_share": 0.0, "loss_phases": ["6:1,0,1"], **changes}


def stopped(trainer):
    """Return the message and the report of a run that has to stop."""
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    (file,) = trainer._guard.output_dir.glob("not-finite-step-*.json")
    assert str(file) in str(caught.value)
    assert not list(trainer._guard.output_dir.glob("*.unfinished"))
    return str(caught.value), json.loads(file.read_text())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_non_finite_step_raises_before_the_optimizer_step(tmp_path, accumulation):
    counter = CountSteps()
    trainer = tiny_trainer(
        tiny_args(tmp_path, **no_replacements(gradient_accumulation_steps=accumulation)),
        model=poisoned_model(),
        train_dataset=rows_with([13]),
        callbacks=[counter],
    )
    message, report = stopped(trainer)
    assert counter.steps == report["step"] - 1
    assert f"in step {report['step']}." in message
    assert set(report["not_finite"]) <= {"mntp", "msg", "gradients"} and "gradients" in report["not_finite"]
    assert len(report["micro_batches"]) == accumulation
    assert sum(13 in rows["row_ids"] for rows in report["micro_batches"]) == 1
    assert all(
        torch.isfinite(weight).all() for name, weight in trainer.model.named_parameters() if "embed" not in name
    )


def test_non_finite_contrastive_loss_raises(tmp_path):
    trainer = tiny_trainer(
        tiny_args(tmp_path, **no_replacements(loss_phases=["1:1,0,1", "3:1,1,1"])), train_dataset=rows_with([])
    )
    trainer.head.register_forward_hook(
        lambda *call: call[2] * (torch.inf if trainer.state.global_step == 2 and len(call[2]) > 1 else 1)
    )
    message, report = stopped(trainer)
    assert report["step"] == 3 and "sscl" in report["not_finite"] and "in step 3." in message
    assert report["micro_batches"][0]["pair_micro_batch"] == 1


def test_non_finite_gradient_raises(tmp_path):
    model = tiny_model()
    trainer = tiny_trainer(tiny_args(tmp_path, **no_replacements()), model=model)
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.register_hook(lambda gradient: gradient * (torch.inf if trainer.state.global_step == 3 else 1))
    message, report = stopped(trainer)
    assert (report["step"], report["not_finite"]) == (4, ["gradients"])
    assert "in step 4." in message


def test_finite_run_writes_no_report(tmp_path):
    tiny_trainer(tiny_args(tmp_path)).train()
    assert not list(tmp_path.glob("not-finite*"))


def test_a_subclass_may_compute_the_loss_itself(tmp_path):
    class OwnLoss(MagnetTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return model(inputs["input_ids"], labels=inputs["input_ids"]).loss

    args = tiny_args(tmp_path, loss_phases=["2:1,0,1"])
    OwnLoss(model=tiny_model(), args=args, train_dataset=tiny_rows(), processing_class=tiny_tokenizer()).train()
    guard = NanGuard(tmp_path)
    guard.end_step(1, [], [])
    guard.check()


def test_first_non_finite_step_is_reported(tmp_path):
    guard = NanGuard(tmp_path / "new", process_index=1)
    for step, loss in enumerate([1.0, torch.inf, torch.nan], start=1):
        losses = [("mntp", torch.tensor(2.0)), ("msg", torch.tensor(loss))]
        guard.end_step(step, losses, [{"row_ids": [step], "epochs": [0]}])
    with pytest.raises(FloatingPointError, match="msg in step 2"):
        guard.check()
    report = json.loads((tmp_path / "new" / "not-finite-step-2-process-1.json").read_text())
    assert report["micro_batches"] == [{"row_ids": [2], "epochs": [0]}]
    assert report["values"] == [["mntp", "2.0"], ["msg", "inf"]]
    guard.check()  # does not raise again


def test_nothing_is_saved_or_evaluated_after_a_non_finite_step(tmp_path, monkeypatch):
    trainer = tiny_trainer(tiny_args(tmp_path), eval_dataset=tiny_rows(4))
    saved = []
    monkeypatch.setattr("transformers.Trainer._save_checkpoint", lambda *_: saved.append(1))
    for call in (trainer.evaluate, lambda: trainer._save_checkpoint(trainer.model, None), lambda: trainer.log({})):
        trainer._guard.end_step(1, [("msg", torch.tensor(torch.nan))], [{"row_ids": [0], "epochs": [0]}])
        with pytest.raises(FloatingPointError):
            call()
    assert not saved


def train_poisoned(output_dir):
    """Run in each of several processes, only one of which reads the poisoned row."""
    torch.set_num_threads(1)
    args = tiny_args(output_dir, ddp_backend="gloo", **no_replacements())
    tiny_trainer(args, model=poisoned_model(), train_dataset=rows_with([13])).train()


def test_all_processes_stop_if_one_has_a_non_finite_value(tmp_path):
    exits = call_together(2, train_poisoned, (str(tmp_path),))
    assert exits == [1, 1], "neither waits for the other"
    reports = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("not-finite-step-*.json"))]
    assert len(reports) == 2 and len({report["step"] for report in reports}) == 1
    assert all("gradients" in report["not_finite"] for report in reports)
    assert sum(13 in rows["row_ids"] for report in reports for rows in report["micro_batches"]) == 1
