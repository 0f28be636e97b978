"""Write, read and edit the model card of a checkpoint."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..sources_magnet import CARD, CONFIG, CheckpointError

# Marks generated cards. Cards without it are hand-written, and are never replaced.
MARK = "<!-- written by magnet"
NOT_RECORDED = "Not recorded: this card was written only from the model."
# Smallest vocabulary of a Gemma model by Google; other models may share the architecture.
_GEMMA_VOCABULARY = 256_000
_GEMMA_NOTICE = """
Gemma is provided under and subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms. They hold for weights
made from it and for adapters trained on it, too.
"""
# Inline code, in which Markdown has no other markup.
_CODE = re.compile(r"((?<!`)`[^`]+`(?!`))")
# Markdown's special characters; an underscore inside a word is not special.
_MARKDOWN_CHARACTERS = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")

_CARD = """---
{metadata}
---

{mark}: replaced by the next save, unless you delete this line -->

{title}

A {model_type}{origin}: one {kind} that generates text from left to right, encodes it bidirectionally into embeddings,
and fills blanks from both sides.

## Use

{use}

## How it was made

{recipe}

## Measured

{results}

## Limits

{limits}
{notice}
The method is MAGNET ([Khosla et al. 2025](https://arxiv.org/abs/2501.08648)); this model is not the work of the
paper's authors.
"""
_CALLS = """vectors = model.encode(["The cat sat on the mat.", "A cat was sitting there."], normalize_embeddings=True)
fill = model.infill("She ate the apple", " for lunch.", max_new_tokens=4)
inputs = model.tokenizer("There was a little", return_tensors="pt", return_token_type_ids=False)
output = model.generate(**inputs, max_new_tokens=20)"""
_USE_CHECKPOINT = """```python
from transformers import AutoModel

model = AutoModel.from_pretrained({name}, trust_remote_code=True)
{calls}
```

As an embedder, without remote code:

```python
from sentence_transformers import SentenceTransformer

embedder = SentenceTransformer({name})
vectors = embedder.encode(["The cat sat on the mat."], normalize_embeddings=True)
```

The states of each token, by the pipeline of transformers; without `model_kwargs` a token sees only what is before it:

```python
from transformers import pipeline

options = {{"trust_remote_code": True, "model_kwargs": {{"is_causal": False}}}}
states = pipeline("feature-extraction", model={name}, **options)("The cat sat on the mat.")
```

As a plain decoder, for every tool that reads its family; here vLLM:

```python
from vllm import LLM

texts = LLM({name}).generate(["There was a little"])
```"""
_USE_ADAPTER = """Only the adapter of peft; its base is `{base}`. With the library installed:

```python
from modeling_magnet import AutoMagnetForCausalLM

model = AutoMagnetForCausalLM.from_pretrained({name})
{calls}
```

For sentence-transformers, vLLM and loading without the library, merge it into its base:

```python
model.set_adapter_modes(None)
model.save_pretrained("merged", merge_adapter=True)
```"""


@dataclass
class CardFacts:
    """The content of a card that cannot be derived from the model.

    Args:
        base_model (`str`, *optional*): Directory or Hub id of the model that was adapted.
        datasets (`Sequence[str]`): Hub ids or local file names of the training data.
        language (`Sequence[str]`): Two-letter codes.
        license (`str`, *optional*): The Hub's identifier, such as `apache-2.0`; the base model's license applies, too.
        recipe (`Sequence[tuple[str, str]]`): Names and values of the training settings.
        results (`Sequence[EvalResult]`): Evaluation results, also written to the Hub's metadata.
        notes (`Sequence[str]`): Sentences for "Limits"; backticks mark code, and other markup is escaped.
    """

    base_model: str | None = None
    datasets: Sequence[str] = ()
    language: Sequence[str] = ()
    license: str | None = None
    recipe: Sequence[tuple[str, str]] = ()
    results: Sequence[EvalResult] = ()
    notes: Sequence[str] = ()


def write_card(model: Any, name: str, facts: CardFacts | None = None, *, merged: bool = False) -> str:
    """Return the card of a model as Markdown, with the Hub's metadata at the top.

    Args:
        model: A MAGNET model with a tokenizer.
        name (`str`): Hub id or directory to use in the code examples.
        facts (`CardFacts`, *optional*): Training data, recipe and results.
        merged (`bool`, defaults to `False`): Whether the model's adapter is merged in the checkpoint.
    """
    facts = CardFacts() if facts is None else facts
    is_adapter = bool(model.has_adapter) and not merged
    adapters = (getattr(model, "peft_config", None) or {}).values()
    base = facts.base_model or next((adapter.base_model_name_or_path for adapter in adapters), None)
    # Do not publish local directories.
    shown = base if not base or is_hub_id(base) else _one_line(Path(base).name).replace("`", "'")
    use = _USE_ADAPTER if is_adapter else _USE_CHECKPOINT
    of_gemma = str(model.config.model_type).startswith("gemma") and (
        model.config.vocab_size >= _GEMMA_VOCABULARY or "gemma" in str(base or model.config._name_or_path).lower()
    )
    metadata = ModelCardData(
        language=list(facts.language) or None,
        license=facts.license or ("gemma" if of_gemma else None),
        library_name="peft" if is_adapter else "transformers",
        tags=["magnet", "text-embeddings", "infilling", "sentence-transformers"],
        base_model=base if is_hub_id(base) else None,
        datasets=list(facts.datasets) or None,
        pipeline_tag="text-generation" if is_adapter else "feature-extraction",
        model_name=name,
        # JSON, and therefore the Hub, has only finite numbers.
        eval_results=[result for result in facts.results if math.isfinite(result.metric_value)] or None,
        base_model_relation=("adapter" if is_adapter else "finetune") if is_hub_id(base) else None,
    )
    results = []
    for result in facts.results:
        value = result.metric_value
        label = f"{result.dataset_name}: {result.metric_name or result.metric_type}"
        results.append((label, f"{value:.4g}" if isinstance(value, float) else value))
    limits = [*_limits(model, is_adapter=is_adapter), *map(_item, facts.notes)]
    return _CARD.format(
        metadata=metadata.to_yaml(),
        mark=MARK,
        title=f"# {_plain(name)}",
        model_type=model.config.model_type,
        origin=f", adapted from `{shown}`" if base else "",
        kind="adapter" if is_adapter else "model",
        use=use.format(name=_quoted(name), base=shown, calls=_CALLS),
        recipe=_table(("", ""), facts.recipe) if facts.recipe else NOT_RECORDED,
        results=_table(("what", "value"), results) if results else "Nothing was recorded with this checkpoint.",
        limits="\n".join(f"- {item}" for item in limits),
        notice=_GEMMA_NOTICE if of_gemma else "",
    )


def _limits(model: Any, *, is_adapter: bool) -> list[str]:
    """Return sentences on the limits of the model that follow from its settings."""
    settings = model.magnet_settings
    default, modes = settings.default_prompt_name, settings.adapter_modes
    prompts = ", ".join(map(_as_code, sorted(settings.prompts)))
    limits = [
        f"A text may have up to {model.config.max_position_embeddings} tokens; `encode_words` splits longer ones into "
        "windows.",
        f"The prompts of `encode` are part of the model: {prompts}. The default is "
        f"{'no prompt' if default is None else _as_code(default)}.",
    ]
    if is_adapter and modes is None:
        limits.append("The adapter is on in every mode, so generation differs from the base model's.")
    elif is_adapter:
        limits.append(
            f"The adapter is on in {' and '.join(modes) or 'no'} mode and off in all others. If it is off in causal "
            "mode, the model loaded with the library generates exactly as its base does. In a plain decoder loaded "
            "with PEFT, the adapter is always on."
        )
    if settings.end_of_span == 0:
        limits.append("A fill has exactly the requested length; the model was not trained to end it earlier.")
    return limits


def write_card_beside(model: Any, finished: Path, target: Path, *, adapter_only: bool) -> None:
    """Write a card into the directory `finished`, which is going to replace `target`.

    It is the card set on the model, otherwise the card of the loaded checkpoint, otherwise a generated one. Without a
    card set on the model, a hand-written card in `target` is kept.
    """
    card = model._card
    if card is None:
        present = read_card(target / CARD)
        if present is not None and MARK not in present:
            return
        loaded = _inherited(model, adapter_only=adapter_only)
        if loaded is None:
            card = write_card(model, target.name, merged=not adapter_only)
        else:
            card = rename_card(loaded, target.name)
    (finished / CARD).write_bytes(card_bytes(card))


def _inherited(model: Any, *, adapter_only: bool) -> str | None:
    """Return the card of the loaded checkpoint or adapter; `None` if the other kind is being saved."""
    source = model._card_source
    if source is None:
        return None
    try:
        return read_card(source.file(CARD)) if (source.file(CONFIG) is None) == adapter_only else None
    except CheckpointError:  # a source that is no longer there must not prevent a save
        return None


def read_card(file: Path | None) -> str | None:
    """Return a card, or `None` without a file. Bytes that are not UTF-8 are restored by `card_bytes`."""
    if file is None or not file.is_file():
        return None
    return file.read_bytes().decode("utf-8", "surrogateescape")


def card_bytes(text: str) -> bytes:
    """Encode a card, the inverse of `read_card`."""
    return text.encode("utf-8", "surrogateescape")


def parse_card(text: str) -> ModelCard | None:
    """Parse a card; return `None` if the text is not UTF-8 or its metadata are invalid, which the Hub rejects."""
    try:
        text.encode("utf-8")
        return ModelCard(text, ignore_metadata_errors=True)
    except Exception:  # the YAML parser and the metadata classes raise many types
        return None


def rename_card(text: str, name: str) -> str:
    """Rename the model in a generated card and its code examples; return any other card unchanged."""
    card = parse_card(text) if MARK in text else None
    old = None if card is None else card.data.get("model_name")
    if card is None or not old or str(old) == name:
        return text
    card.data["model_name"] = name
    title, quoted = f"# {_plain(old)}", _quoted(str(old))
    lines = card.text.split("\n")
    renamed = [f"# {_plain(name)}" if line == title else line.replace(quoted, _quoted(name)) for line in lines]
    card.text = "\n".join(renamed)
    return str(card)


def with_tags(text: str, tags: Sequence[str]) -> str:
    """Add tags to a card's metadata; return a card with invalid metadata unchanged."""
    card = parse_card(text)
    if card is None:
        return text
    known = card.data.get("tags") or []
    known = [known] if isinstance(known, str) else list(known)
    card.data["tags"] = known + [tag for tag in tags if tag not in known]
    return str(card)


def is_hub_id(name: str | None) -> bool:
    """Return whether a name is a Hub id and not a local directory."""
    return name is not None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())


def _plain(text: Any) -> str:
    """Return text in one line with escaped markup."""
    return _escaped(_one_line(text))


def _escaped(text: str) -> str:
    return _MARKDOWN_CHARACTERS.sub(r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")


def _quoted(name: str) -> str:
    """Return a name as a Python string literal."""
    return json.dumps(name, ensure_ascii=False)


def _as_code(name: str) -> str:
    """Return a name as inline code."""
    return f"`{_one_line(name).replace('`', chr(39))}`"


def _item(note: str) -> str:
    """Return a note as a list item, in which only backticks are markup."""
    parts = _CODE.split(_one_line(note))  # parts at odd indices are code
    line = "".join(part if index % 2 else _escaped(part) for index, part in enumerate(parts))
    # Escape what would start a heading, a quotation or a list.
    line = re.sub(r"^(#|>|[-+](?=[-\s]|$))", r"\\\1", line)
    return re.sub(r"^(\d+)(?=[.)])", r"\1\\", line)


def _table(head: tuple[str, str], rows: Sequence[tuple[Any, Any]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows])
