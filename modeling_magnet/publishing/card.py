"""The model card of a checkpoint: what it is, what was measured, how to use it, what it cannot do."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..sources_magnet import CARD, CONFIG, CheckpointError

# What tells our cards from those of people, which nothing replaces.
MARK = "<!-- written by magnet"
_MARK_LINE = f"{MARK}: replaced by the next save, unless you delete this line -->"
NOT_RECORDED = "Not recorded: this card was written only from the model."
PAPER = "https://arxiv.org/abs/2501.08648"
TAGS = ("magnet", "text-embeddings", "infilling", "sentence-transformers")
# What the Hub calls a base that has a shorter name here.
_ON_HUB = {"gemma-3-270m": "google/gemma-3-270m"}
# Gemmas have vocabularies of 256,000 tokens and more; a model that only has the architecture need not.
_GEMMA_VOCABULARY = 256_000
_GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms. They hold for "
    "weights made from it and for adapters trained on it, too."
)
# Between single backticks, where nothing else means anything.
_CODE = re.compile(r"((?<!`)`[^`]+`(?!`))")
# What means something in Markdown; an underscore inside a word does not.
_MARKS = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")


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
    notes: Sequence[str] = field(default_factory=tuple)


def write_card(model: Any, name: str, facts: CardFacts | None = None, *, merged: bool = False) -> str:
    """Write the card of a model, as Markdown with the Hub's metadata in front.

    Args:
        model: One of our models, with its tokenizer.
        name (`str`): Hub id or directory that the code examples name.
        facts (`CardFacts`, *optional*): What is known of its making.
        merged (`bool`, defaults to `False`): Whether the model's adapter is merged into what the card is for.
    """
    facts = CardFacts() if facts is None else facts
    is_adapter = bool(model.has_adapter) and not merged
    base = facts.base_model or _base_of(model)
    of_gemma = _is_gemma(model, base)
    base_id = _ON_HUB.get(base or "", base)
    data = ModelCardData(
        language=list(facts.language) or None,
        license=facts.license or ("gemma" if of_gemma else None),
        library_name="peft" if is_adapter else "transformers",
        tags=list(TAGS),
        base_model=base_id if is_hub_id(base_id) else None,
        datasets=list(facts.datasets) or None,
        pipeline_tag="text-generation" if is_adapter else "feature-extraction",
        model_name=name,
        eval_results=[result for result in facts.results if _is_finite(result.metric_value)] or None,
        base_model_relation=("adapter" if is_adapter else "finetune") if is_hub_id(base_id) else None,
    )
    parts = [
        _MARK_LINE,
        _title(name),
        _summary(model, base, is_adapter=is_adapter),
        "## Use",
        _adapter_code(name, base) if is_adapter else _checkpoint_code(name),
        "## How it was made",
        _table(("", ""), facts.recipe) if facts.recipe else NOT_RECORDED,
        "## Measured",
        _results(facts.results) if facts.results else "Nothing was recorded with this checkpoint.",
        "## Limits",
        "\n".join(f"- {item}" for item in (*_limits(model, is_adapter=is_adapter), *map(_item, facts.notes))),
        *([_GEMMA_NOTICE] if of_gemma else []),
        f"The method is MAGNET ([Khosla et al. 2025]({PAPER})); this model is not the work of the paper's authors.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def read_card(file: Path | None) -> str | None:
    """Return a card, or `None` without a file; any encoding survives `card_bytes`."""
    if file is None or not file.is_file():
        return None
    return file.read_bytes().decode("utf-8", "surrogateescape")


def card_bytes(text: str) -> bytes:
    """Return the content of a card's file."""
    return text.encode("utf-8", "surrogateescape")


def is_ours(text: str) -> bool:
    """Return whether `write_card` wrote a card, and not a person."""
    return MARK in text


def rename_card(text: str, name: str) -> str:
    """Rename the model of a card that we wrote, in its code examples too; any other card comes back unchanged."""
    card = _parsed(text) if is_ours(text) else None
    old = None if card is None else card.data.get("model_name")
    if card is None or not old or str(old) == name:
        return text
    card.data["model_name"] = name
    whole = {_title(str(old)): _title(name)}
    quoted, other = _quoted(str(old)), _quoted(name)
    lines = [whole.get(line, line.replace(quoted, other)) for line in card.text.split("\n")]
    card.text = "\n".join(lines)
    return str(card)


