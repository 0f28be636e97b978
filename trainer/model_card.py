"""Write the model card of a run: base, data, recipe, and evaluations before and after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard import RepoCard

from modeling_magnet.publishing.card import CardFacts, write_card
from modeling_magnet.sources_magnet import CARD, CONFIG, ModelSource

from .sources import is_hub_id, local_files
from .training_args import MagnetTrainingArguments

# Metrics of an evaluation by their names in logs, with the card's metric type and description.
_MEASURES = {
    "eval_infilling_perplexity": ("perplexity", "infilling perplexity, span tokens from both sides"),
    "eval_left_to_right_perplexity": ("perplexity", "perplexity of the same tokens from the left only"),
    "eval_causal_perplexity": ("perplexity", "causal perplexity of whole texts"),
    "eval_masked_accuracy": ("accuracy", "accuracy of masked next-token prediction"),
}
_TASKS = {"perplexity": "text-generation", "accuracy": "fill-mask"}
# Training arguments that the card reports.
_RECIPE = (
    "loss_phases",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "mask_ratio",
    "seed",
)
# Limit of the training files that a card lists by name.
_MAX_FILES = 20
# First parts of relative paths that look like Hub ids.
_FOLDERS = {"checkpoints", "checkpoint", "data", "model", "models", "output", "outputs", "results", "runs", "tmp"}


def run_card(
    model: Any,
    name: str,
    *,
    args: MagnetTrainingArguments,
    log_history: Sequence[dict[str, Any]],
    merged: bool = False,
    recipe: Mapping[str, Any] | None = None,
    train_texts: Sequence[str] = (),
    eval_texts: Sequence[str] = (),
) -> str:
    """Return the model card of a run.

    Args:
        model (`PreTrainedModel`): The model, without its peft wrapper.
        name (`str`): Directory or Hub id that the card's code examples name.
        args (`MagnetTrainingArguments`): Arguments of the run.
        log_history (`Sequence[dict]`): Logs of the trainer; the card reports the first and the last evaluation.
        merged (`bool`, defaults to `False`): Whether the card is for a model with merged adapters.
        recipe (`Mapping`, *optional*): Added to the arguments of the run.
        train_texts (`Sequence[str]`): Files or Hub ids of the training data.
        eval_texts (`Sequence[str]`): Files or Hub ids of the held-out data.
    """
    base_model: str = model.config._name_or_path
    base_card = _card_data(base_model)
    origin = _origin(base_model, base_card)
    values: dict[str, Any] = {}
    if origin is not None:
        values["base model"] = f"{Path(base_model).name}, a directory whose files name {origin}"
    values["training data"] = describe_data(train_texts)
    values |= {key: getattr(args, key) for key in _RECIPE}
    for adapter, config in (getattr(model, "peft_config", None) or {}).items():
        size = f"rank {getattr(config, 'r', None)}, alpha {getattr(config, 'lora_alpha', None)}"
        values[f"adapter {adapter}"] = f"{config.peft_type.value}, {size}"
    values |= dict(recipe or {})
    facts = CardFacts(
        base_model=origin or base_model,
        datasets=[text for text in train_texts if is_hub_id(text)],
        language=_as_list(base_card.get("language")),
        license=next(iter(_as_list(base_card.get("license"))), None),
        recipe=[(key, _shown(value)) for key, value in values.items() if value not in (None, "", [], {})],
        results=_results([log for log in log_history if "eval_loss" in log], eval_texts),
    )
    return write_card(model, name, facts, merged=merged)


def _results(evaluations: Sequence[dict[str, Any]], eval_texts: Sequence[str]) -> list[EvalResult]:
    """Return the metrics of the last evaluation, each with its value before training."""
    if not evaluations:
        return []
    first, last = evaluations[0], evaluations[-1]
    results = []
    for name, (metric, description) in _MEASURES.items():
        if name not in last:
            continue
        before = f" (before: {first[name]:.4g})" if len(evaluations) > 1 and name in first else ""
        results.append(
            EvalResult(
                task_type=_TASKS[metric],
                dataset_type=eval_texts[0] if len(eval_texts) == 1 and is_hub_id(eval_texts[0]) else "held-out",
                dataset_name=describe_data(eval_texts) or "held-out texts",
                metric_type=metric,
                metric_name=description + before,
                metric_value=float(last[name]),
            )
        )
    return results


def describe_data(names: Sequence[str]) -> str:
    """Describe data by the ids of Hub datasets, and the number and names of files without directories."""
    ids = [name for name in names if is_hub_id(name)]
    files: list[str] = []
    for name in names:
        if name in ids:
            continue
        try:
            files += [file.name for file in local_files(name)]
        except ValueError:  # deleted in the meantime
            files.append(Path(name).name)
    shown = files if len(files) <= _MAX_FILES else [*files[: _MAX_FILES - 1], "...", files[-1]]
    described = f"{len(files)} files: {', '.join(shown)}" if len(files) > 1 else "".join(files)
    return ", ".join([*ids, *filter(None, [described])])


def _card_data(model: str) -> dict[str, Any]:
    """Return the metadata of a model's card, or nothing if there is no readable card."""
    if not model:  # created, not loaded; an empty path would be the current directory
        return {}
    try:
        text = ModelSource(model, {}).read_text(CARD)
        return {} if text is None else RepoCard(text, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, TypeError, yaml.YAMLError):  # cards of others may contain anything
        return {}


def _origin(base_model: str, card: dict[str, Any]) -> str | None:
    """Return the Hub id of a local base model, from its config or from the base model of its card."""
    if not base_model or not Path(base_model).is_dir():
        return None
    try:
        config = ModelSource(base_model, {}).read_json(CONFIG) or {}
    except (OSError, ValueError):
        config = {}
    named = _as_list(card.get("base_model"))
    candidates = [config.get("_name_or_path"), named[0] if len(named) == 1 else None]
    return next((name for name in candidates if _is_full_id(name)), None)


def _is_full_id(name: Any) -> bool:
    """Return whether this is a Hub id with an owner, not a relative path."""
    is_id = isinstance(name, str) and name.count("/") == 1 and is_hub_id(name)
    return is_id and name.partition("/")[0].lower() not in _FOLDERS


def _shown(value: Any) -> str:
    """Format a value of the recipe for the card."""
    value = getattr(value, "value", value)  # of an enumeration
    if not isinstance(value, list | tuple):
        return str(value)
    texts = [str(item) for item in value]
    return ("; " if any(" " in text for text in texts) else " ").join(texts)


def _as_list(value: Any) -> list[str]:
    """Return the strings of a value that may be one string, a list, or something else."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [text for text in values if isinstance(text, str)]
