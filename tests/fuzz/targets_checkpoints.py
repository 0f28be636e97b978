"""Saved models and adapters of which files were changed: what is opened computes, what is not is named."""

import json
import random
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig

from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM
from modeling_magnet.sources_magnet import ModelSource, check_safetensors
from tests.fuzz import inputs
from tests.fuzz.judging import Target, check, naming
from tests.trainer.tiny import tiny_model, tiny_tokenizer


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
    broken = sorted(set(inputs.some(draw, present, 2)))
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
    for name in inputs.some(draw, [name for name in header if name != "__metadata__"], 2):
        entry = header.get(name)
        part, kind = entry if isinstance(entry, dict) else {}, draw.randrange(6)
        if kind == 0:
            part["dtype"] = draw.choice(("F16", "F64", "I64", "BOOL", "F8_E4M3", "X", 3, None))
        elif kind == 1:
            part["shape"] = inputs.changed(draw, part.get("shape", []), chance=0.9)
        elif kind == 2:
            part["shape"] = draw.choice(([0], [-1, 4], [2**62, 2**62], [1] * 100, "4", [1.5]))
        elif kind == 3:
            part["data_offsets"] = draw.choice(([0, 4], [4, 0], [0, 2**63], [-4, 0], [], None, [0, 1, 2]))
        elif kind == 4:
            header[draw.choice((f"{name}.x", "", "\ud800", "lm_head.weight"))] = header.pop(name, {})
        else:
            header[name] = inputs.value(draw, of_json=True)
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


TARGETS = (
    Target(name="header", run=header, weight=30, seeds=200),
    Target(name="sources", run=sources, weight=6, seeds=60),
    Target(name="loading", run=loading, weight=1, seeds=12),
    Target(name="adapting", run=adapting, weight=1, seeds=12),
)
