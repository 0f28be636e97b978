"""Files beside weights: config.json, settings, indexes, headers, adapters, seals, records, plans and recipes."""

import dataclasses
import io
import json
import os
import random
import struct
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig

from examples.adapt_arguments import parse_arguments
from examples.evaluate.records import Record, RecordFile, answered, newest
from examples.evaluate.study_plan import read_plan
from examples.evaluate.training_run import models_by_step, read_report
from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM
from modeling_magnet.configuration_magnet import MagnetSettings
from modeling_magnet.sources_magnet import ModelSource, check_safetensors
from tests.fuzz import inputs
from tests.fuzz.judging import REPOSITORY, Target, check, naming
from tests.trainer.tiny import tiny_model, tiny_tokenizer
from trainer.checkpoints import check_checkpoint, last_complete_checkpoint, seal_checkpoint
from trainer.resumable import append_rows, resume_rows


def settings(draw: random.Random, folder: Path) -> None:
    """The `magnet` of a config.json, as JSON can hold it: settings that say the same again, or an error by name."""
    known = {**MagnetSettings().to_dict(), "mask_token": "_", "adapter_modes": ["infill"]}
    values = inputs.changed(draw, known, chance=draw.choice((0.01, 0.05, 0.3)))
    with naming("here/config.json"):
        made = MagnetSettings.from_dict(values, source="here/config.json")
    check(MagnetSettings.from_dict(made.to_dict()) == made, "settings are not read as they were written")
    check(made.default_prompt_name is None or made.default_prompt_name in made.prompts, "no such prompt")


@cache
def _saved(kind: str) -> Path:
    """A tiny model in a directory, whole, in shards, or as an adapter over it; removed when the process ends."""
    kept = TemporaryDirectory(prefix="magnet-fuzz-")
    _KEPT.append(kept)
    made, place = tiny_model(), Path(kept.name) / kind
    made.tokenizer = tiny_tokenizer()
    if kind == "adapter":
        made = MagnetLlamaForCausalLM.from_pretrained(_saved("whole"))
        made.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2))
    made.save_pretrained(place, **({"max_shard_size": "10KB"} if kind == "sharded" else {}))
    return place


_KEPT: list[TemporaryDirectory[str]] = []


def _copy(draw: random.Random, folder: Path, kind: str, names: tuple[str, ...]) -> list[str]:
    """A saved directory with some of its files changed; returns which."""
    place = folder / kind
    place.mkdir()
    for file in _saved(kind).iterdir():
        if file.suffix != ".py":
            (place / file.name).symlink_to(file)
    present = [name for name in names if (place / name).is_file()]
    broken = sorted(set(inputs.some(draw, present, 2))) or [draw.choice(present)]
    for name in broken:
        file, raw = place / name, (place / name).read_bytes()
        if name.endswith(".json") and draw.random() < 0.8:
            raw = inputs.json_bytes(draw, inputs.changed(draw, json.loads(raw), chance=draw.choice((0.05, 0.2, 0.5))))
        elif name.endswith(".safetensors") and draw.random() < 0.5:
            raw = _other_header(draw, raw)
        else:
            raw = inputs.mutated(draw, raw)
        file.unlink()
        file.write_bytes(raw)
        if draw.random() < 0.05:
            file.unlink()
    return broken


def _other_header(draw: random.Random, raw: bytes) -> bytes:
    """Safetensors whose header tells something else, of the right or of a wrong length."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    for name in inputs.some(draw, names, 2):
        entry = header.get(name)
        entry = entry if isinstance(entry, dict) else {}
        draw.choice(
            (
                lambda: entry.update(dtype=draw.choice(("F16", "F64", "I64", "BOOL", "F8_E4M3", "X", 3, None))),
                lambda: entry.update(shape=inputs.changed(draw, entry.get("shape", []), chance=0.9)),
                lambda: entry.update(shape=draw.choice(([0], [-1, 4], [2**62, 2**62], [1] * 100, "4", [1.5]))),
                lambda: entry.update(
                    data_offsets=draw.choice(([0, 4], [4, 0], [0, 2**63], [-4, 0], [], None, [0, 1, 2]))
                ),
                lambda: header.update(
                    {draw.choice((name + ".x", "", "\ud800", "lm_head.weight")): header.pop(name, {})}
                ),
                lambda: header.update({name: inputs.value(draw, of_json=True)}),
            )
        )()
    told = inputs.json_bytes(draw, header)
    size = draw.choice((len(told), len(told), len(told), length, 0, 2**63, len(told) + 1))
    return struct.pack("<Q", size) + told + raw[8 + length :]


def header(draw: random.Random, folder: Path) -> None:
    """What the check of a safetensors file lets through has the size that its header promises."""
    file = folder / "model.safetensors"
    raw = (_saved("whole") / "model.safetensors").read_bytes()[: draw.choice((10**9, 10**9, 600))]
    file.write_bytes(_other_header(draw, raw) if len(raw) > 600 and draw.random() < 0.7 else inputs.mutated(draw, raw))
    with naming(str(file)):
        check_safetensors(file)


def sources(draw: random.Random, folder: Path) -> None:
    """What can be refused without reading weights: config, index, adapter's config and settings."""
    kind = draw.choice(("whole", "sharded", "adapter"))
    _copy(
        draw,
        folder,
        kind,
        ("config.json", "model.safetensors.index.json", "adapter_config.json", "magnet_adapter.json"),
    )
    place = folder / kind
    source = ModelSource(str(place), {})
    with naming(str(place)) if kind != "adapter" else naming("adapter"):
        base = source.adapter_base()
        source.adapter_settings()
        values = (base or source).config_values()
        source.check_weights()
    check(isinstance(values["model_type"], str), f"a model of type {values['model_type']!r}")


