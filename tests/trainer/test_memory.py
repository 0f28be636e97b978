"""A contrastive step holds one graph at a time, and what does not fit is found before the run."""

import platform
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset

from examples.benchmarks.training_memory import PeakBytes
from trainer import MagnetTrainer
from trainer.lora import LoraArguments, apply_lora
from trainer.memory import is_out_of_memory, keep_freed_memory, longest_pairs, longest_rows, room_for_optimizer

from .processes import KeepGradients
from .test_magnet_trainer import assert_same_gradients
from .tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_tokenizer, tiny_trainer

PHASES = ["1:1,0,1", "2:0.5,9,2"]


class OneBackward(MagnetTrainer):
    """A subclass that changes the loss, as users write it."""

    factor = 1.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, parts = super().compute_loss(model, inputs, True, num_items_in_batch)
        return (self.factor * loss, parts) if return_outputs else self.factor * loss


def trained(args, *, trainer_class=MagnetTrainer, lora=False, factor=1.0):
    """Gradients of each step, weights, and logs of a run."""
    keep = KeepGradients()
    torch.manual_seed(1)
    model = apply_lora(tiny_model(), LoraArguments(lora_r=2 if lora else 0, lora_dropout=0.1))
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=tiny_rows(),
        pair_dataset=tiny_pairs(),
        processing_class=tiny_tokenizer(),
        callbacks=[keep],
    )
    trainer.factor = factor
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return keep.steps, {name: weight.clone() for name, weight in model.named_parameters()}, logs


# ---- Two backward passes ----


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 4},  # the second window of an epoch has two micro-batches
        {"contrastive_mini_batch_tokens": 24, "contrastive_recompute": True},
        {"activation_checkpointing": True},
        pytest.param({"torch_compile": True, "torch_compile_backend": "eager"}, marks=pytest.mark.long),
        {"losses_as_printed": True, "contrastive_head": "none"},
    ],
    ids=["plain", "accumulated", "recomputed", "checkpointed", "compiled", "equations"],
)
def test_two_backward_passes_give_the_gradients_of_one(tmp_path, changes, lora):
    args = {"loss_phases": PHASES, "max_grad_norm": 0, "optim": "sgd", **changes}
    two, _, logs = trained(tiny_args(tmp_path, **args), lora=lora)
    one, _, expected_logs = trained(tiny_args(tmp_path, **args), lora=lora, trainer_class=OneBackward)
    assert_same_gradients(two, one)
    for log, expected in zip(logs, expected_logs, strict=True):
        assert {name for name in log if name.startswith("loss")} == {n for n in expected if n.startswith("loss")}
        for name in ("loss", "loss_mntp", "loss_msg"):
            assert log[name] == pytest.approx(expected[name], rel=1e-5)


def test_a_loss_scaler_scales_both_backward_passes(tmp_path, monkeypatch):
    args = {"loss_phases": ["2:1,9,1"], "max_grad_norm": 0, "optim": "sgd", "learning_rate": 0.0}
    expected, _, _ = trained(tiny_args(tmp_path, **args))
    prepare = MagnetTrainer._prepare_for_training

    def with_scaler(self, *given):
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        return prepare(self, *given)

    monkeypatch.setattr(MagnetTrainer, "_prepare_for_training", with_scaler)
    scaled, _, _ = trained(tiny_args(tmp_path, **args))
    assert_same_gradients([{name: grad / 1024 for name, grad in step.items()} for step in scaled], expected)


def test_bfloat16_gives_the_gradients_of_one_backward_pass(tmp_path):
    args = {"loss_phases": PHASES, "max_grad_norm": 0, "optim": "sgd", "bf16": True}
    two, _, _ = trained(tiny_args(tmp_path, **args))
    one, _, _ = trained(tiny_args(tmp_path, **args), trainer_class=OneBackward)
    for step, expected in zip(two, one, strict=True):
        for name in step:
            difference = (step[name] - expected[name]).abs().max().item()
            assert difference <= 2e-2 * max(1e-3, expected[name].abs().max().item()), name


