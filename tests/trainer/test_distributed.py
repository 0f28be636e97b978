"""Two processes with half the batch each equal one process with the whole batch."""

from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from trainer.distributed import configure_sharding
from trainer.lora import LoraArguments

from .processes import FULL, launch_environment, run_alone, run_together
from .tiny import tiny_args, tiny_trainer

# Small steps of plain gradient descent: Adam would turn the last bits of a gradient into steps of full size.
COMMON = {"max_grad_norm": 0, "optim": "sgd", "learning_rate": 1e-3}
CONFIGS = Path(__file__).resolve().parents[2] / "examples/configs/accelerate"
FSDP2 = CONFIGS / "fsdp2.yaml"
ZERO = [CONFIGS / "deepspeed_zero2.yaml", CONFIGS / "deepspeed_zero3.yaml"]
LORA = LoraArguments(lora_r=2, lora_alpha=2)
JOINT = {**COMMON, "loss_phases": ["4:1,0,1"]}
CONTRASTIVE = {**COMMON, "temperature": 0.5, "loss_phases": ["1:1,0,1", "3:1,9,1", "1:0,1,0"]}
CACHED = {"contrastive_mini_batch_tokens": 24, "contrastive_recompute": True}


def run_one(directory, **changes):
    return run_alone(directory=directory, **{"per_device_train_batch_size": 4, "contrastive_batch_size": 4, **changes})


def run_two(directory, **changes):
    """Run two processes with half of the batch each."""
    halves = {"per_device_train_batch_size": 2, "contrastive_batch_size": 2}
    return run_together(2, directory=directory, **{**halves, **changes})


def assert_a_killed_run_goes_on(directory, *, save_steps, **changes):
    """Check that two processes killed one step after a checkpoint end with the bits of an uninterrupted run."""
    whole, killed = directory / "whole", directory / "killed"
    whole.mkdir()
    killed.mkdir()
    saving = {"save_strategy": "steps", "save_steps": save_steps}
    expected = run_two(whole, **saving, **changes)
    run_two(killed, kill_at=save_steps + 1, **saving, **changes)
    actual = run_two(killed, resume=True, **changes)
    for name, weight in expected["weights"].items():
        assert torch.equal(actual["weights"][name], weight), name


def assert_same_training(two, one):
    assert len(two["gradients"]) == len(one["gradients"]) > 0
    for step, (actual, expected) in enumerate(zip(two["gradients"], one["gradients"], strict=True)):
        assert actual.keys() == expected.keys()
        for name in actual:
            tolerance = 1e-5 * max(1.0, expected[name].abs().max().item())
            assert (actual[name] - expected[name]).abs().max().item() <= tolerance, (step, name)
    assert_same_losses(two, one)


def assert_same_losses(two, one):
    for actual, expected in zip(two["logs"], one["logs"], strict=True):
        names = {name for name in expected if name.startswith("loss")}
        assert names == {name for name in actual if name.startswith("loss")}
        for name in names:
            assert actual[name] == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"gradient_accumulation_steps": 2}, id="accumulated"),
        pytest.param({}, id="labels", marks=pytest.mark.long),
        pytest.param({"losses_as_printed": True}, id="equations", marks=pytest.mark.long),
    ],
)
def test_joint_training_in_two_processes_equals_one_with_the_same_global_batch(tmp_path, changes):
    assert_same_training(run_two(tmp_path, **JOINT, **changes), run_one(tmp_path, **JOINT, **changes))


@pytest.mark.parametrize(
    ("as_printed", "lora"),
    [
        pytest.param(False, LORA, id="cosine-lora"),
        pytest.param(True, FULL, id="dot-full", marks=pytest.mark.long),
        pytest.param(False, FULL, id="cosine-full", marks=pytest.mark.long),
        pytest.param(True, LORA, id="dot-lora", marks=pytest.mark.long),
    ],
)
def test_contrastive_training_in_two_processes_equals_one_with_the_same_global_batch(tmp_path, lora, as_printed):
    changes = {**CONTRASTIVE, "lora": lora, "losses_as_printed": as_printed}
    one = run_one(tmp_path, **changes)
    assert_same_training(run_two(tmp_path, **changes), one)
    head = {name: grad for name, grad in one["gradients"][2].items() if "sscl_head" in name}
    assert len(head) == 2 and all(grad.abs().max() > 0 for grad in head.values())


@pytest.mark.parametrize(
    ("config", "lora", "more"),
    [
        pytest.param(None, FULL, {"activation_checkpointing": True}, id="checkpointed", marks=pytest.mark.long),
        pytest.param(None, FULL, CACHED, id="cached", marks=pytest.mark.long),
        pytest.param(FSDP2, LORA, {}, id="fsdp-lora", marks=pytest.mark.long),
        pytest.param(FSDP2, LORA, CACHED, id="fsdp-lora-cached", marks=pytest.mark.long),
        pytest.param(FSDP2, FULL, {}, id="fsdp-full", marks=pytest.mark.nightly),
        pytest.param(FSDP2, FULL, CACHED, id="fsdp-full-cached", marks=pytest.mark.nightly),
    ],
)
def test_options_and_sharding_in_two_processes_equal_a_plain_process(tmp_path, config, lora, more):
    changes = {**CONTRASTIVE, "lora": lora}
    assert_same_training(run_two(tmp_path, config=config, **more, **changes), run_one(tmp_path, **changes))


