"""Resuming killed runs bit for bit, and skipping incomplete checkpoints."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from trainer.checkpoints import checkpoint_to_resume, last_complete_checkpoint, remove_old_checkpoints
from trainer.contrastive_head import HEAD_FILE
from trainer.lora import LoraArguments

from .processes import FULL, run_alone
from .tiny import tiny_args, tiny_rows, tiny_trainer

# Six batches in windows of four: two steps in an epoch, the second one short. Checkpoint 3 is inside an epoch,
# checkpoint 6 at the end of one; step 5 is the first with pairs.
RUN = {
    "loss_phases": ["5:1,0,1", "5:1,9,1"],
    "gradient_accumulation_steps": 4,
    "view_dropout": 0.3,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,
}


@pytest.mark.parametrize(
    "lora",
    [
        pytest.param(FULL, id="full", marks=pytest.mark.nightly),
        pytest.param(LoraArguments(lora_r=2, lora_dropout=0.1), id="lora", marks=pytest.mark.long),
    ],
)
def test_killed_run_resumes_bit_for_bit(tmp_path, lora):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = run_alone(directory=whole, lora=lora, **RUN)

    workers = {"dataloader_num_workers": 2}  # which make no difference
    run_alone(directory=killed, lora=lora, kill_at=4, **RUN, **workers)
    assert last_complete_checkpoint(killed / "run").name == "checkpoint-3"
    run_alone(directory=killed, lora=lora, resume=True, kill_at=8, **RUN, **workers)
    assert last_complete_checkpoint(killed / "run").name == "checkpoint-6"
    actual = run_alone(directory=killed, lora=lora, resume=True, **RUN)

    assert actual["weights"].keys() == expected["weights"].keys()
    assert any("sscl_head" in name for name in expected["weights"])
    for name, weight in expected["weights"].items():
        assert torch.equal(actual["weights"][name], weight), name
    assert torch.equal(actual["rng"], expected["rng"])
    assert [log["loss"] for log in actual["logs"]] == [log["loss"] for log in expected["logs"]]
    for name in (HEAD_FILE, "adapter_model.safetensors" if lora.use_lora else "model.safetensors"):
        files = [folder / "run" / "checkpoint-10" / name for folder in (whole, killed)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("no file", ValueError, f"checkpoint-6 has no {HEAD_FILE}"),
        ("missing", RuntimeError, "linear.bias"),
        ("surplus", RuntimeError, "more"),
        ("shape", RuntimeError, "size mismatch"),
    ],
)
def test_resuming_with_another_head_raises(tmp_path, change, error, message):
    tiny_trainer(tiny_args(tmp_path, save_strategy="steps", save_steps=6)).train()
    file = tmp_path / "checkpoint-6" / HEAD_FILE
    weights = load_file(file)
    file.unlink()
    if change == "missing":
        del weights["linear.bias"]
    elif change == "surplus":
        weights["more"] = weights["linear.bias"].clone()
    elif change == "shape":
        weights["linear.bias"] = weights["linear.bias"][:1].clone()
    if change != "no file":
        save_file(weights, file)
    with pytest.raises(error, match=message):
        tiny_trainer(tiny_args(tmp_path)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_incomplete_checkpoint_is_skipped(tmp_path):
    tiny_trainer(tiny_args(tmp_path, save_strategy="steps", save_steps=3)).train()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-8"
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text('{"epoch": 1.')
    (tmp_path / "checkpoint-6" / "rng_state.pth").unlink()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-3"
    assert last_complete_checkpoint(tmp_path, num_processes=2) is None
    shutil.rmtree(tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match="no complete checkpoint"):
        tiny_trainer(tiny_args(tmp_path)).train(resume_from_checkpoint=True)


def test_checkpoint_is_incomplete_while_it_is_overwritten(tmp_path, monkeypatch):
    tiny_trainer(tiny_args(tmp_path, save_strategy="steps", save_steps=4)).train()
    trainer = tiny_trainer(tiny_args(tmp_path, save_strategy="steps", save_steps=4))

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-8"
    shutil.rmtree(tmp_path / "checkpoint-8")
    assert last_complete_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("there", "step", "limit", "best", "left"),
    [
        ([2, 4, 6], 6, 2, None, [4, 6]),
        ([2, 4, 6], 6, 1, 2, [2, 6]),
        ([2, 4, 6], 6, 2, 2, [2, 6]),
        ([2, 4, 8, 10], 4, 2, None, [2, 4]),  # resumed at 2, after an earlier run had reached 10
        ([9, 10, 100], 100, 2, None, [10, 100]),
        ([2, 4], 4, None, None, [2, 4]),
        ([2, 4], 4, 0, None, [2, 4]),
    ],
)
def test_old_checkpoints_are_removed_by_step_not_by_time(tmp_path, there, step, limit, best, left):
    for time, number in enumerate(reversed(there)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        os.utime(tmp_path / f"checkpoint-{number}", (1e9 * time, 1e9 * time))
    (tmp_path / "checkpoint-of-mine").mkdir()
    remove_old_checkpoints(tmp_path, step=step, limit=limit, best=best and f"elsewhere/checkpoint-{best}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*(f"checkpoint-{number}" for number in left), "checkpoint-of-mine"]
    )


def test_run_keeps_its_newest_checkpoints_with_any_file_times(tmp_path):
    class FromTheFuture(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            future = 4e9 - state.global_step * 1e6
            os.utime(tmp_path / f"checkpoint-{state.global_step}", (future, future))

    args = tiny_args(tmp_path, save_strategy="steps", save_steps=2, save_total_limit=2)
    tiny_trainer(args, callbacks=[FromTheFuture()]).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]
    for checkpoint in tmp_path.glob("checkpoint-*"):
        saved = torch.load(checkpoint / "training_args.bin", weights_only=False)
        assert saved.save_total_limit == args.save_total_limit == 2


@pytest.mark.parametrize(("written_by", "num_processes"), [(1, 2), (2, 1), (4, 2), (2, 4)])
def test_checkpoint_of_another_number_of_processes_raises(tmp_path, monkeypatch, written_by, num_processes):
    for rank in [""] if written_by == 1 else [f"_{rank}" for rank in range(written_by)]:
        (tmp_path / f"rng_state{rank}.pth").touch()
    for number in (written_by, num_processes):
        state = SimpleNamespace(num_processes=number)
        monkeypatch.setattr("trainer.checkpoints.PartialState", lambda state=state: state)
        if number == written_by:
            assert checkpoint_to_resume(str(tmp_path), output_dir="unused") == str(tmp_path)
        else:
            with pytest.raises(ValueError, match=f"by {written_by} processes.*{number}"):
                checkpoint_to_resume(str(tmp_path), output_dir="unused")


def test_resuming_a_finished_run_does_not_train(tmp_path):
    args = tiny_args(tmp_path, save_strategy="steps", save_steps=8)
    first = tiny_trainer(args)
    first.train()
    again = tiny_trainer(args)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8
    for name, weight in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name


def test_main_weights_do_not_include_the_head(tmp_path):
    tiny_trainer(tiny_args(tmp_path, save_strategy="steps", save_steps=8)).train()
    with safe_open(tmp_path / "checkpoint-8" / "model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if "sscl_head" in name]
    with safe_open(tmp_path / "checkpoint-8" / HEAD_FILE, "pt") as weights:
        assert sorted(weights.keys()) == ["linear.bias", "linear.weight"]


def test_best_model_is_loaded_with_its_head(tmp_path):
    args = tiny_args(
        tmp_path,
        loss_phases=["6:1,9,1"],
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss_mntp",
        greater_is_better=True,  # the first is the best
        learning_rate=5e-2,
    )
    trainer = tiny_trainer(args, eval_dataset=tiny_rows(6))
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert torch.equal(trainer.head.linear.weight, load_file(f"{best}/{HEAD_FILE}")["linear.weight"])