def with_tags(text: str, tags: Sequence[str]) -> str:
    """Add tags to a card's metadata; a card whose metadata cannot be read comes back unchanged."""
    card = _parsed(text)
    if card is None:
        return text
    known = card.data.get("tags") or []
    known = [known] if isinstance(known, str) else list(known)
    card.data["tags"] = known + [tag for tag in tags if tag not in known]
    return str(card)


def is_readable(text: str) -> bool:
    """Return whether a card is UTF-8 with metadata that can be read: the Hub takes no other."""
    return _parsed(text) is not None


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
        if there is not None and not is_ours(there):
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


def _parsed(text: str) -> ModelCard | None:
    """Return a card and its metadata; `None` if they cannot be read."""
    try:
        text.encode("utf-8")
        return ModelCard(text, ignore_metadata_errors=True)
    except Exception:  # of the YAML reader, which is no package that we name, and of whatever the metadata hold
        return None


def is_hub_id(name: str | None) -> bool:
    """Return whether a model's name is one of the Hub and not a directory here."""
    return name is not None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()


def _shown(name: str | None) -> str | None:
    """Return a model's name without the directories of the machine that it was made on."""
    return name if name is None or is_hub_id(name) else _one_line(Path(name).name).replace("`", "'")


def _title(name: str) -> str:
    """Return the heading of a card."""
    return f"# {_plain(name)}"


def _plain(text: str) -> str:
    """Return one line of text without markup."""
    return _escaped(_one_line(text))