@pytest.mark.long
def test_evaluation_in_two_processes_equals_one(tmp_path):
    # Seven rows and fifteen pairs: neither fills the batches of two processes.
    changes = {**CONTRASTIVE, "learning_rate": 0.0, "contrastive_batch_size": 4, "per_device_eval_batch_size": 2}
    one = run_alone(directory=tmp_path, **changes)
    two = run_together(2, directory=tmp_path, **changes)
    for name, expected in one["metrics"].items():
        if not name.endswith(("runtime", "per_second", "preparation_time", "epoch")):
            assert two["metrics"][name] == pytest.approx(expected, rel=1e-5), name


@pytest.mark.long
def test_two_processes_killed_inside_an_epoch_resume_bit_for_bit(tmp_path):
    # The parent does not set the epoch of a sampler wrapped for sharding and skipping; step 9 is inside epoch 1.
    assert_a_killed_run_goes_on(tmp_path, save_steps=9, loss_phases=["7:1,0,1", "5:1,9,1"])


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda config: config.stem)
def test_accelerate_configurations_match_their_names(config):
    environment = launch_environment(config)
    assert environment.get("FSDP_VERSION") == ("2" if config.stem == "fsdp2" else None)
    stages = {"deepspeed_zero2": "2", "deepspeed_zero3": "3"}
    assert environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == stages.get(config.stem)


def test_fsdp1_raises():
    with pytest.raises(ValueError, match=r"`fsdp_version` is 1.*fsdp2\.yaml"):
        configure_sharding(FullyShardedDataParallelPlugin(fsdp_version=1))
    configure_sharding(FullyShardedDataParallelPlugin(fsdp_version=2))
    configure_sharding(None)


def test_view_dropout_with_activation_checkpointing_raises():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, activation_checkpointing=True)
    configure_sharding(plugin)
    with pytest.raises(ValueError, match="`view_dropout` is 0.3.*`fsdp_activation"):
        configure_sharding(plugin, view_dropout=0.3)


def test_fsdp_losses_in_half_precision_stay_in_float32(tmp_path, monkeypatch):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.output_dtype == torch.bfloat16, "so accelerate has it"
    monkeypatch.setattr(AcceleratorState, "fsdp_plugin", plugin, raising=False)
    tiny_trainer(tiny_args(tmp_path))
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.output_dtype) == (torch.bfloat16, None)


@pytest.mark.parametrize(
    "lora",
    [pytest.param(FULL, id="full", marks=pytest.mark.nightly), pytest.param(LORA, id="lora", marks=pytest.mark.long)],
)
def test_two_killed_fsdp_processes_resume_bit_for_bit(tmp_path, lora):
    phases = ["3:1,0,1", "4:1,9,1"]
    assert_a_killed_run_goes_on(tmp_path, save_steps=5, loss_phases=phases, lora=lora, config=FSDP2)


@pytest.mark.parametrize(
    ("config", "lora", "more"),
    [
        pytest.param(ZERO[0], LORA, CACHED, id="zero2-lora-cached", marks=pytest.mark.nightly),
        pytest.param(ZERO[1], LORA, {}, id="zero3-lora", marks=pytest.mark.long),
        pytest.param(ZERO[1], FULL, CACHED, id="zero3-full-cached", marks=pytest.mark.nightly),
    ],
)
def test_two_deepspeed_processes_equal_one_process(tmp_path, config, lora, more):
    changes = {**CONTRASTIVE, "lora": lora}
    one = run_one(tmp_path, **changes)
    two = run_two(tmp_path, config=config, **more, **changes)
    assert two["distributed_type"] == DistributedType.DEEPSPEED
    assert bool(two["parts"]) == (config == ZERO[1]), "between the steps no process has a weight of the third stage"
    assert not list(tmp_path.rglob("sscl_head.safetensors")), "it is part of DeepSpeed's own files"
    assert_same_losses(two, one)
    # It steps within the backward pass and keeps no gradient: steps of plain descent say what they were.
    assert two["weights"].keys() == one["weights"].keys()
    for name, weight in one["weights"].items():
        assert (two["weights"][name] - weight).abs().max() <= 2e-7 * max(1.0, weight.abs().max().item()), name
    for name, expected in one["metrics"].items():
        # Half as many pairs in a batch are other negatives, of which the last phase's loss is made.
        other = ("eval_loss", "loss_sscl", "runtime", "per_second", "preparation_time", "epoch")
        if not name.endswith(other):
            assert two["metrics"][name] == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize(
    ("config", "lora"),
    [
        pytest.param(ZERO[0], FULL, id="zero2-full", marks=pytest.mark.nightly),
        pytest.param(ZERO[1], LORA, id="zero3-lora", marks=pytest.mark.nightly),
    ],
)
def test_two_killed_deepspeed_processes_resume_bit_for_bit(tmp_path, config, lora):
    phases = ["3:1,0,1", "4:1,9,1"]
    assert_a_killed_run_goes_on(tmp_path, save_steps=5, loss_phases=phases, lora=lora, config=config)


@pytest.mark.long
def test_deepspeed_trains_in_half_precision(tmp_path):
    changes = {**CONTRASTIVE, "lora": LORA, "bf16": True}
    one = run_one(tmp_path, **changes)
    two = run_two(tmp_path, config=ZERO[1], **changes)
    assert {weight.dtype for weight in two["weights"].values()} == {torch.bfloat16}, "so the configuration says"
    for actual, expected in zip(two["logs"], one["logs"], strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], rel=0.02)