def loading(draw: random.Random, folder: Path) -> None:
    """A directory of which something was changed is opened, and then computes; or the error says what is wrong."""
    kind = draw.choice(("whole", "sharded", "adapter", "adapter"))
    shards = tuple(file.name for file in sorted(_saved(kind).glob("*.safetensors")))
    _copy(
        draw,
        folder,
        kind,
        ("config.json", "model.safetensors.index.json", "adapter_config.json", "magnet_adapter.json", *shards),
    )
    opened = AutoMagnetForCausalLM.from_pretrained(folder / kind)
    with torch.no_grad():
        states = opened.eval()(torch.tensor([[1, 5, 6]]), mode="bidirectional").last_hidden_state
    check(states.shape[:2] == (1, 3), f"states of shape {tuple(states.shape)}")


def adapting(draw: random.Random, folder: Path) -> None:
    """A model that refuses an adapter is as it was."""
    _copy(draw, folder, "adapter", ("adapter_config.json", "magnet_adapter.json", "adapter_model.safetensors"))
    base = _base()
    before = dict(base.config.magnet)
    try:
        base.load_adapter(str(folder / "adapter"))
        base.delete_adapter("default")
    finally:
        left = getattr(base, "peft_config", None)
        if left:
            _base.cache_clear()
        base.config.magnet.update(before)
    check(not left, f"an adapter that was refused is still there: {left}")


@cache
def _base() -> Any:
    """The base of the adapters."""
    return MagnetLlamaForCausalLM.from_pretrained(_saved("whole"))


def seals(draw: random.Random, folder: Path) -> None:
    """A sealed checkpoint is trusted as it is, and not with another byte in it."""
    place = folder / "checkpoint-7"
    (place / "sub").mkdir(parents=True)
    for name in ("trainer_state.json", "rng_state.pth", "sub/weights"):
        (place / name).write_bytes(b'{"global_step": 7}')
    seal_checkpoint(place)
    check(last_complete_checkpoint(folder) == place, "a whole checkpoint is passed over")
    name = draw.choice(("trainer_state.json", "rng_state.pth", "sub/weights", "checksums.json", "checksums.json"))
    raw = (place / name).read_bytes()
    given = (
        inputs.json_bytes(draw, inputs.changed(draw, json.loads(raw)))
        if name.endswith(".json")
        else inputs.mutated(draw, raw)
    )
    (place / name).write_bytes(given)
    (
        folder
        / draw.choice(("checkpoint-", "checkpoint-9", "checkpoint-٣", "checkpoint-" + "9" * 200, "checkpoint-8x"))
    ).mkdir()
    found = last_complete_checkpoint(folder)
    if given != raw and name != "checksums.json":
        check(found is None, f"a checkpoint whose {name} was changed is trusted")
    with naming(str(place)):
        check_checkpoint(place)


def resumable(draw: random.Random, folder: Path) -> None:
    """Rows that were appended are there again, but for a last line that was cut; anything else is refused by name."""
    path, told = folder / "rows.jsonl", {"a": inputs.value(draw, of_json=True), "b": 1}
    rows = [{"text": inputs.unicode_text(draw, 3), "n": n} for n in range(draw.randrange(4))]
    check(resume_rows(path, settings=told) == [], "rows of a new file")
    append_rows(path, rows)
    check(resume_rows(path, settings=told) == rows, "rows are not read as they were written")
    if draw.random() < 0.7:
        path.write_bytes(inputs.mutated(draw, path.read_bytes()))
    if draw.random() < 0.5:
        sidecar = folder / "rows.jsonl.settings.json"
        sidecar.write_bytes(inputs.json_bytes(draw, inputs.changed(draw, json.loads(sidecar.read_bytes()))))
    with naming("rows.jsonl"):
        kept = resume_rows(path, settings=told)
    check(all(isinstance(row, dict) for row in kept), f"rows that are no objects: {kept!r:.200}")


