"""What the Hub reads from a model card: the YAML between the dashes at its top, and what is wrong with it."""

import re
from typing import Any

import yaml

REPO_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TEXTS = ("license", "license_name", "license_link", "library_name", "pipeline_tag")
TEXTS_OR_LISTS = ("base_model", "datasets", "language", "metrics")


def read_metadata(card: str) -> Any:
    """The front matter of a card as YAML reads it; nothing where there is none."""
    text = card.replace("\r\n", "\n")
    found = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$", text, flags=re.DOTALL | re.MULTILINE)
    return yaml.safe_load(found[1]) if found else None


def check_metadata(card: str) -> tuple[list[str], list[str]]:
    """Errors, for which the Hub refuses a card, and warnings, in spite of which it takes it."""
    try:
        metadata = read_metadata(card)
    except yaml.YAMLError as error:
        return [f"invalid YAML in the card's metadata: {error}"], []
    if metadata is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return [f"metadata must be a mapping, not {metadata!r}"], []
    errors = [f'"{key}" must be a string' for key in TEXTS if not isinstance(metadata.get(key, ""), str)]
    if not _are_texts(metadata.get("tags", [])):
        errors.append('"tags" must be an array of strings')
    for key in TEXTS_OR_LISTS:
        given = metadata.get(key, [])
        values = [given] if isinstance(given, str) else given
        if not _are_texts(values):
            errors.append(f'"{key}" must be a string or an array of strings')
        elif key == "base_model":
            errors += [f'"{key}" with value "{name}" is not valid' for name in values if not REPO_NAME.fullmatch(name)]
    for result in metadata.get("model-index") or []:
        if not isinstance(result, dict) or not {"name", "results"} <= set(result):
            errors.append('each entry of "model-index" must have a "name" and "results"')
    return errors, []


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
