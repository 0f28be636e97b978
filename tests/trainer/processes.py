"""Run the tiny trainer in subprocesses: several that train together, or one that is killed."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from transformers import TrainerCallback

from modeling_magnet import losses_magnet
from trainer.distributed import gather_weight
from trainer.lora import LoraArguments, apply_lora

from .tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_trainer

FULL = LoraArguments(lora_r=0)

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])  # one import of torch and transformers for all processes


class KillAt(TrainerCallback):
    """Kill the process at the end of a step, before that step's checkpoint."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class KeepGradients(TrainerCallback):
    """Copy the gradients of every step before the optimizer sees them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        self.steps.append({name: gather_weight(gradient).clone() for name, gradient in gradients.items()})


def train_once(
    report: str, output_dir: str, lora: LoraArguments, resume: bool, kill_at: int | None, changes: dict[str, Any]
) -> None:
    """Train, evaluate if there is an evaluation strategy, and write the results to a file."""
    # As where a user trains on Linux. Workers of a loader that the fork server starts would outlive a killed trainer,
    # which is not their parent, and keep the server.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    torch.manual_seed(7)
    model = apply_lora(tiny_model(), lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # fresh adapters do nothing; these do
            torch.nn.init.normal_(weight, std=0.1)
    keep = KeepGradients()
    trainer = tiny_trainer(
        tiny_args(output_dir, **changes),
        model=model,
        eval_dataset=tiny_rows(7, seed=3),
        eval_pair_dataset=tiny_pairs(15),
        callbacks=[keep, KillAt(kill_at)],
    )
    trainer.train(resume_from_checkpoint=resume)
    metrics = trainer.evaluate()
    weights = trainer.gather_weights()
    if trainer.is_world_process_zero():
        torch.save(
            {
                "gradients": keep.steps,
                "logs": [log for log in trainer.state.log_history if "loss" in log],
                "metrics": metrics,
                "weights": weights,
                "rng": torch.get_rng_state(),
                "distributed_type": trainer.accelerator.distributed_type,
                "parts": sum(weight.numel() == 0 for weight in trainer.model.parameters()),
            },
            report,
        )


def run_together(
    num_processes: int,
    *,
    directory: Path,
    lora: LoraArguments = FULL,
    resume: bool = False,
    kill_at: int | None = None,
    config: Path | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Train in several processes over gloo, and return the report of the first; nothing if they were killed.

    With a configuration of accelerate in the environment that `accelerate launch` makes of it.
    """
    report = directory / f"report-{num_processes}.pt"
    arguments = (str(report), str(directory / "run"), lora, resume, kill_at, {"ddp_backend": "gloo", **changes})
    exits = call_together(num_processes, train_once, arguments, config=config)
    if kill_at is not None:
        assert -signal.SIGKILL in exits
        return {}
    assert exits == [0] * num_processes
    return torch.load(report, weights_only=False)


def call_together(
    num_processes: int, function: Callable[..., Any], arguments: tuple[Any, ...], *, config: Path | None = None
) -> list[int | None]:
    """Call a function in several processes of one group, and return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        CONTEXT.Process(target=_join, args=(rank, num_processes, port, config, function, arguments))
        for rank in range(num_processes)
    ]
    _wait_for(processes)
    return [process.exitcode for process in processes]


def run_alone(
    *, directory: Path, lora: LoraArguments = FULL, resume: bool = False, kill_at: int | None = None, **changes: Any
) -> dict[str, Any]:
    """Train in one process, and return its report; nothing if it was killed."""
    report = directory / "report.pt"
    process = CONTEXT.Process(
        target=train_once, args=(str(report), str(directory / "run"), lora, resume, kill_at, changes)
    )
    _wait_for([process])
    if kill_at is not None:
        assert process.exitcode == -signal.SIGKILL
        return {}
    assert process.exitcode == 0
    return torch.load(report, weights_only=False)


def launch_environment(config: Path) -> dict[str, str]:
    """Return the environment that `accelerate launch` sets for a configuration, in float32."""
    arguments = launch_command_parser().parse_args(["--config_file", str(config), "script.py"])
    arguments, defaults, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        environment = {**prepare_deepspeed_cmd_env(arguments)[1], "DS_ACCELERATOR": "cpu"}
    else:
        environment = prepare_multi_gpu_env(arguments)
    return {**environment, "ACCELERATE_MIXED_PRECISION": "no"}


def _shard_on_cpus() -> None:
    """Let accelerate shard on CPUs too: it only does so on GPUs, but gloo supports it.

    With chunks of four labels, of which the processes then have different numbers; and small weights in parts, too.
    """
    DeepSpeedPlugin.__post_init__ = _with_small_parts(DeepSpeedPlugin.__post_init__)
    losses_magnet._CPU_ROUND, losses_magnet._CPU_BYTES = 4, 1
    make = AcceleratorState.__init__

    def make_sharding(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        make(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = make_sharding


def _with_small_parts(prepare: Callable[..., None]) -> Callable[..., None]:
    """Make DeepSpeed shard small weights, too; by default it keeps those below 100,000 elements whole."""

    def prepare_small(self: DeepSpeedPlugin, *args: Any, **kwargs: Any) -> None:
        prepare(self, *args, **kwargs)
        self.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    return prepare_small


def _join(
    rank: int,
    num_processes: int,
    port: int,
    config: Path | None,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """Join a group of processes and call a function."""
    if config is not None:
        os.environ |= launch_environment(config)
        _shard_on_cpus()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    function(*arguments)
    torch.distributed.destroy_process_group()


def _wait_for(processes: list[Any]) -> None:
    """Start processes, and kill them all if they hang."""
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=180)
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
