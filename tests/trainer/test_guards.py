"""Non-finite losses and gradients stop a run, and the memory trial finds phases that do not fit."""

import json
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from trainer.guards import NanGuard, is_out_of_memory, longest_pairs, longest_rows, reserve_for_optimizer

from .processes import call_together
from .test_memory import trained
from .tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_trainer

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


# ---- The memory trial ----


@pytest.mark.parametrize(
    "changes",
    [{}, {"view_dropout": 0.3}, {"gradient_accumulation_steps": 2, "bf16": True}],
    ids=["plain", "dropout", "accumulated"],
)
def test_memory_trial_does_not_change_the_run(tmp_path, changes, capsys):
    phases = ["3:1,0,1", "3:1,9,1", "2:0,1,0"]
    found = []
    for tries in (True, False):
        args = tiny_args(tmp_path, loss_phases=phases, memory_trial=tries, **changes)
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        run = trained(args, lora=True)
        found.append((*run, torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()))
        trials = [line for line in capsys.readouterr().out.splitlines() if "trying the memory" in line]
        assert len(trials) == (3 if tries else 0)
    with_trial, without = found
    for step, expected in zip(with_trial[0], without[0], strict=True):
        assert all(torch.equal(step[name], expected[name]) for name in expected) and step.keys() == expected.keys()
    assert all(torch.equal(with_trial[1][name], weight) for name, weight in without[1].items())
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    logs, expected_logs = ([{k: v for k, v in log.items() if k not in timed} for log in run[2]] for run in found)
    assert logs == expected_logs
    assert torch.equal(with_trial[3], without[3]) and with_trial[4:] == without[4:]


def test_memory_trial_runs_the_longest_rows_and_pairs(tmp_path, capsys):
    rows = tiny_rows(30)
    rows[17] = {"input_ids": [1, *range(4, 44)]}
    pairs = [*tiny_pairs(), {"anchor": "w1", "positive": " ".join(["w2"] * 12)}]
    trainer = tiny_trainer(
        tiny_args(tmp_path, loss_phases=["1:1,0,1", "1:1,9,1", "1:2,8,1"], memory_trial=True),
        train_dataset=rows,
        pair_dataset=pairs,
    )
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((kwargs["mode"], tuple(kwargs["input_ids"].shape))), with_kwargs=True
    )
    trainer.train()
    prompt = len(trainer.pair_collator([{"anchor": "", "positive": ""}])["input_ids"][0])
    width = min(24, prompt + 12)
    assert seen[:3] == [("infill", (4, 41)), ("infill", (4, 41)), ("bidirectional", (8, width))]
    assert [mode for mode, _ in seen[3:]] == ["infill", *["infill", "bidirectional"] * 2]
    trials = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trying")]
    assert trials == [
        "trying the memory of phase 1 (1:1,0,1): 4 rows of 41 tokens",
        f"trying the memory of phase 2 (1:1,9,1): 4 rows of 41 tokens, then 4 pairs of {width} tokens a side",
    ]


@pytest.mark.parametrize(
    ("mode", "phase", "remedy"),
    [
        ("infill", "phase 1 of `loss_phases` ('3:1,0,1')", "Lower `per_device_train_batch_size`"),
        ("bidirectional", "phase 2 of `loss_phases` ('3:1,9,1')", "Lower `contrastive_batch_size`"),
    ],
)
def test_out_of_memory_raises_before_the_first_step(tmp_path, mode, phase, remedy):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["3:1,0,1", "3:1,9,1"], memory_trial=True))
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}

    def run_out(_, args, kwargs):
        if kwargs["mode"] == mode:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    trainer.model.register_forward_pre_hook(run_out, with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.train()
    message = str(caught.value)
    assert f"before step 1 in {phase}" in message and remedy in message and "Tried to allocate 20.00 GiB" in message
    assert trainer.state.global_step == 0
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
    assert all(weight.grad is None for weight in trainer.model.parameters())


def test_out_of_memory_in_a_step_names_the_step(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["2:1,0,1", "3:1,9,1"]))

    def run_out(*args):
        if trainer.state.global_step == 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    trainer.head.register_forward_pre_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError, match=r"at step 4 in phase 2 .*`contrastive_batch_size`"):
        trainer.train()


def test_other_errors_are_not_changed(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path, memory_trial=True))

    def fail(*args):
        raise RuntimeError("shapes do not match")

    trainer.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.train()
    assert not is_out_of_memory(ValueError("out of memory")) and is_out_of_memory(MemoryError())


def test_resumed_run_tries_only_new_kinds_of_phases(tmp_path, capsys):
    changes = {"loss_phases": ["4:1,0,1", "4:1,9,1"], "save_strategy": "steps", "save_steps": 2, "memory_trial": True}
    tiny_trainer(tiny_args(tmp_path, **changes)).train()
    counts = {}
    for step in (2, 6):
        capsys.readouterr()
        tiny_trainer(tiny_args(tmp_path, **changes)).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        counts[step] = capsys.readouterr().out.count("trying the memory")
    assert counts == {2: 1, 6: 0}


def test_longest_rows_and_pairs_of_lists_and_data_sets():
    rows = [{"input_ids": [1] * length} for length in (3, 9, 5, 9, 1)]
    data = Dataset.from_list(rows)
    assert longest_rows(rows, count=3) == longest_rows(data, count=3) == [1, 3, 2]
    assert longest_rows(data.select([4, 2, 0]), count=2) == [1, 2]
    assert longest_rows(rows, count=9) == [1, 3, 2, 0, 4]
    pairs = [{"anchor": "abc", "positive": "a"}, {"anchor": "a", "positive": "北北"}]
    assert longest_pairs(pairs, count=1) == [1], "six bytes"


def test_memory_of_adam_is_reserved():
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = torch.optim.AdamW([weight])
    assert [tuple(room.shape) for room in reserve_for_optimizer(optimizer)] == [(3, 4)] * 2
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert reserve_for_optimizer(optimizer) == []
    assert reserve_for_optimizer(torch.optim.SGD([weight], lr=0.1)) == []
