"""Saves that are killed (SIGKILL): a program that tests start, for only a process without threads may be forked.

For each kill: the old checkpoint is put in place, a child begins to save the new one over it and is killed, and what
is left is opened. Writes one word a line: `old`, `new`, `refused`, or what went wrong.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from modeling_magnet import MagnetLlamaForCausalLM
from tests.adapters import add_lora

IDS = torch.tensor([[1, 40, 41, 42]])
# What a child does to files; each is a moment to be killed at.
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def fingerprint(model: Any) -> list[np.ndarray]:
    """Return what distinguishes two models: weights in use, settings, tokenizer."""
    with torch.no_grad():
        logits = model(IDS).logits.numpy()
    return [logits, model.encode(["The cat"]), np.frombuffer(repr(model.magnet_settings).encode(), dtype=np.uint8)]


def make_models(folder: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Make three models whose saves have different files, each with its arguments."""
    plain = MagnetLlamaForCausalLM.from_pretrained(folder)
    sharded = MagnetLlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        sharded.lm_head.weight.mul_(-1)
        sharded.model.embed_tokens.weight.mul_(2)
    sharded.config.magnet["default_prompt_name"] = None
    adapted = add_lora(MagnetLlamaForCausalLM.from_pretrained(folder))
    return {"plain": (plain, {}), "sharded": (sharded, {"max_shard_size": "20KB"}), "adapter": (adapted, {})}


def killed_save(save: Any, *, after_seconds: float | None = None, after_events: int | None = None) -> int:
    """Save in a child that is killed at a moment; returns the file operations it got to (or had, if it finished)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def watch(event: str, args: tuple[Any, ...]) -> None:
            nonlocal count
            if event in EVENTS:
                if count == after_events:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.addaudithook(watch)
        try:
            save()
            os.write(writing, str(count).encode())
        finally:
            os._exit(0)
    os.close(writing)
    if after_seconds is not None:
        time.sleep(after_seconds)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading) as stream:
        return int(stream.read() or -1)


def main(folder: str, old: str, new: str, how: str, kills: str) -> None:
    """Save one kind over another, and kill the save `kills` times."""
    disable_progress_bar()  # its lock is shared with children: one that is killed would keep it
    models = make_models(Path(folder))
    prints = {name: fingerprint(model) for name, (model, _) in models.items()}
    target = Path(folder).parent / "target"

    models[old][0].save_pretrained(target.with_name("old"), **models[old][1])

    def put_old() -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(target.with_name("old"), target)

    def save_new() -> None:
        models[new][0].save_pretrained(target, **models[new][1])

    put_old()
    started = time.perf_counter()
    events = killed_save(save_new)
    seconds = time.perf_counter() - started
    moments = random.Random(0)
    for number in range(int(kills)):
        put_old()
        if how == "seconds":
            killed_save(save_new, after_seconds=moments.uniform(0, seconds))
        else:
            killed_save(save_new, after_events=events * number // int(kills))
        print(describe(target, prints, old=old, new=new), flush=True)
    save_new()
    left = [file.name for file in [*target.parent.iterdir(), *target.iterdir()] if "saving" in file.name]
    print("clean" if not left else f"left behind: {left}")


def describe(target: Path, prints: dict[str, list[np.ndarray]], *, old: str, new: str) -> str:
    """Return what the directory holds after a kill."""
    try:
        model = MagnetLlamaForCausalLM.from_pretrained(target)
    except ValueError as error:
        return "refused" if "has no config.json" in str(error) and str(target) in str(error) else f"error: {error}"
    found = fingerprint(model)
    for name, word in ((old, "old"), (new, "new")):
        if all(np.array_equal(one, other) for one, other in zip(found, prints[name], strict=True)):
            return word
    return "mixture"


if __name__ == "__main__":
    main(*sys.argv[1:])
