"""Write the model card of a run: base, data, recipe, and evaluations before and after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard import RepoCard

from modeling_magnet.publishing.card import CardFacts, write_card
from modeling_magnet.publishing.card import is_hub_id as is_model_id
from modeling_magnet.sources_magnet import CARD, CONFIG, ModelSource

from .sources import is_hub_id, local_files

# Metrics of an evaluation by their names in logs, with the card's metric type and description.
MEASURES = {
    "eval_infilling_perplexity": ("perplexity", "infilling perplexity, span tokens from both sides"),
    "eval_left_to_right_perplexity": ("perplexity", "perplexity of the same tokens from the left alone"),
    "eval_causal_perplexity": ("perplexity", "causal perplexity of whole texts"),
    "eval_masked_accuracy": ("accuracy", "accuracy of masked next-token prediction"),
}
TASKS = {"perplexity": "text-generation", "accuracy": "fill-mask"}
# Training arguments that the card reports.
RECIPE = (
    "loss_phases",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "mask_ratio",
    "span_ratio",
    "seed",
)
# Files of the training data that a card lists by name.
MOST_FILES = 20
# First parts of relative paths that look like Hub ids.
_FOLDERS = {"checkpoints", "checkpoint", "data", "model", "models", "output", "outputs", "results", "runs", "tmp"}


def run_card(
    model: Any,
    name: str,
    *,
    args: Any,
    log_history: Sequence[dict[str, Any]],
    merged: bool = False,
    base_model: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    **facts: Any,
) -> str:
    """Return the card of a model that a run has trained.

    Args:
        model (`PreTrainedModel`): The model, without its peft wrapper.
        name (`str`): Directory or Hub id that the card's code examples name.
        args (`TrainingArguments`): Arguments of the run.
        log_history (`Sequence[dict]`): The trainer's, with its evaluations.
        merged (`bool`, defaults to `False`): Whether adapters are merged in what the card describes.
        base_model (`str`, *optional*): Directory or Hub id; by default where the model was loaded from.
        recipe (`Mapping`, *optional*): Added to the arguments of the run.
        facts: Passed to `run_facts`.
    """
    arguments = {key: getattr(args, key) for key in RECIPE if hasattr(args, key)}
    for adapter, config in (getattr(model, "peft_config", None) or {}).items():
        size = f"rank {getattr(config, 'r', None)}, alpha {getattr(config, 'lora_alpha', None)}"
        arguments[f"adapter {adapter}"] = f"{config.peft_type.value}, {size}"
    known = run_facts(
        log_history,
        base_model=base_model or model.config._name_or_path,
        arguments=arguments | dict(recipe or {}),
        **facts,
    )
    return write_card(model, name, known, merged=merged)


def run_facts(
    log_history: Sequence[dict[str, Any]],
    *,
    base_model: str,
    arguments: dict[str, Any],
    train_texts: Sequence[str] = (),
    eval_texts: Sequence[str] = (),
    language: Sequence[str] = (),
    license: str | None = None,
    notes: Sequence[str] = (),
) -> CardFacts:
    """Collect the facts of a run for `write_card`.

    Args:
        log_history (`Sequence[dict]`): The trainer's, with its evaluations.
        base_model (`str`): Directory or Hub id; its card gives license and language where none is given.
        arguments (`dict`): Arguments of the run that belong into the recipe, by name.
        train_texts (`Sequence[str]`): Files or Hub ids of the training data.
        eval_texts (`Sequence[str]`): Files or Hub ids of the held-out data.
        language (`Sequence[str]`): Codes of the languages.
        license (`str`, *optional*): The Hub's identifier of a license.
        notes (`Sequence[str]`): Further sentences under "Limits".

    Returns:
        `CardFacts`: with the results of the last evaluation, beside those of the first one.
    """
    evaluations = [log for log in log_history if "eval_loss" in log]
    held_out = describe_data(eval_texts) or "held-out texts"
    results = [
        EvalResult(
            task_type=TASKS[kind],
            dataset_type=eval_texts[0] if len(eval_texts) == 1 and is_hub_id(eval_texts[0]) else "held-out",
            dataset_name=held_out,
            metric_type=kind,
            metric_name=_with_before(text, evaluations[0].get(name) if len(evaluations) > 1 else None),
            metric_value=float(evaluations[-1][name]),
        )
        for name, (kind, text) in MEASURES.items()
        if evaluations and name in evaluations[-1]
    ]
    own = _card_data(base_model)
    recipe = [(name, _value(value)) for name, value in arguments.items() if value not in (None, "", [], {})]
    if train_texts:
        recipe.insert(0, ("training data", describe_data(train_texts)))
    origin = _origin(base_model, own)
    if origin is not None:
        recipe.insert(0, ("base model", f"{Path(base_model).name}, a directory whose files name {origin}"))
    return CardFacts(
        base_model=origin or base_model,
        datasets=[name for name in train_texts if is_hub_id(name)],
        language=list(language) or as_list(own.get("language")),
        license=license or next(iter(as_list(own.get("license"))), None),
        recipe=recipe,
        results=results,
        notes=notes,
    )


def describe_data(names: Sequence[str]) -> str:
    """Name data sets by their Hub ids, and files by their names and number, without their directories."""
    ids = [name for name in names if is_hub_id(name)]
    files: list[str] = []
    for name in names:
        if name in ids:
            continue
        try:
            files += [file.name for file in local_files(name)]
        except ValueError:  # deleted since
            files.append(Path(name).name)
    shown = files if len(files) <= MOST_FILES else [*files[: MOST_FILES - 1], "...", files[-1]]
    described = f"{len(files)} files: {', '.join(shown)}" if len(files) > 1 else "".join(files)
    return ", ".join([*ids, *filter(None, [described])])


def _card_data(model: str) -> dict[str, Any]:
    """Return the metadata of a model's own card, if it has a name and a readable card."""
    if not model:  # made, not loaded; an empty path would be the current directory
        return {}
    try:
        text = ModelSource(model, {}).read_text(CARD)
        return {} if text is None else RepoCard(text, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, TypeError, yaml.YAMLError):  # a stranger's card may hold anything
        return {}


def _origin(base_model: str, card: dict[str, Any]) -> str | None:
    """Return the Hub id that a local base names in its config, or in its card as its own base."""
    if not base_model or not Path(base_model).is_dir():
        return None
    try:
        config = ModelSource(base_model, {}).read_json(CONFIG) or {}
    except (OSError, ValueError):
        config = {}
    named = as_list(card.get("base_model"))
    candidates = [config.get("_name_or_path"), named[0] if len(named) == 1 else None]
    return next((name for name in candidates if _is_full_id(name)), None)


def _is_full_id(name: Any) -> bool:
    """Whether this is a Hub id with an owner, not a path that looks like one."""
    is_id = isinstance(name, str) and name.count("/") == 1 and is_model_id(name)
    return is_id and name.partition("/")[0].lower() not in _FOLDERS and not name.startswith(".")


def _with_before(text: str, before: float | None) -> str:
    return text if before is None else f"{text} (before: {before:.4g})"


def _value(value: Any) -> str:
    value = getattr(value, "value", value)  # of an enumeration
    if not isinstance(value, list | tuple):
        return str(value)
    texts = [str(each) for each in value]
    return ("; " if any(" " in text for text in texts) else " ").join(texts)


def as_list(value: Any) -> list[str]:
    """Return the strings of a value that may be one string, a list, or something else."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [one for one in values if isinstance(one, str)]


__all__ = ["MEASURES", "as_list", "describe_data", "run_card", "run_facts"]
