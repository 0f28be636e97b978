"""The model card of a checkpoint: what it is, what was measured, how to use it, what it cannot do."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..sources_magnet import CARD, CONFIG, CheckpointError

# What tells our cards from those of people, which nothing replaces.
MARK = "<!-- written by magnet"
NOT_RECORDED = "Not recorded: this card was written only from the model."
# What the Hub calls a base that has a shorter name here.
_ON_HUB = {"gemma-3-270m": "google/gemma-3-270m"}
# Gemmas have vocabularies of 256,000 tokens and more; a model that only has the architecture need not.
_GEMMA_VOCABULARY = 256_000
_GEMMA_NOTICE = """
Gemma is provided under and subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms. They hold for weights
made from it and for adapters trained on it, too.
"""
# Between single backticks, where nothing else means anything.
_CODE = re.compile(r"((?<!`)`[^`]+`(?!`))")
# What means something in Markdown; an underscore inside a word does not.
_MARKS = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")

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
    """What a card says beyond what the model itself tells.

    Args:
        base_model (`str`, *optional*): Directory or Hub id of the model that was adapted.
        datasets (`Sequence[str]`): Hub ids, or names of local files, of the training data.
        language (`Sequence[str]`): Two-letter codes.
        license (`str`, *optional*): The Hub's identifier, such as `apache-2.0`; the base model's binds, too.
        recipe (`Sequence[tuple[str, str]]`): What was set in training, a name and a value each.
        results (`Sequence[EvalResult]`): What was measured, for the Hub's structured evaluation results.
        notes (`Sequence[str]`): Sentences under "Limits", in which backticks mark code and nothing else is markup.
    """

    base_model: str | None = None
    datasets: Sequence[str] = ()
    language: Sequence[str] = ()
    license: str | None = None
    recipe: Sequence[tuple[str, str]] = ()
    results: Sequence[EvalResult] = ()
    notes: Sequence[str] = ()


def write_card(model: Any, name: str, facts: CardFacts | None = None, *, merged: bool = False) -> str:
    """Return the card of a model, as Markdown with the Hub's metadata in front.

    Args:
        model: One of our models, with its tokenizer.
        name (`str`): Hub id or directory that the code examples name.
        facts (`CardFacts`, *optional*): What is known of its making.
        merged (`bool`, defaults to `False`): Whether the model's adapter is merged into what the card is for.
    """
    facts = CardFacts() if facts is None else facts
    is_adapter = bool(model.has_adapter) and not merged
    adapters = (getattr(model, "peft_config", None) or {}).values()
    base = facts.base_model or next((one.base_model_name_or_path for one in adapters), None)
    base_id = _ON_HUB.get(base or "", base)
    # Without the directories of the machine that it was made on.
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
        base_model=base_id if is_hub_id(base_id) else None,
        datasets=list(facts.datasets) or None,
        pipeline_tag="text-generation" if is_adapter else "feature-extraction",
        model_name=name,
        # JSON, and so the Hub, has no other numbers.
        eval_results=[one for one in facts.results if math.isfinite(one.metric_value)] or None,
        base_model_relation=("adapter" if is_adapter else "finetune") if is_hub_id(base_id) else None,
    )
    measured = [
        (f"{one.dataset_name}: {one.metric_name or one.metric_type}", one.metric_value) for one in facts.results
    ]
    results = [(what, f"{value:.4g}" if isinstance(value, float) else value) for what, value in measured]
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
    """Return what the model cannot do, by its settings."""
    settings = model.magnet_settings
    default, modes = settings.default_prompt_name, settings.adapter_modes
    prompts = ", ".join(map(_as_code, sorted(settings.prompts)))
    limits = [
        f"A text has at most {model.config.max_position_embeddings} tokens; `encode_words` reads longer ones in "
        "windows.",
        f"The prompts of `encode` are part of the model: {prompts}; "
        f"{'none' if default is None else _as_code(default)} is used where none is named.",
    ]
    if is_adapter and modes is None:
        limits.append("The adapter is on in every mode, so generation differs from the base model's.")
    elif is_adapter:
        limits.append(
            f"The adapter is on in {' and '.join(modes) or 'no'} mode and off in all others: opened with the library, "
            "the model generates as its base does, bit for bit, where causal mode is one of those. Opened as a plain "
            "decoder with its adapter, the adapter is always on."
        )
    if settings.end_of_span == 0:
        limits.append("A fill is as long as the blank it is asked for; the model was not taught where fills end.")
    return limits


def write_card_beside(model: Any, finished: Path, place: Path, *, adapter_alone: bool) -> None:
    """Write the card of a checkpoint or an adapter that is being saved, where it is to have another than it has.

    Args:
        model: The model that is saved; its explicitly set card goes before all others.
        finished (`Path`): Where its files were written.
        place (`Path`): Where they will be. A card there that a person wrote stays.
        adapter_alone (`bool`): Whether they are an adapter's.
    """
    card = model._card
    if card is None:
        there = read_card(place / CARD)
        if there is not None and MARK not in there:
            return
        card = _inherited(model, adapter_alone=adapter_alone)
        if card is None:
            card = write_card(model, place.name, merged=not adapter_alone)
        else:
            card = rename_card(card, place.name)
    (finished / CARD).write_bytes(card_bytes(card))


def _inherited(model: Any, *, adapter_alone: bool) -> str | None:
    """Return the card of where the model came from, where it holds for what is saved."""
    source = model._card_source
    if source is None:
        return None
    try:
        return read_card(source.file(CARD)) if (source.file(CONFIG) is None) == adapter_alone else None
    except CheckpointError:  # gone meanwhile, which must not end a save
        return None


def read_card(file: Path | None) -> str | None:
    """Return a card, or `None` without a file; any encoding survives `card_bytes`."""
    if file is None or not file.is_file():
        return None
    return file.read_bytes().decode("utf-8", "surrogateescape")


def card_bytes(text: str) -> bytes:
    """Return the content of a card's file."""
    return text.encode("utf-8", "surrogateescape")