def test_what_a_subclass_does_to_the_loss_reaches_all_of_it_once(tmp_path):
    args = {"loss_phases": ["1:1,9,1"], "max_grad_norm": 0}
    (expected,), _, _ = trained(tiny_args(tmp_path, **args))
    (halved,), _, _ = trained(tiny_args(tmp_path, **args), trainer_class=OneBackward, factor=0.5)
    assert_same_gradients([{name: 2 * grad for name, grad in halved.items()}], [expected])


def test_token_losses_are_back_propagated_before_the_contrastive_forward(tmp_path):
    events = []
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["1:1,9,1"]))
    trainer.model.register_forward_pre_hook(lambda _, args, kwargs: events.append(kwargs["mode"]), with_kwargs=True)
    trainer.model.model.embed_tokens.weight.register_hook(lambda _: events.append("backward"))
    trainer.train()
    assert events == ["infill", "backward", "bidirectional", "backward"]


def test_the_loss_of_a_call_has_all_parts_in_its_graph(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["1:1,9,1"]))
    batch = {**next(iter(trainer.get_train_dataloader())), "pairs": trainer._pair_stream.fetch(0)}
    loss, parts = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert set(parts) == {"mntp", "msg", "sscl"}
    torch.testing.assert_close(loss, parts["mntp"] + parts["msg"] + 9 * parts["sscl"])
    loss.backward()
    whole = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    stepped = trainer.training_step(trainer.model, batch)
    torch.testing.assert_close(stepped, loss.detach())
    assert_same_gradients([{name: p.grad for name, p in trainer.model.named_parameters()}], [whole])


def test_a_contrastive_step_takes_the_memory_of_its_larger_half(tmp_path):
    """Every tensor counted, weights not: the sum of the halves would be about twice as much."""
    peaks = {}
    for name, phase in (("tokens", "1:1,0,1"), ("pairs", "1:0,9,0"), ("both", "1:1,9,1")):
        model = tiny_model(hidden_size=32, intermediate_size=64, num_hidden_layers=4)
        args = tiny_args(tmp_path, loss_phases=[phase], per_device_train_batch_size=12, contrastive_batch_size=18)
        trainer = tiny_trainer(args, model=model, pair_dataset=tiny_pairs())
        batch = next(iter(trainer.get_train_dataloader()))
        if name != "tokens":
            batch["pairs"] = trainer._pair_stream.fetch(0)
        with PeakBytes() as counted:
            trainer.training_step(trainer.model, batch)
        peaks[name] = counted.most
    assert min(peaks["tokens"], peaks["pairs"]) > 0.4 * max(peaks["tokens"], peaks["pairs"])
    gradients = sum(p.numel() * 4 for p in trainer.model.parameters())
    assert peaks["both"] <= 1.15 * max(peaks["tokens"], peaks["pairs"]) + gradients


# ---- The trial ----


@pytest.mark.parametrize(
    "changes",
    [{}, {"view_dropout": 0.3}, {"gradient_accumulation_steps": 2, "bf16": True}],
    ids=["plain", "dropout", "accumulated"],
)
def test_a_run_with_the_trial_has_the_bits_of_one_without(tmp_path, changes, capsys):
    phases = ["3:1,0,1", "3:1,9,1", "2:0,1,0"]
    found = []
    for tries in (True, False):
        args = tiny_args(tmp_path, loss_phases=phases, memory_trial=tries, **changes)
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        run = trained(args, lora=True)
        found.append((*run, torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()))
        told = [line for line in capsys.readouterr().out.splitlines() if "trying the memory" in line]
        assert len(told) == (3 if tries else 0)
    with_trial, without = found
    for step, expected in zip(with_trial[0], without[0], strict=True):
        assert all(torch.equal(step[name], expected[name]) for name in expected) and step.keys() == expected.keys()
    assert all(torch.equal(with_trial[1][name], weight) for name, weight in without[1].items())
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    logs, expected_logs = ([{k: v for k, v in log.items() if k not in timed} for log in run[2]] for run in found)
    assert logs == expected_logs
    assert torch.equal(with_trial[3], without[3]) and with_trial[4:] == without[4:]


