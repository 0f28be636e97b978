"""Compare the files of a checkpoint with those that this library would write: remote code, config, sidecars."""

import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import list_repo_files
from transformers.dynamic_module_utils import get_relative_import_files

from examples.checkup.findings import Finding, examine, judged, not_applicable
from examples.checkup.opening import Opened
from modeling_magnet.configuration_magnet import SCHEMA
from modeling_magnet.publishing.sidecars import refusing_contents, sidecar_contents
from modeling_magnet.sources_magnet import ADAPTER_SETTINGS, CONFIG, ModelSource

CODE, SIDECARS, SETTINGS = "remote code", "sidecars", "settings schema"


def file_findings(opened: Opened) -> Iterator[Finding]:
    """Yield rows for settings, code, config and sidecars; a plain decoder has none of them."""
    yield from examine(SETTINGS, lambda: schema_findings(opened))
    if opened.kind == "plain decoder":
        for name in (CODE, CONFIG, SIDECARS):
            yield not_applicable(name, "a plain decoder; saved, it would have them")
        return
    if opened.kind == "adapter":
        for name in (CODE, CONFIG):
            yield not_applicable(name, f"an adapter has none; run this on its base {opened.base}, too")
    else:
        yield from examine(CODE, lambda: code_findings(opened))
        yield from examine(CONFIG, lambda: config_findings(opened.values, opened.own_class))
    yield from examine(SIDECARS, lambda: sidecar_findings(opened))


def schema_findings(opened: Opened) -> list[Finding]:
    """Return whether the stored settings mean what this code takes them to mean."""
    stored = opened.values.get("magnet")
    if opened.kind == "adapter":
        own = opened.source.read_json(ADAPTER_SETTINGS)
        stored = stored if own is None else own["magnet"]
    if stored is None:
        return [not_applicable(SETTINGS, "no settings are stored; the defaults are used")]
    schema = stored.get("schema", SCHEMA)
    told = f"{schema}, as this code's" if schema == SCHEMA else f"{schema}, and this code reads {SCHEMA}"
    if schema != SCHEMA:
        told += "; update the library, or pin the revision that goes with it"
    return [judged(SETTINGS, schema == SCHEMA, told)]


def expected_code(own_class: type[Any]) -> dict[str, Path]:
    """Return the files that a checkpoint of a class is saved with, by name: its module and what that imports."""
    module = str(importlib.import_module(own_class.__module__).__file__)
    return {Path(file).name: Path(file) for file in [module, *get_relative_import_files(module)]}


def code_findings(opened: Opened) -> list[Finding]:
    """Return one row: the code beside the weights, byte for byte, against the installed package's."""
    source, expected = opened.source, expected_code(opened.own_class)
    present = {name for name in _file_names(source) if name.endswith("_magnet.py")}
    if not present and not opened.values.get("auto_map"):
        return [not_applicable(CODE, "it holds none, and opens with the installed package alone")]
    differing = []
    for name in sorted(present & expected.keys()):
        file = source.file(name)
        if file is None or _digest(file) != _digest(expected[name]):
            differing.append(name)
    missing, extra = sorted(expected.keys() - present), sorted(present - expected.keys())
    faults = [
        f"{kind}: {', '.join(names)}"
        for kind, names in (("different", differing), ("missing", missing), ("extra", extra))
        if names
    ]
    told = f"{len(present)} files, the installed package's" if not faults else "; ".join(faults)
    if faults:
        told += ". Save the model anew into an empty directory, or install the version that wrote it"
    return [judged(CODE, not faults, told)]


def config_findings(values: dict[str, Any], own_class: type[Any]) -> list[Finding]:
    """Return one row: the keys by which other libraries know what to do with the checkpoint."""
    stock = next(base for base in own_class.__mro__ if base.__module__.startswith("transformers.models."))
    code = f"{own_class.__module__.rsplit('.', 1)[-1]}.{own_class.__name__}"
    expected = {
        "architectures": [stock.__name__],
        "auto_map": {"AutoModel": code, "AutoModelForCausalLM": code},
        "is_causal": True,
    }
    faults = [
        f"{key} is {values.get(key)!r} instead of {value!r}" if key in values else f"{key} is missing ({value!r})"
        for key, value in expected.items()
        if values.get(key) != value
    ]
    return [judged(CONFIG, not faults, "; ".join(faults) or f"{', '.join(expected)} as the library writes them")]


def sidecar_findings(opened: Opened) -> list[Finding]:
    """Compare the files of sentence-transformers with those that the library writes for this model."""
    if is_refused_as_embedder(opened):
        expected = refusing_contents()
    else:
        tokenizer = opened.model._tokenizer_source.find()
        expected = sidecar_contents(
            hidden_size=opened.model.config.hidden_size,
            settings=opened.model.magnet_settings,
            has_bos=tokenizer is not None and tokenizer.bos_token_id is not None,
            pad_token=None if tokenizer is None else tokenizer.pad_token or tokenizer.eos_token,
        )
    stored = {name: _read(opened.source, name) for name in expected}
    if opened.kind == "adapter" and all(content is None for content in stored.values()):
        return [not_applicable(SIDECARS, "an adapter of peft's own making")]
    missing = [name for name, content in stored.items() if content is None]
    differing = [name for name, content in stored.items() if content is not None and content != expected[name]]
    faults = [
        f"{kind}: {', '.join(names)}" for kind, names in (("missing", missing), ("different", differing)) if names
    ]
    return [judged(SIDECARS, not faults, "; ".join(faults) or f"{len(expected)} files as the library writes them")]


def is_refused_as_embedder(opened: Opened) -> bool:
    """Return whether this is an adapter over a plain decoder, which sentence-transformers would read causally."""
    return opened.kind == "adapter" and "is_causal" not in opened.values


def _read(source: ModelSource, name: str) -> Any:
    """Return the content of a JSON file, whatever it holds; `None` where there is none."""
    file = source.file(name)
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))


def _file_names(source: ModelSource) -> set[str]:
    """Return the files at the top of a directory, or of a repository."""
    if source.directory is not None:
        return {file.name for file in source.directory.iterdir()}
    folder = str(source.arguments.get("subfolder") or "")
    prefix = f"{folder}/" if folder else ""
    try:
        names = list_repo_files(source.path, revision=source.arguments.get("revision"))
    except Exception:  # whatever keeps the Hub out of reach: those that were fetched before
        config = source.file(CONFIG)
        return set() if config is None else {file.name for file in config.parent.iterdir()}
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


__all__ = ["file_findings", "is_refused_as_embedder"]