def parse_card(text: str) -> ModelCard | None:
    """Return a card and its metadata; `None` if it is not UTF-8 or they cannot be read: the Hub takes no such card."""
    try:
        text.encode("utf-8")
        return ModelCard(text, ignore_metadata_errors=True)
    except Exception:  # of the YAML reader, which is no package that we name, and of whatever the metadata hold
        return None


def rename_card(text: str, name: str) -> str:
    """Rename the model of a card that we wrote, in its code examples too; any other card comes back unchanged."""
    card = parse_card(text) if MARK in text else None
    old = None if card is None else card.data.get("model_name")
    if card is None or not old or str(old) == name:
        return text
    card.data["model_name"] = name
    title, quoted = f"# {_plain(str(old))}", _quoted(str(old))
    lines = card.text.split("\n")
    card.text = "\n".join(
        f"# {_plain(name)}" if line == title else line.replace(quoted, _quoted(name)) for line in lines
    )
    return str(card)


def with_tags(text: str, tags: Sequence[str]) -> str:
    """Add tags to a card's metadata; a card whose metadata cannot be read comes back unchanged."""
    card = parse_card(text)
    if card is None:
        return text
    known = card.data.get("tags") or []
    known = [known] if isinstance(known, str) else list(known)
    card.data["tags"] = known + [tag for tag in tags if tag not in known]
    return str(card)


def is_hub_id(name: str | None) -> bool:
    """Return whether a model's name is one of the Hub and not a directory here."""
    return name is not None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())


def _plain(text: Any) -> str:
    """Return one line of text without markup."""
    return _escaped(_one_line(text))


def _escaped(text: str) -> str:
    return _MARKS.sub(r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")


def _quoted(name: str) -> str:
    """Return a name as a string of Python."""
    return json.dumps(name, ensure_ascii=False)


def _as_code(name: str) -> str:
    """Return a name as code in a sentence."""
    return f"`{_one_line(name).replace('`', chr(39))}`"


def _item(note: str) -> str:
    """Return a note as one item of a list, in which only backticks are markup."""
    parts = _CODE.split(_one_line(note))  # every second one is code
    line = "".join(part if place % 2 else _escaped(part) for place, part in enumerate(parts))
    # What would open something else at the beginning of a line.
    line = re.sub(r"^(#|>|[-+](?=[-\s]|$))", r"\\\1", line)
    return re.sub(r"^(\d+)(?=[.)])", r"\1\\", line)


def _table(head: tuple[str, str], rows: Sequence[tuple[Any, Any]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows])