def test_the_trial_takes_the_longest_rows_and_pairs_of_each_kind_of_phase(tmp_path, capsys):
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
    prompt = len(trainer._pair_collator()([{"anchor": "", "positive": ""}])["input_ids"][0])
    width = min(24, prompt + 12)
    assert seen[:3] == [("infill", (4, 41)), ("infill", (4, 41)), ("bidirectional", (8, width))]
    assert [mode for mode, _ in seen[3:]] == ["infill", *["infill", "bidirectional"] * 2]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trying")]
    assert told == [
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
def test_running_out_of_memory_is_found_before_the_first_step(tmp_path, mode, phase, remedy):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["3:1,0,1", "3:1,9,1"], memory_trial=True))
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}

    def run_out(_, args, kwargs):
        if kwargs["mode"] == mode:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    trainer.model.register_forward_pre_hook(run_out, with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.train()
    said = str(caught.value)
    assert f"before step 1 in {phase}" in said and remedy in said and "Tried to allocate 20.00 GiB" in said
    assert trainer.state.global_step == 0
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
    assert all(weight.grad is None for weight in trainer.model.parameters())


def test_running_out_of_memory_in_a_step_names_it(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["2:1,0,1", "3:1,9,1"]))

    def run_out(*args):
        if trainer.state.global_step == 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    trainer.head.register_forward_pre_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError, match=r"at step 4 in phase 2 .*`contrastive_batch_size`"):
        trainer.train()


def test_other_errors_stay_what_they_are(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path, memory_trial=True))

    def fail(*args):
        raise RuntimeError("shapes do not match")

    trainer.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.train()
    assert not is_out_of_memory(ValueError("out of memory")) and is_out_of_memory(MemoryError())


def test_a_resumed_run_tries_only_what_it_has_not_begun(tmp_path, capsys):
    changes = {"loss_phases": ["4:1,0,1", "4:1,9,1"], "save_strategy": "steps", "save_steps": 2, "memory_trial": True}
    tiny_trainer(tiny_args(tmp_path, **changes)).train()
    counts = {}
    for step in (2, 6):
        capsys.readouterr()
        tiny_trainer(tiny_args(tmp_path, **changes)).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        counts[step] = capsys.readouterr().out.count("trying the memory")
    assert counts == {2: 1, 6: 0}


def test_the_longest_are_found_in_lists_and_in_data_sets_in_any_order():
    rows = [{"input_ids": [1] * length} for length in (3, 9, 5, 9, 1)]
    data = Dataset.from_list(rows)
    assert longest_rows(rows, count=3) == longest_rows(data, count=3) == [1, 3, 2]
    assert longest_rows(data.select([4, 2, 0]), count=2) == [1, 2]
    assert longest_rows(rows, count=9) == [1, 3, 2, 0, 4]
    pairs = [{"anchor": "abc", "positive": "a"}, {"anchor": "a", "positive": "北北"}]
    assert longest_pairs(pairs, count=1) == [1], "six bytes"


def test_room_is_held_for_what_adam_will_keep():
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = torch.optim.AdamW([weight])
    assert [tuple(room.shape) for room in room_for_optimizer(optimizer)] == [(3, 4)] * 2
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert room_for_optimizer(optimizer) == []
    assert room_for_optimizer(torch.optim.SGD([weight], lr=0.1)) == []


# ---- Freed memory ----

COUNT = """
import resource, sys
from trainer.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import torch
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_large_tensors_made_again_cause_no_page_faults():
    faults = {
        way: int(subprocess.run([sys.executable, "-c", COUNT, way], capture_output=True, check=True, text=True).stdout)
        for way in ("kept", "usual")
    }
    assert faults["kept"] < 0.3 * faults["usual"]  # 64 MiB are 16,384 pages, once instead of four times


@pytest.mark.parametrize("system, library", [("Darwin", "glibc"), ("Linux", "musl")])
def test_other_systems_are_left_alone(monkeypatch, system, library):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.libc_ver", lambda: (library, ""))
    monkeypatch.setattr("ctypes.CDLL", None)
    assert keep_freed_memory() is False
