"""What a run tells its model card: base, data, recipe, and what was measured before and after."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard import RepoCard

from modeling_magnet.publishing.card import CARD, CardFacts
from modeling_magnet.publishing.card import is_hub_id as is_model_id
from modeling_magnet.sources_magnet import CONFIG, ModelSource

from .sources import is_hub_id, local_files

# Measures of an evaluation by the name of their log, and what a reader calls them.
MEASURES = {
    "eval_infilling_perplexity": ("perplexity", "infilling perplexity, span tokens from both sides"),
    "eval_left_to_right_perplexity": ("perplexity", "perplexity of the same tokens from the left alone"),
    "eval_causal_perplexity": ("perplexity", "causal perplexity of whole texts"),
    "eval_masked_accuracy": ("accuracy", "accuracy of masked next-token prediction"),
}
TASKS = {"perplexity": "text-generation", "accuracy": "fill-mask"}
# Files of the training data that a card names one by one.
MOST_FILES = 20
# How a relative path begins that looks like a Hub id.
_FOLDERS = {"checkpoints", "checkpoint", "data", "model", "models", "output", "outputs", "results", "runs", "tmp"}


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
    """The facts of a run for `write_card`.

    Args:
        log_history (`Sequence[dict]`): The trainer's, with its evaluations.
        base_model (`str`): Directory or Hub id; its own card gives licence and language where none is given.
        arguments (`dict`): Arguments of the run that belong into the recipe, by name.
        train_texts (`Sequence[str]`): Files or Hub ids of the training data.
        eval_texts (`Sequence[str]`): The same of the held-out data.
        language (`Sequence[str]`): Codes of the languages.
        license (`str`, *optional*): The Hub's identifier of a licence.
        notes (`Sequence[str]`): Further sentences under "Limits".

    Returns:
        `CardFacts`: the results are those of the last evaluation; the recipe tells the first one as well.
    """
    evaluations = [log for log in log_history if "eval_loss" in log]
    held_out = told_data(eval_texts) or "held-out texts"
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
        recipe.insert(0, ("training data", told_data(train_texts)))
    origin = _origin(base_model, own)
    if origin is not None:
        recipe.insert(0, ("base model", f"{Path(base_model).name}, a directory whose files name {origin}"))
    return CardFacts(
        base_model=origin or base_model,
        datasets=[name for name in train_texts if is_hub_id(name)],
        language=list(language) or _list(own.get("language")),
        license=license or next(iter(_list(own.get("license"))), None),
        recipe=recipe,
        results=results,
        notes=notes,
    )


def _card_data(model: str) -> dict[str, Any]:
    """Metadata of a model's own card; nothing where the model has no name, or no card that can be read."""
    if not model:  # a model that was made and not loaded; an empty path would be the current directory
        return {}
    try:
        text = ModelSource(model, {}).read_text(CARD)
        return {} if text is None else RepoCard(text, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, TypeError, yaml.YAMLError):  # others wrote it: it may hold anything
        return {}


def told_data(names: Sequence[str]) -> str:
    """Name data: Hub ids as they are, files by their real names and number, without the directories they are in."""
    ids = [name for name in names if is_hub_id(name)]
    files: list[str] = []
    for name in names:
        if name in ids:
            continue
        try:
            files += [file.name for file in local_files(name)]
        except ValueError:  # gone by now
            files.append(Path(name).name)
    shown = files if len(files) <= MOST_FILES else [*files[: MOST_FILES - 1], "...", files[-1]]
    told = f"{len(files)} files: {', '.join(shown)}" if len(files) > 1 else "".join(files)
    return ", ".join([*ids, *filter(None, [told])])


def _origin(base_model: str, card: dict[str, Any]) -> str | None:
    """The Hub id that a local base says it is or is made from, in its config or else its card; `None` for none."""
    if not base_model or not Path(base_model).is_dir():
        return None
    try:
        config = ModelSource(base_model, {}).read_json(CONFIG) or {}
    except (OSError, ValueError):
        config = {}
    named = _list(card.get("base_model"))
    candidates = [config.get("_name_or_path"), named[0] if len(named) == 1 else None]
    return next((name for name in candidates if _is_full_id(name)), None)


def _is_full_id(name: Any) -> bool:
    """Whether this is a Hub id with its owner, and no path that looks like one."""
    is_id = isinstance(name, str) and name.count("/") == 1 and is_model_id(name)
    return is_id and name.partition("/")[0].lower() not in _FOLDERS and not name.startswith(".")


def _with_before(text: str, before: float | None) -> str:
    return text if before is None else f"{text} (before: {before:.4g})"


def _value(value: Any) -> str:
    value = getattr(value, "value", value)  # of an enumeration
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _list(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [one for one in values if isinstance(one, str)]


__all__ = ["MEASURES", "run_facts", "told_data"]
