"""Check the tokenizer, and compare remote code, config and sidecar files with those that this library would write."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import list_repo_files
from transformers.dynamic_module_utils import get_relative_import_files

from examples.checkup.findings import Finding, examine, judged, not_applicable
from examples.checkup.opening import Opened
from modeling_magnet.publishing.sidecars import refusing_contents, sidecar_contents
from modeling_magnet.sources_magnet import CONFIG, ModelSource

CODE, SIDECARS = "remote code", "sidecars"


def tokenizer_findings(model: Any) -> Iterator[Finding]:
    """Check that the model embeds all tokens, and that name and id of the mask token denote the same real token."""
    tokenizer = _tokenizer_of(model)
    if tokenizer is None:
        yield judged("tokenizer", False, f"none at {model.name_or_path!r}; put its files there")
        return
    embedded = model.config.vocab_size
    detail = f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens of {embedded:,} that the model embeds"
    yield judged("tokenizer", len(tokenizer) <= embedded, detail)
    settings = model.magnet_settings
    token, token_id = settings.mask_token, settings.mask_token_id
    detail = f"{token!r} ({token_id})"
    faults = []
    if not isinstance(token_id, int) or not 0 <= token_id < embedded:
        faults.append(f"its id is not one of the {embedded:,} that the model embeds")
    elif tokenizer.convert_ids_to_tokens(token_id) != token or tokenizer.convert_tokens_to_ids(token) != token_id:
        faults.append(f"the tokenizer has {tokenizer.convert_ids_to_tokens(token_id)!r} at this id")
    if token_id in (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        faults.append("it is the unknown, BOS or EOS token")
    yield judged("mask token", not faults, "; ".join([detail, *faults]))


def file_findings(opened: Opened) -> Iterator[Finding]:
    """Check code, config and sidecar files; a plain decoder has none of them."""
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


def expected_code(own_class: type[Any]) -> dict[str, Path]:
    """Return the files that a checkpoint of a class is saved with, by name: its module and the imports of that."""
    module = str(importlib.import_module(own_class.__module__).__file__)
    return {Path(file).name: Path(file) for file in [module, *get_relative_import_files(module)]}


def code_findings(opened: Opened) -> list[Finding]:
    """Compare the code beside the weights with that of the installed package, byte for byte."""
    expected = expected_code(opened.own_class)
    present = {name for name in _file_names(opened.source) if name.endswith("_magnet.py")}
    if not present and not opened.values.get("auto_map"):
        return [not_applicable(CODE, "it has none, and opens only with the installed package")]
    files = {name: opened.source.file(name) for name in present & expected.keys()}
    faults = {
        "different": {
            name for name, file in files.items() if not file or file.read_bytes() != expected[name].read_bytes()
        },
        "missing": expected.keys() - present,
        "extra": present - expected.keys(),
    }
    detail = _listed(faults)
    if not detail:
        return [judged(CODE, True, f"{len(present)} files, the installed package's")]
    advice = "Save the model anew into an empty directory, or install the version that wrote it"
    return [judged(CODE, False, f"{detail}. {advice}")]


def _listed(faults: dict[str, Any]) -> str:
    """List the names under each fault that has some."""
    return "; ".join(f"{fault}: {', '.join(sorted(names))}" for fault, names in faults.items() if names)


def config_findings(values: dict[str, Any], own_class: type[Any]) -> list[Finding]:
    """Check the keys that tell other libraries how to open the checkpoint."""
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
    """Compare the sentence-transformers files with those that this library writes for this model."""
    if opened.is_causal_embedder():
        expected = refusing_contents()
    else:
        tokenizer = _tokenizer_of(opened.model)
        expected = sidecar_contents(
            hidden_size=opened.model.config.hidden_size,
            settings=opened.model.magnet_settings,
            has_bos=tokenizer is not None and tokenizer.bos_token_id is not None,
            pad_token=None if tokenizer is None else tokenizer.pad_token or tokenizer.eos_token,
        )
    stored = {name: _read(opened.source, name) for name in expected}
    if opened.kind == "adapter" and all(content is None for content in stored.values()):
        return [not_applicable(SIDECARS, "an adapter of peft's own making")]
    faults = {
        "missing": [name for name, content in stored.items() if content is None],
        "different": [name for name, content in stored.items() if content not in (None, expected[name])],
    }
    detail = _listed(faults)
    return [judged(SIDECARS, not detail, detail or f"{len(expected)} files as the library writes them")]


def _tokenizer_of(model: Any) -> Any | None:
    """Return the tokenizer, or `None` if the model's source has none."""
    try:
        return model.tokenizer
    except ValueError:
        return None


def _read(source: ModelSource, name: str) -> Any:
    """Return the content of a JSON file, or `None` if it does not exist."""
    file = source.file(name)
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))


def _file_names(source: ModelSource) -> set[str]:
    """List the files at the top of a directory or repository."""
    if source.directory is not None:
        return {file.name for file in source.directory.iterdir()}
    folder = str(source.arguments.get("subfolder") or "")
    prefix = f"{folder}/" if folder else ""
    try:
        names = list_repo_files(source.path, revision=source.arguments.get("revision"))
    except Exception:  # if the Hub cannot be reached for any reason, list the files that were fetched before
        config = source.file(CONFIG)
        return set() if config is None else {file.name for file in config.parent.iterdir()}
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