def records(draw: random.Random, folder: Path) -> None:
    """Lines of records are read as they were written; half a line is skipped, and what is no record is named."""
    file = RecordFile(folder, "sts")
    record = Record(
        table="sts", system=inputs.unicode_text(draw, 2), unit="STS12", settings={"a": 1}, model={"name": "m"}
    )
    values = dataclasses.asdict(record)
    for _ in range(draw.randint(1, 3)):
        file.append(record)
    with open(file.path, "ab") as stream:
        stream.write(inputs.json_bytes(draw, inputs.changed(draw, values)).replace(b"\n", b" ") + b"\n")
    if draw.random() < 0.3:
        file.path.write_bytes(inputs.mutated(draw, file.path.read_bytes()))
    file.append(record)
    with naming(str(file.path)):
        found = file.read()
    check(found[-1] == record, "the last record is not read as it was written")
    check(len(newest(found)) >= 1 and len(answered(found)) <= len(found), "cells of records")


PLAN = json.loads((REPOSITORY / "examples/evaluate/study_wiki7m.json").read_text(encoding="utf-8"))


def plans(draw: random.Random, folder: Path) -> None:
    """A plan is read with all its runs below its folder, or all that is wrong is said."""
    file = folder / "plan.json"
    file.write_bytes(inputs.json_bytes(draw, inputs.changed(draw, PLAN, chance=draw.choice((0.02, 0.1, 0.5)))))
    with naming(str(file)):
        plan = read_plan(file, preset=draw.choice(("paper", *PLAN["presets"])), output=folder / "out")
    for place in (*(run.folder for run in plan.runs), *(corpus.file for corpus in plan.corpora)):
        check(
            (folder / "out") in Path(os.path.normpath(place)).parents, f"{str(place)!r} is outside the study's folder"
        )


RECIPES = sorted((REPOSITORY / "examples/configs").glob("*.json"))


def recipes(draw: random.Random, folder: Path) -> None:
    """A recipe of `adapt.py` becomes arguments, or says what is wrong; `argparse` ends with status 2 for options."""
    file, recipe = folder / "recipe.json", json.loads(draw.choice(RECIPES).read_text(encoding="utf-8"))
    fixed = {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "report_to": "none",
        "model_name_or_path": "m",
        "train_texts": ["t"],
    }
    own = {name: value for name, value in recipe.items() if name not in fixed}
    values = inputs.changed(draw, own, chance=draw.choice((0.02, 0.1, 0.3)))
    file.write_bytes(inputs.json_bytes(draw, {**values, **fixed} if isinstance(values, dict) else values))
    try:
        with redirect_stderr(io.StringIO()):
            _, _, training = parse_arguments([str(file)])
    except SystemExit as error:
        check(error.code == 2, f"it ended with {error.code}")
        return
    check(training.max_steps == sum(phase.steps for phase in training.phases), "steps")


def reports(draw: random.Random, folder: Path) -> None:
    """The report and the states of a run, as `adapt.py` and transformers write them."""
    report = {"arguments": {"a": 1}, "log_history": [{"step": 1, "loss": 2.0}, {"step": 4}]}
    (folder / "adapt.json").write_bytes(inputs.json_bytes(draw, inputs.changed(draw, report)))
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "trainer_state.json").write_bytes(
        inputs.json_bytes(draw, inputs.changed(draw, {"global_step": 3}))
    )
    with naming(str(folder)):
        steps = models_by_step(folder)
        read_report(folder)
    check(list(steps) == sorted(steps), "steps in order")


TARGETS = (
    Target(name="settings", run=settings, weight=150, seeds=400),
    Target(name="header", run=header, weight=30, seeds=200),
    Target(name="sources", run=sources, weight=6, seeds=60),
    Target(name="loading", run=loading, weight=0.3, seeds=6),
    Target(name="adapting", run=adapting, weight=0.3, seeds=6),
    Target(name="seals", run=seals, weight=10, seeds=60),
    Target(name="resumable", run=resumable, weight=12, seeds=100),
    Target(name="records", run=records, weight=8, seeds=80),
    Target(name="plans", run=plans, weight=8, seeds=60),
    Target(name="recipes", run=recipes, weight=1, seeds=10, allowed=("hf_argparser.py",)),
    Target(name="reports", run=reports, weight=20, seeds=100),
)
