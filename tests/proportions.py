"""Measure the size and coupling of the code, and print the figures beside their limits.

    python -m tests.proportions

Lines and files are counted on disk and in a saved checkpoint; files that one public call passes through, and switches
between them, by a trace of that call on a tiny model. A switch is a call of a function of ours that is in another file
than the function of ours called before it.
"""

import ast
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainingArguments

from examples.adapt import AdaptArguments
from trainer import LoraArguments, MagnetTrainer, MagnetTrainingArguments

from .golden import GAPS, TEXTS, tiny_model

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("modeling_magnet", "trainer", "examples", "tests")
LONGEST_FUNCTION = 60


class Trace(NamedTuple):
    """Record what a call passed through."""

    files: int
    functions: int
    switches: int


def trace(call: Callable[[], Any]) -> Trace:
    """Run a call and record our files and functions that it enters, and the switches between files."""
    ours = tuple(str(ROOT / name) for name in PACKAGES[:2])
    entered: list[tuple[str, str]] = []

    def watch(frame: Any, event: str, argument: Any) -> None:
        file, name = frame.f_code.co_filename, frame.f_code.co_qualname
        if event == "call" and file.startswith(ours) and not name.rpartition(".")[2].startswith("<"):
            entered.append((file, name))

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    files = [file for file, _ in entered]
    return Trace(len(set(files)), len(set(entered)), sum(one != other for one, other in pairwise(files)))


def lines_of(folder: Path) -> tuple[int, int]:
    """Count the Python files under a folder, and their lines."""
    files = [file for file in folder.rglob("*.py") if ".venv" not in file.parts]
    return len(files), sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def remote_code() -> tuple[int, int]:
    """Count the Python files of a checkpoint, and their lines."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_model("llama").save_pretrained(folder)
        return lines_of(Path(folder))


def classes_before_llama() -> int:
    """Count our classes before the family's own in the method resolution order."""
    order = type(tiny_model("llama")).__mro__[1:]
    return sum(each.__module__.startswith("modeling_magnet") for each in order)


def traces() -> dict[str, Trace]:
    """Trace one call of each kind, after one that fills the caches."""
    model = tiny_model("llama")

    def infill() -> None:
        model.infill(*GAPS[0], max_new_tokens=3, do_sample=False)

    infill()
    found = {"infill of one gap": trace(infill)}
    with tempfile.TemporaryDirectory() as folder:
        found["training step"] = trace(_training_step(folder))
    return found


def _training_step(folder: str) -> Callable[[], Any]:
    model = tiny_model("llama").train()
    options: dict[str, Any] = {"loss_phases": ["4:1,9,1"], "report_to": "none", "use_cpu": True}
    options |= {"per_device_train_batch_size": 2, "contrastive_batch_size": 2}
    options |= {"min_span_tokens": 2, "max_span_tokens": 4}
    trainer = MagnetTrainer(
        model=model,
        args=MagnetTrainingArguments(folder, **options),
        train_dataset=[{"input_ids": [1, *range(10, 40)]}] * 4,
        pair_dataset=[{"anchor": TEXTS[0], "positive": TEXTS[1]}] * 4,
        processing_class=model.tokenizer,
    )
    trainer.is_in_train, trainer.current_gradient_accumulation_steps = True, 1  # as in `train`
    feed = iter(trainer.get_train_dataloader())

    def step() -> None:
        (batch,), counts = trainer.get_batch_samples(feed, 1, trainer.args.device)
        trainer.training_step(trainer.model, batch, counts)

    step()
    return step


def raw_settings() -> int:
    """Count reads and writes of the nested settings outside the file that defines them."""
    found = 0
    for folder in PACKAGES[:3]:
        for file in (ROOT / folder).rglob("*.py"):
            if file.name != "configuration_magnet.py":
                text = file.read_text(encoding="utf-8")
                found += text.count("config.magnet[") + text.count("config.magnet.") + text.count("config.magnet =")
                found += text.count('config, "magnet"')
    return found


def own_options() -> int:
    """List the options of `adapt.py` that are not transformers' own."""
    classes = (AdaptArguments, LoraArguments, MagnetTrainingArguments)
    own = {field.name for each in classes for field in dataclasses.fields(each)}
    return len(own - {field.name for field in dataclasses.fields(TrainingArguments)})


def long_functions() -> list[str]:
    """List functions of more than 60 lines, with their file."""
    found = []
    for folder in PACKAGES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert node.end_lineno is not None
                    if node.end_lineno - node.lineno >= LONGEST_FUNCTION:
                        found.append(f"{file.relative_to(ROOT)}: {node.name}")
    return found


def table() -> list[tuple[str, int, int]]:
    """Return the name of each row, its count and its limit."""
    files, lines = remote_code()
    rows = [("remote code: files", files, 20), ("remote code: lines", lines, 4600)]
    limits = {"modeling_magnet": 6000, "trainer": 4500, "examples": 13_000, "tests": 24_000}
    rows += [(f"{name}: lines", lines_of(ROOT / name)[1], limit) for name, limit in limits.items()]
    rows += [("classes of ours before Llama's", classes_before_llama(), 3)]
    traced = traces()
    for name, most_files, most_switches in (("infill of one gap", 12, 60), ("training step", 13, 50)):
        rows += [(f"{name}: files", traced[name].files, most_files)]
        rows += [(f"{name}: switches", traced[name].switches, most_switches)]
    rows += [("own options of adapt.py", own_options(), 45), ("raw uses of the settings", raw_settings(), 0)]
    return [*rows, (f"functions above {LONGEST_FUNCTION} lines", len(long_functions()), 0)]


def main() -> None:
    """Print the table."""
    for name, count, limit in table():
        print(f"{name:36s}{count:8,}{limit:10,}{'' if count <= limit else '  above'}")


if __name__ == "__main__":
    main()