def _escaped(text: str) -> str:
    return _MARKS.sub(r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _quoted(name: str) -> str:
    """Return a name as a string of Python."""
    return json.dumps(name, ensure_ascii=False)


def _item(note: str) -> str:
    """Return a note as one item of a list, in which only backticks are markup."""
    parts = _CODE.split(_one_line(note))  # every second one is code
    line = "".join(part if place % 2 else _escaped(part) for place, part in enumerate(parts))
    return re.sub(r"^(#|>|[-+](?=[-\s]|$)|\d+(?=[.)]))", _behind_backslash, line)


def _behind_backslash(match: re.Match[str]) -> str:
    """Escape a mark that would open something at the beginning of a line."""
    return match[0] + "\\" if match[0].isdigit() else "\\" + match[0]


def _code(name: str) -> str:
    """Return a name as code in a sentence."""
    return f"`{_one_line(name).replace('`', chr(39))}`"


def _is_finite(value: Any) -> bool:
    """Return whether JSON, and so the Hub, has such a number."""
    return not isinstance(value, float) or math.isfinite(value)


def _size(model: Any) -> int:
    """Parameters of the model itself: peft names those of an adapter on the layer that it wraps."""
    added = tuple(
        f"{name}.{part}."
        for name, module in model.named_modules()
        for part in (*getattr(module, "adapter_layer_names", ()), *getattr(module, "other_param_names", ()))
    )
    # Tied weights count once, and under a name of the model's own.
    kept = {
        id(parameter): parameter.numel()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not name.startswith(added)
    }
    return sum(kept.values())


def _base_of(model: Any) -> str | None:
    configs = getattr(model, "peft_config", None) or {}
    named = next((config.base_model_name_or_path for config in configs.values()), None)
    return str(named) if named else None


def _is_gemma(model: Any, base: str | None) -> bool:
    """Return whether a model comes from one of Gemma's, whose terms bind it."""
    if not str(model.config.model_type).startswith("gemma"):
        return False
    return model.config.vocab_size >= _GEMMA_VOCABULARY or "gemma" in str(base or model.config._name_or_path).lower()


def _summary(model: Any, base: str | None, *, is_adapter: bool) -> str:
    size = _size(model)
    amount = f"{size / 1e9:.1f} billion" if size >= 1e9 else f"{size / 1e6:.1f} million"
    kind = "adapter" if is_adapter else "model"
    origin = f", adapted from `{_shown(base)}`" if base else ""
    return (
        f"A {model.config.model_type} of {amount} parameters{origin}: one {kind} that generates text from left to "
        "right, encodes it bidirectionally into embeddings, and fills gaps from both sides."
    )


def _checkpoint_code(name: str) -> str:
    return f"""```python
from transformers import AutoModel

model = AutoModel.from_pretrained({_quoted(name)}, trust_remote_code=True)
vectors = model.encode(["The cat sat on the mat.", "A cat was sitting there."], normalize_embeddings=True)
fill = model.infill("She ate the apple", " for lunch.", max_new_tokens=4)
inputs = model.tokenizer("There was a little", return_tensors="pt", return_token_type_ids=False)
output = model.generate(**inputs, max_new_tokens=20)
```

As an embedder, without remote code:

```python
from sentence_transformers import SentenceTransformer

embedder = SentenceTransformer({_quoted(name)})
vectors = embedder.encode(["The cat sat on the mat."], normalize_embeddings=True)
```

The states of each token, by the pipeline of transformers; without `model_kwargs` a token sees only what is before it:

```python
from transformers import pipeline

options = {{"trust_remote_code": True, "model_kwargs": {{"is_causal": False}}}}
states = pipeline("feature-extraction", model={_quoted(name)}, **options)("The cat sat on the mat.")
```

As a plain decoder, for every tool that reads its family; here vLLM:

```python
from vllm import LLM

texts = LLM({_quoted(name)}).generate(["There was a little"])
```"""


def _adapter_code(name: str, base: str | None) -> str:
    return f"""The adapter of peft alone; its base is `{_shown(base)}`. With the library installed:

```python
from modeling_magnet import AutoMagnetForCausalLM

model = AutoMagnetForCausalLM.from_pretrained({_quoted(name)})
vectors = model.encode(["The cat sat on the mat.", "A cat was sitting there."], normalize_embeddings=True)
fill = model.infill("She ate the apple", " for lunch.", max_new_tokens=4)
inputs = model.tokenizer("There was a little", return_tensors="pt", return_token_type_ids=False)
output = model.generate(**inputs, max_new_tokens=20)
```

For sentence-transformers, vLLM and loading without the library, merge it into its base:

```python
model.set_adapter_modes(None)
model.save_pretrained("merged", merge_adapter=True)
```"""


def _limits(model: Any, *, is_adapter: bool) -> list[str]:
    settings = model.magnet_settings
    modes = settings.adapter_modes
    limits = [
        f"A text has at most {model.config.max_position_embeddings} tokens; `encode_words` reads longer ones in "
        "windows.",
        "The prompts of `encode` are part of the model: "
        + ", ".join(map(_code, sorted(settings.prompts)))
        + (
            "; none is used where none is named."
            if settings.default_prompt_name is None
            else f"; {_code(settings.default_prompt_name)} is used where none is named."
        ),
    ]
    if is_adapter and modes is None:
        limits.append("The adapter is on in every mode, so generation differs from the base model's.")
    elif is_adapter and modes is not None:
        limits.append(
            f"The adapter is on in {' and '.join(modes) or 'no'} mode and off in all others: opened with the library, "
            "the model generates as its base does, bit for bit, where causal mode is one of those. Opened as a plain "
            "decoder with its adapter, the adapter is always on."
        )
    if settings.end_of_span == 0:
        limits.append("A fill is as long as the gap it is asked for; the model was not taught where fills end.")
    return limits


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows])


def _results(results: Sequence[EvalResult]) -> str:
    rows = [
        (
            f"{result.dataset_name}: {result.metric_name or result.metric_type}",
            f"{result.metric_value:.4g}" if isinstance(result.metric_value, float) else str(result.metric_value),
        )
        for result in results
    ]
    return _table(("what", "value"), rows)


__all__ = [
    "CARD",
    "MARK",
    "NOT_RECORDED",
    "CardFacts",
    "card_bytes",
    "is_hub_id",
    "is_ours",
    "is_readable",
    "read_card",
    "rename_card",
    "with_tags",
    "write_card",
    "write_card_beside",
]
