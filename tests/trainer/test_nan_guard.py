"""A loss or a gradient that is no number ends a run before it spoils anything, and its batches can be made again."""

import json

import pytest
import torch
from transformers import TrainerCallback

from trainer.nan_guard import NanGuard, read_report

from .processes import call_together
from .tiny import tiny_args, tiny_model, tiny_rows, tiny_trainer

POISON = 43


class CountSteps(TrainerCallback):
    """How often the optimizer made a step."""

    def __init__(self):
        self.steps = 0

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.steps += 1


def poisoned_model():
    """One token has no numbers."""
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = torch.nan
    return model


def rows_with(poisoned, *, num_rows=24):
    """Rows of which some hold the token, in every other place, so that a mask does not hide it."""
    rows = [
        {"input_ids": [token if token != POISON else 4 for token in row["input_ids"]]} for row in tiny_rows(num_rows)
    ]
    for row in poisoned:
        rows[row]["input_ids"][1::2] = [POISON] * len(rows[row]["input_ids"][1::2])
    return rows


def no_replacements(**changes):
    """Random tokens could be the poison."""
    return {"mask_token_share": 1.0, "random_token_share": 0.0, "loss_phases": ["6:1,0,1"], **changes}


def stopped(trainer):
    """What a run that has to stop says, with its report."""
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    (file,) = trainer._guard.output_dir.glob("not-finite-step-*.json")
    assert str(file) in str(caught.value)
    assert not list(trainer._guard.output_dir.glob("*.unfinished"))
    return str(caught.value), file, json.loads(file.read_text())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_step_the_objectives_and_the_rows_are_named_before_the_optimizer_steps(
    tmp_path, accumulation, monkeypatch
):
    counter = CountSteps()
    seen = []
    trainer = tiny_trainer(
        tiny_args(tmp_path, **no_replacements(gradient_accumulation_steps=accumulation)),
        model=poisoned_model(),
        train_dataset=rows_with([13]),
        callbacks=[counter],
    )
    compute = trainer.compute_loss
    monkeypatch.setattr(
        trainer, "compute_loss", lambda model, inputs, **more: seen.append(inputs) or compute(model, inputs, **more)
    )
    said, file, report = stopped(trainer)
    assert counter.steps == report["step"] - 1
    assert f"Step {report['step']}: " in said and "resume from the last checkpoint" in said
    assert set(report["not_finite"]) <= {"mntp", "msg", "gradients"} and "gradients" in report["not_finite"]
    assert len(report["micro_batches"]) == accumulation
    assert sum(13 in rows["row_ids"] for rows in report["micro_batches"]) == 1
    assert all(
        torch.isfinite(weight).all() for name, weight in trainer.model.named_parameters() if "embed" not in name
    )
    batches = trainer.replay(file)
    assert len(batches) == accumulation
    losses = []
    for batch, given in zip(batches, seen[-accumulation:], strict=True):
        assert batch.keys() == given.keys()
        for name, value in batch.items():
            assert torch.equal(value, given[name]) if torch.is_tensor(value) else value == given[name]
        losses.append(compute(trainer.model, batch))
    assert sum(not loss.isfinite() for loss in losses) == 1


def test_pairs_are_made_again(tmp_path):
    trainer = tiny_trainer(
        tiny_args(tmp_path, **no_replacements(loss_phases=["1:1,0,1", "3:1,1,1"])), train_dataset=rows_with([])
    )
    before = trainer._pair_losses
    given = {}

    def spoilt(model, pairs):
        given.update(pairs)
        (loss,) = before(model, pairs).values()
        return {"sscl": loss + (torch.inf if trainer.state.global_step == 2 else 0)}

    trainer._pair_losses = spoilt
    said, file, report = stopped(trainer)
    assert (report["step"], report["not_finite"]) == (3, ["sscl"])
    assert "Step 3: sscl is not finite" in said
    (batch,) = trainer.replay(file)
    assert torch.equal(batch["pairs"]["input_ids"], given["input_ids"])


def test_gradients_alone_are_noticed(tmp_path):
    model = tiny_model()
    trainer = tiny_trainer(tiny_args(tmp_path, **no_replacements()), model=model)
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.register_hook(lambda gradient: gradient * (torch.inf if trainer.state.global_step == 3 else 1))
    said, _, report = stopped(trainer)
    assert (report["step"], report["not_finite"]) == (4, ["gradients"])
    assert "Step 4: gradients are not finite" in said


def test_a_run_in_which_all_is_finite_leaves_no_report(tmp_path):
    tiny_trainer(tiny_args(tmp_path)).train()
    assert not list(tmp_path.glob("not-finite*"))


def test_where_asking_is_dear_the_first_of_several_steps_is_named(tmp_path):
    watch = NanGuard(tmp_path / "new", process_index=1)
    for step, loss in enumerate([1.0, torch.inf, torch.nan], start=1):
        watch.note({"mntp": torch.tensor(2.0), "msg": torch.tensor(loss)}, {"row_ids": [step], "epochs": [0]})
        watch.end_step(step)
    with pytest.raises(FloatingPointError, match="Step 2: msg is not finite"):
        watch.check()
    report = read_report(tmp_path / "new" / "not-finite-step-2-process-1.json")
    assert report["micro_batches"] == [{"row_ids": [2], "epochs": [0]}]
    assert report["values"] == [["mntp", "2.0"], ["msg", "inf"]]
    watch.check()  # it was told


def test_nothing_is_saved_or_evaluated_after_a_bad_step(tmp_path, monkeypatch):
    trainer = tiny_trainer(tiny_args(tmp_path), eval_dataset=tiny_rows(4))
    saved = []
    monkeypatch.setattr("transformers.Trainer._save_checkpoint", lambda *_: saved.append(1))
    for call in (trainer.evaluate, lambda: trainer._save_checkpoint(trainer.model, None), lambda: trainer.log({})):
        trainer._guard.note({"msg": torch.tensor(torch.nan)}, {"row_ids": [0], "epochs": [0]})
        trainer._guard.end_step(1)
        with pytest.raises(FloatingPointError):
            call()
    assert not saved


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"micro_batches": [{}]}'])
def test_what_is_no_report_is_refused(tmp_path, content):
    file = tmp_path / "report.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="is not the report of a step; pass a not-finite"):
        read_report(file)


def train_poisoned(output_dir):
    """In a process of several: rows of which one process meets the poison."""
    torch.set_num_threads(1)
    args = tiny_args(output_dir, ddp_backend="gloo", **no_replacements())
    tiny_trainer(args, model=poisoned_model(), train_dataset=rows_with([13])).train()


def test_every_process_stops_where_one_met_what_is_no_number(tmp_path):
    exits = call_together(2, train_poisoned, (str(tmp_path),))
    assert exits == [1, 1], "neither waits for the other"
    reports = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("not-finite-step-*.json"))]
    assert len(reports) == 2 and len({report["step"] for report in reports}) == 1
    assert all("gradients" in report["not_finite"] for report in reports)
    assert sum(13 in rows["row_ids"] for report in reports for rows in report["micro_batches"]) == 1
