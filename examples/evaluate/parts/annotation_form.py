"""Create the form in which people judge fills blindly, its key, and read the returned answers.

The form contains only texts. Items are ordered by digests of their texts, and annotators see them in random orders
that do not depend on systems. The form would therefore be the same bytes if two systems swapped all their fills, and
nobody can infer the author of a fill from it, even with the seed. Systems that wrote the same sentence into a story
share one item. Only the key assigns items to systems.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.evaluate.parts.fill_systems import StoryBlank
from trainer.files import parse_json

TEMPLATE = Path(__file__).with_name("annotation_form.html")
DATA_MARK = "__FORM_DATA__"
# Characters that could end the script element around the JSON, or begin a comment in it.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def make_form(
    blanks: Sequence[StoryBlank], fills: Mapping[str, Sequence[str]], *, annotators: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make a blinded, shuffled form and its key."""
    owners: dict[str, dict[str, Any]] = {}
    texts: dict[str, dict[str, str]] = {}
    for system, written in fills.items():
        for story, (blank, fill) in enumerate(zip(blanks, written, strict=True)):
            parts = {"prefix": blank.prefix.strip(), "fill": fill.strip(), "suffix": blank.suffix.strip()}
            item = _digest([story, parts])
            texts[item] = parts
            owners.setdefault(item, {"story": story, "systems": []})["systems"].append(system)
    items = [{"id": item, **texts[item]} for item in sorted(texts)]
    orders = {
        str(annotator): np.random.default_rng([seed, annotator]).permutation(len(items)).tolist()
        for annotator in range(1, annotators + 1)
    }
    form = _digest([items, orders])
    shown = {"form": form, "items": items, "orders": orders}
    return shown, {"form": form, "annotators": list(orders), "items": {item: owners[item] for item in sorted(owners)}}


def render_form(shown: Mapping[str, Any]) -> str:
    """Render a self-contained HTML page."""
    data = json.dumps(shown)  # ASCII only: escapes direction marks and line separators
    for character, escape in _ESCAPES.items():
        data = data.replace(character, escape)
    before, after = TEMPLATE.read_text(encoding="utf-8").split(DATA_MARK)
    return before + data + after


def read_key(file: Path) -> dict[str, Any]:
    """Read the key of a form."""
    key = _read_json(file)
    if not isinstance(key, dict) or not {"form", "annotators", "items", "systems"} <= key.keys():
        raise ValueError(
            f"{str(file)!r} is not the key of a form; expected the key.json that `sample` wrote beside it."
        )
    return key


def read_answers(key: Mapping[str, Any], files: Sequence[Path]) -> dict[str, dict[str, bool]]:
    """Read and check the answers of each annotator."""
    answers: dict[str, dict[str, bool]] = {}
    complaints: list[str] = []
    for file in files:
        try:
            given = _read_json(file)
            annotator, chosen = given["annotator"], given["answers"]
            faults = _faults(key, form=given["form"], annotator=annotator, answers=chosen, known=answers)
            if not faults:
                answers[annotator] = chosen
        except ValueError as error:
            complaints.append(str(error))
        except (KeyError, TypeError, AttributeError):
            complaints.append(f"{str(file)!r} holds no answers of a form; expected what its button downloads.")
        else:
            complaints += [f"{str(file)!r} {fault}" for fault in faults]
    if complaints:
        raise ValueError("\n- ".join(["The answers cannot be used:", *complaints]))
    return answers


def _faults(
    key: Mapping[str, Any], *, form: str, annotator: str, answers: Mapping[str, Any], known: Mapping[str, Any]
) -> list[str]:
    """Return what is wrong with one file of answers."""
    if form != key["form"]:
        return [f"answers form {form!r}; the key is of {key['form']!r}. Take the key that belongs to it."]
    faults = []
    if annotator not in key["annotators"]:
        faults.append(f"is of annotator {annotator!r}; the form has {', '.join(key['annotators'])}.")
    elif annotator in known:
        faults.append(f"is of annotator {annotator}, as is another file. Pass one of them.")
    if answers.keys() != key["items"].keys():
        missing, foreign = len(key["items"].keys() - answers.keys()), len(answers.keys() - key["items"].keys())
        faults.append(f"leaves {missing} of {len(key['items'])} items without an answer and answers {foreign} others.")
    if odd := [answer for answer in answers.values() if not isinstance(answer, bool)]:
        faults.append(f"has answers such as {odd[0]!r}; expected true or false.")
    return faults


def _read_json(file: Path) -> Any:
    """Read a JSON file."""
    try:
        return parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(file)!r} cannot be read as JSON ({error}). Get it again.") from error


def _digest(value: Any) -> str:
    """Return a digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
